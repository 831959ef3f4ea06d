"""`gatekeeper context`: servers with names, and the one that commands use."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import click

from gatekeeper_grpc.cli.client.contexts import Context, Contexts
from gatekeeper_grpc.cli.client.output import Column, Kind, Output, output_option
from gatekeeper_grpc.cli.client.server import TLS_FILES, server_of, tls_options
from gatekeeper_grpc.cli.client.sessions import Sessions

# No colon: an address has one.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KIND = Kind(
    plural="contexts",
    name_of=itemgetter("name"),
    columns=(
        Column("CONTEXT", itemgetter("name")),
        Column("IN_USE", lambda found: "yes" if found["in_use"] else "no"),
        Column("SERVER", itemgetter("server")),
        Column("LOGIN", itemgetter("username")),
        Column("TLS_CA", itemgetter("tls_ca"), is_wide=True),
        Column("CLIENT_CERT", itemgetter("client_cert"), is_wide=True),
        Column("CLIENT_KEY", itemgetter("client_key"), is_wide=True),
    ),
)


def _checked(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise click.BadParameter("a name has up to 63 letters, digits, '.', '_' and '-', and begins with none of these")
    return name


@click.group()
def context() -> None:
    """Name servers, and choose the one that commands use."""


@context.command("list")
@output_option
def list_contexts(out: Output) -> None:
    """List all contexts, and who is logged in."""
    out.items(_KIND, _listed())


@context.command("set")
@click.argument("name", callback=_checked)
@click.option("--server", "address", metavar="ADDRESS", help="host:port, unix:/path, or https://host[:port].")
@tls_options
@output_option
@click.pass_context
def set_context(command: click.Context, /, *, name: str, address: str | None, out: Output) -> None:
    """Give a server the name NAME; of a context that exists, change what is given.

    A login that is kept for the context is forgotten if the server is another one.
    """
    contexts, files = Contexts.of_user(), _files(command.meta)
    before = contexts.all().get(name)
    if before is None and address is None:
        raise click.UsageError(f"there is no context {name!r} yet: say which server with --server")
    after = replace(before or Context(server=""), **files, **({"server": address.strip()} if address else {}))
    server_of({option: file for option, file in _by_option(after).items() if file}, after.server)
    if before and before.server != after.server:
        _forget(name)
    contexts.set(name, after)
    (found,) = (each for each in _listed() if each["name"] == name)
    out.item(_KIND, found)
    if not found["in_use"]:
        click.echo(f"`gatekeeper context use {name}` has commands use it", err=True)


@context.command()
@click.argument("name")
@output_option
def use(name: str, out: Output) -> None:
    """Have commands use the context NAME, unless they or the environment name another server."""
    server = Contexts.of_user().use(name).server
    out.result({"name": name, "server": server}, f"commands use {name} ({server})", name=name)


@context.command()
@click.argument("name")
@output_option
def delete(name: str, out: Output) -> None:
    """Delete the context NAME; a login that is kept for it is forgotten. Does not ask."""
    Contexts.of_user().delete(name)
    _forget(name)
    out.result({"name": name}, f"{name} is deleted", name=name)


def _listed() -> Iterator[Mapping[str, Any]]:
    contexts, sessions = Contexts.of_user(), Sessions.of_user()
    in_use = contexts.in_use
    for name, found in contexts.all().items():
        session = sessions.find(name)
        known = {"username": session.username if session else "", "in_use": name == in_use}
        yield {"name": name, **asdict(found), **known}


def _forget(name: str) -> None:
    sessions = Sessions.of_user()
    if session := sessions.find(name):
        sessions.forget(name)
        click.echo(f"the login of {session.username} is forgotten; `gatekeeper logout` would have ended it", err=True)


def _files(given: Mapping[str, str]) -> dict[str, str]:
    return {field: str(Path(given[option]).absolute()) for option, field in TLS_FILES.items() if option in given}


def _by_option(kept: Context) -> dict[str, str]:
    return {option: getattr(kept, field) for option, field in TLS_FILES.items()}
