"""`gatekeeper audit-log`: the audit log as a server shows it. `gatekeeper audit` reads the database instead."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from gatekeeper_grpc.cli.client.access import listed, read, stream
from gatekeeper_grpc.cli.client.audit_entries import ENTRY
from gatekeeper_grpc.cli.client.failures import Failure
from gatekeeper_grpc.cli.client.output import JSON, YAML, Column, Kind, Output, choice_of, text_of, time_of
from gatekeeper_grpc.cli.client.resources import Option, choice_option, given, reads
from gatekeeper_grpc.cli.client.server import Server, server_option

_ANCHOR = re.compile(r"(\d{1,18}):([0-9a-f]{64})")
_TYPES = (
    *("flag", "targets", "segment", "members", "user", "admin_user", "client_key", "subject", "installation"),
    "api_token",
)
_KINDS = f"With --key: of what. One of {', '.join(_TYPES)}."
_EVENT = Kind(
    plural="auth_events",
    name_of=text_of("event"),
    columns=(
        Column("TIME", time_of("create_time")),
        Column("EVENT", text_of("event")),
        Column("ADMIN", text_of("username")),
        Column("ACTOR", text_of("actor")),
        Column("ADDRESS", text_of("peer")),
        Column("PEOPLE", text_of("subject_count"), is_wide=True),
    ),
)


def _utc(_context: click.Context, _parameter: click.Parameter, moment: datetime | None) -> datetime | None:
    return moment and moment.replace(tzinfo=UTC)


def _anchor(_context: click.Context, _parameter: click.Parameter, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    found = _ANCHOR.fullmatch(text)
    if not found:
        raise click.BadParameter("must be SEQ:HASH, as `gatekeeper audit anchor` prints it")
    return {"seq": int(found[1]), "hash": bytes.fromhex(found[2])}


_FILTERS: tuple[Option, ...] = (
    click.option("--actor", help="Only of this one, such as admin:ann, or token:deploy#at_... of one token."),
    click.option("--action", help="Only of this RPC, such as UpdateFlag."),
    choice_option("--type", "resource_type", prefix="RESOURCE_TYPE_", choices=_TYPES, metavar="KIND", help=_KINDS),
    click.option("--key", "resource_key", help="With --type: only about this one."),
    click.option("--since", "start_time", type=click.DateTime(), callback=_utc, help="Only from this time on, in UTC."),
    click.option("--until", "end_time", type=click.DateTime(), callback=_utc, help="Only before this time, in UTC."),
    click.option("--from-revision", "start_revision", type=click.IntRange(min=1), help="Only from this revision on."),
    click.option("--to-revision", "end_revision", type=click.IntRange(min=1), help="Only up to this revision."),
)


def _filtered(function: Any) -> Any:
    for option in reversed(_FILTERS):
        function = option(function)
    return function


@click.group("audit-log")
def audit_log() -> None:
    """Read and verify the audit log through a server."""


@audit_log.command("list")
@_filtered
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Only so many.")
@reads
def list_entries(server: Server, out: Output, *, limit: int, **filters: Any) -> None:
    """List who changed what, newest first."""
    out.items(ENTRY, listed(server, "ListAuditEntries", ENTRY.plural, limit=limit, **given(filters)))


@audit_log.command()
@_filtered
@click.option(
    "-o", "--output", "form", type=click.Choice([JSON, YAML]), default=JSON, show_default=True, help="Of each."
)
@server_option
def export(server: Server, *, form: str, **filters: Any) -> None:
    """Print all entries with all fields, newest first: JSON Lines, or YAML documents."""
    for entry in listed(server, "ListAuditEntries", ENTRY.plural, **given(filters)):
        Output(form).event(entry, "", name="")


@audit_log.command()
@click.option("--anchor", callback=_anchor, metavar="SEQ:HASH", help="An anchor kept outside, which it must contain.")
@reads
def verify(server: Server, out: Output, *, anchor: dict[str, Any] | None) -> None:
    """Have the server compute every hash of the log again; exit with 1 at the first bad entry."""
    last = stream(server, "VerifyAuditLog", _last, **given({"anchor": anchor}))
    if last.faulty_seq:
        fault = choice_of("fault")(last)
        raise Failure(
            f"{fault} at entry {last.faulty_seq}: {last.message}",
            1,
            hint="keep the database as it is, and read docs/operations/audit.md",
        )
    if not last.complete:
        raise Failure("the server ended the verification early", 1, hint="try again later")
    head = f"{last.verified.seq}:{last.verified.hash.hex()}"
    unproven = f"; nothing is proven of {last.incomparable_subjects} people" if last.incomparable_subjects else ""
    out.result(last, f"verified {last.verified_entries} entries{unproven}; the head is\n{head}", name=head)


@audit_log.command()
@reads
def checkpoint(server: Server, out: Output) -> None:
    """Print the head of the log with the server's signature, to be kept outside: with -o json as a file to verify."""
    answer = read(server, "GetAuditCheckpoint")
    head = f"{answer.checkpoint.anchor.seq}:{answer.checkpoint.anchor.hash.hex()}"
    out.result(answer, f"{head} at revision {answer.checkpoint.revision}", name=head)


@audit_log.command()
@click.option("--username", help="Only with this username.")
@click.option("--event", help="Only of this kind, such as login_failed.")
@click.option("--user", "user_id", help="Only reads of what is stored about this user.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Only so many.")
@reads
def logins(server: Server, out: Output, *, limit: int, **filters: Any) -> None:
    """List logins, refused ones too, and who read personal data, newest first. Needs the role admin."""
    out.items(_EVENT, listed(server, "ListAuthEvents", _EVENT.plural, limit=limit, **given(filters)))


def _last(reports: Iterator[Any]) -> Any:
    *_, last = reports
    return last
