"""The reference of the `gatekeeper` command: a section for each command, from what `--help` says."""

import inspect
from collections.abc import Iterator

import click

from gatekeeper_grpc.cli.main import gatekeeper

_HEAD = (
    "# Commands\n\nWhat `gatekeeper COMMAND --help` says. [The command line](../command-line.md) shows them at work.\n"
)


def command_reference() -> str:
    """Return the page."""
    # A command keeps the first help option that it is asked for, so it must be that of its own settings.
    context = click.Context(gatekeeper, info_name="gatekeeper", **gatekeeper.context_settings)
    return "\n".join([_HEAD, *_sections(gatekeeper, context, depth=1)])


def _sections(command: click.Command, context: click.Context, *, depth: int) -> Iterator[str]:
    """Yield the section of a command, unless it is the first one, and those of the commands in it."""
    if depth > 1:
        yield _section(command, context, depth)
    if isinstance(command, click.Group):
        entries = getattr(command, "entries", {})
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner and not inner.hidden and not (name in entries and entries[name].hidden):
                yield from _sections(inner, click.Context(inner, context, info_name=name), depth=depth + 1)


def _section(command: click.Command, context: click.Context, depth: int) -> str:
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    about = inspect.cleandoc(command.help or "").replace("\b\n", "")
    records = [record for option in command.get_params(context) if (record := option.get_help_record(context))]
    rows = [f"| `{names}` | {_cell(text)} |" for names, text in records if text and "--help" not in names]
    table = ["| option | |", "|---|---|", *rows] if rows else []
    return "\n".join([f"{'#' * depth} {context.command_path}", "", f"`{usage}`", "", about, "", *table, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("  [", " [")
