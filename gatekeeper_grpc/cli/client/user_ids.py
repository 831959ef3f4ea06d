"""Commands for sets of user ids: the targets of a flag, the members of a segment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import click

from gatekeeper_grpc.cli.client.access import change, change_many, listed
from gatekeeper_grpc.cli.client.output import Kind, Output
from gatekeeper_grpc.cli.client.resources import Option, changes, done, if_match, limit_option, reads
from gatekeeper_grpc.cli.client.server import Server

# What a request may have.
_IMPORTED, _REMOVED = 10_000, 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UserIds:
    """A set of user ids that a resource has, and the commands that AdminService has for it."""

    kind: Kind
    key: str
    """The field of requests that names the resource; also what commands call their first argument."""
    list_rpc: str
    remove_rpc: str
    import_rpc: str
    options: Sequence[Option] = ()
    """Options for what is added."""

    def group(self, name: str, help: str) -> click.Group:  # noqa: A002 - as click calls it
        """Return the group of commands."""
        group = click.Group(name, help=help)
        users = click.argument("user_ids", nargs=-1, required=True, metavar="USER...")
        file = click.argument("file", type=click.File(encoding="utf-8"))
        self._register(group, "list", "List the users, by id.", self._list(), limit_option)
        self._register(group, "add", "Add users by their ids.", self._add(), users, *self.options)
        self._register(group, "remove", "Remove users by their ids.", self._remove(), users)
        help_of_import = "Add the users whose ids are the lines of FILE; - is standard input."
        self._register(group, "import", help_of_import, self._import(), file, *self.options)
        return group

    def _register(self, group: click.Group, name: str, help: str, command: Any, *options: Option) -> None:  # noqa: A002
        for option in reversed((click.argument(self.key), *options)):
            command = option(command)
        group.command(name, help=help)(command)

    def _list(self) -> Any:
        @reads
        def command(server: Server, out: Output, limit: int | None, **key: str) -> None:
            out.items(self.kind, listed(server, self.list_rpc, self.kind.plural, limit=limit, **key))

        return command

    def _add(self) -> Any:
        @if_match
        @changes
        def command(server: Server, out: Output, user_ids: Sequence[str], **fields: Any) -> None:
            self._put(server, out, user_ids, fields)

        return command

    def _import(self) -> Any:
        @if_match
        @changes
        def command(server: Server, out: Output, file: TextIO, **fields: Any) -> None:
            self._put(server, out, lines(file), fields)

        return command

    def _put(self, server: Server, out: Output, user_ids: Sequence[str], fields: dict[str, Any]) -> None:
        requests = [{**fields, "user_ids": batch} for batch in batches(user_ids, _IMPORTED)]
        answer = change_many(server, self.import_rpc, requests)
        counts = f"{answer.added_count} {done(fields, 'were', 'added')}"
        if moved := getattr(answer, "moved_count", 0):
            counts = f"{counts}, {moved} {done(fields, 'were', 'moved')}"
        out.result(answer, f"{counts}, at revision {answer.revision}", name=fields[self.key])

    def _remove(self) -> Any:
        @if_match
        @changes
        def command(server: Server, out: Output, user_ids: Sequence[str], **fields: Any) -> None:
            batch, *more = batches(user_ids, _REMOVED)
            if more:
                raise click.UsageError(f"at most {_REMOVED} users at once")
            answer = change(server, self.remove_rpc, user_ids=batch, **fields)
            text = f"{answer.removed_count} {done(fields, 'were', 'removed')}, at revision {answer.revision}"
            out.result(answer, text, name=fields[self.key])

        return command


def lines(file: TextIO) -> Sequence[str]:
    """Return the ids in a file, one a line.

    Raises:
        click.UsageError: It has none, or is not UTF-8.
    """
    try:
        lines = [line.rstrip("\r\n") for line in file]
    except UnicodeDecodeError:
        raise click.UsageError(f"{file.name}: must be UTF-8") from None
    if not any(lines):
        raise click.UsageError(f"{file.name}: has no user id")
    return [line for line in lines if line]


def batches(user_ids: Sequence[str], size: int) -> list[Sequence[str]]:
    """Return the ids, each once, in parts of this size at most."""
    once = list(dict.fromkeys(user_ids))
    return [once[start : start + size] for start in range(0, len(once), size)]
