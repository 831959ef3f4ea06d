"""What client commands ask for: confirmation, and secrets, which never stand in the arguments."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from gatekeeper_grpc.cli.client.failures import Failure

Function = TypeVar("Function", bound=Callable[..., Any])


def yes_option(function: Function) -> Function:
    """Give a command that cannot be undone the option --yes."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(function)


def password_option(function: Function) -> Function:
    """Give a command the option --password-stdin."""
    return click.option(
        "--password-stdin", is_flag=True, help="Read the password from standard input.  [default: ask for it]"
    )(function)


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless the answer was given as --yes.

    Raises:
        click.UsageError: There is no terminal to ask.
        Failure: The answer is no.
    """
    if yes:
        return
    _need_terminal("to ask, so nothing was changed: add --yes")
    if not click.confirm(f"{question}?", err=True):
        raise Failure("nothing was changed", 1)


def password(*, from_stdin: bool, prompt: str = "Password", is_new: bool = False) -> str:
    """Return a password from standard input, or ask for it; ask for a new one twice.

    Raises:
        click.UsageError: There is none, and no terminal to ask.
    """
    if from_stdin:
        return secret_of_stdin("--password-stdin")
    _need_terminal("to ask for the password: use --password-stdin < FILE")
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=is_new, err=True))


def secret_of_stdin(option: str) -> str:
    """Return the secret on standard input, without the end of its line.

    Raises:
        click.UsageError: There is none.
    """
    secret = sys.stdin.read().removesuffix("\n").removesuffix("\r") if sys.stdin else ""
    if not secret:
        raise click.UsageError(f"{option}: nothing came on standard input")
    return secret


def _need_terminal(why: str) -> None:
    if not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError(f"standard input is no terminal {why}")
