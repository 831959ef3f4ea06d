"""`gatekeeper completion`."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what completes commands and options in SHELL.

    Have the shell read it when it starts, as eval "$(gatekeeper completion bash)" in ~/.bashrc does.
    """
    complete = get_completion_class(shell)
    assert complete is not None  # noqa: S101 - one of click's own
    root = context.find_root()
    click.echo(complete(root.command, {}, "gatekeeper", "_GATEKEEPER_COMPLETE").source())
