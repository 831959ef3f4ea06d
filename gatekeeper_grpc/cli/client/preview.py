"""Previews of changes: who gains and who loses a flag, for users of a file."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from gatekeeper_grpc.cli.client.access import STREAM_TIMEOUT_S, call_admin, request_of
from gatekeeper_grpc.cli.client.bulk_users import BulkUsers, users_of
from gatekeeper_grpc.cli.client.failures import CREDENTIALS, Failure
from gatekeeper_grpc.cli.client.output import Output, choice_of, document_of
from gatekeeper_grpc.cli.client.prompts import yes_option
from gatekeeper_grpc.cli.client.server import Server

Function = TypeVar("Function", bound=Callable[..., Any])

_FILE = click.Path(dir_okay=False, exists=True, allow_dash=True, path_type=Path)


def preview_options(function: Function) -> Function:
    """Give a change the option --preview and what goes with it; it gets `preview`, `preview_rows` and `yes`."""
    rows = click.option(
        "--preview-rows",
        type=click.Choice(("changed", "all")),
        help="Also print these users.  [default: the first 20 who change]",
    )
    file = click.option(
        "--preview", type=_FILE, metavar="FILE", help="Show first who gains and who loses it: .csv, or JSON Lines."
    )
    return file(rows(yes_option(function)))


@dataclass(slots=True)
class Told:
    """What a preview has told."""

    header: Any = None
    totals: Any = None
    rows: list[Any] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """Who gains and who loses."""
        totals = self.totals
        return f"{totals.gained_count:,} of {totals.evaluated_count:,} users gain it, {totals.lost_count:,} lose it"

    def document(self) -> dict[str, Any]:
        """Return all of it for programs."""
        rows = [document_of(row) for row in self.rows]
        return {**document_of(self.header), "totals": document_of(self.totals), "rows": rows}

    def show(self, out: Output) -> None:
        """Print it for people: how many users there are of each change, and some of them."""
        totals = self.totals
        click.echo(f"{self.header.before.key} at revision {self.header.revision}: {self.summary}")
        if totals.error_count:
            click.echo(f"{totals.error_count:,} users could not be evaluated; --preview-rows changed says why")
        transitions = [
            (_answer(each, "before"), _answer(each, "after"), f"{each.count:,}") for each in totals.transitions
        ]
        out.table(["BEFORE", "AFTER", "USERS"], transitions)
        rows = self.rows or totals.sample
        if rows:
            click.echo()
            out.table(["USER", "BEFORE", "AFTER"], [_cells(row) for row in rows])


def ask(server: Server, rpc: str, file: Path, *, rows: str | None, **change: Any) -> Told:
    """Ask what a change would do to the users of a file, which is read when the server has accepted the change.

    Args:
        server: The server.
        rpc: The method.
        file: The users; "-" is standard input.
        rows: Which users to tell of one by one: "changed", "all" or none.
        change: The fields of the first message.

    Raises:
        Failure: Nobody is logged in, or the call failed.
        click.UsageError: A line of the file is no user.
    """
    first = request_of(rpc, {**change, "rows": f"PREVIEW_ROWS_{(rows or 'unspecified').upper()}"})
    with users_of(file) as users:

        def call(admin: Any, how: Any) -> Told:
            if users.has_begun:  # The rest of them would be told of, as if it were all.
                raise Failure("the access token expired during the preview", CREDENTIALS, hint="run it again")
            how["timeout"] = STREAM_TIMEOUT_S
            return _told(getattr(admin, rpc), how, first, users)

        try:
            told = call_admin(server, call)
        finally:
            users.hide()
        if users.fault:
            raise users.fault
    return told


def _told(method: Any, how: Any, first: Any, users: BulkUsers) -> Told:
    told, is_over = Told(), threading.Event()
    may_go_on = threading.Event()

    def requests() -> Iterator[Any]:
        yield first
        # A call that is refused for an old login is made again, with all users.
        may_go_on.wait()
        if not is_over.is_set():
            yield from (type(first)(contexts=contexts) for contexts in users.messages())

    try:
        for answer in method(requests(), **how):
            _take(answer, told, users)
            may_go_on.set()
    finally:
        is_over.set()
        may_go_on.set()
    return told


def _take(answer: Any, told: Told, users: BulkUsers) -> None:
    if answer.HasField("batch"):
        told.rows.extend(answer.batch.rows)
        if answer.batch.evaluated_count:
            users.show(answer.batch.evaluated_count)
    elif answer.HasField("header"):
        told.header = answer.header
    else:
        told.totals = answer.totals


def _answer(transition: Any, when: str) -> str:
    return _words(getattr(transition, f"{when}_value"), choice_of(f"{when}_reason")(transition))


def _cells(row: Any) -> tuple[str, str, str]:
    if row.HasField("error"):
        return row.user_id, "", row.error.message
    before, after = (_words(each.value, choice_of("reason")(each)) for each in (row.before, row.after))
    return row.user_id, before, after


def _words(value: bool, reason: str) -> str:
    return f"{str(value).lower()} ({reason})"
