"""`gatekeeper flags`: read and change flags, their targets, their history and their usage."""

from datetime import timedelta
from typing import Any

import click

from gatekeeper_grpc.cli.client.access import listed, read
from gatekeeper_grpc.cli.client.audit_entries import ENTRY
from gatekeeper_grpc.cli.client.output import (
    Column,
    Kind,
    Output,
    choice_of,
    text_of,
    texts_of,
    time_of,
    yes_of,
)
from gatekeeper_grpc.cli.client.preview import preview_options
from gatekeeper_grpc.cli.client.resources import Resource, changes, choice_option, if_match, limit_option, reads
from gatekeeper_grpc.cli.client.server import Server
from gatekeeper_grpc.cli.client.user_ids import UserIds
from gatekeeper_grpc.cli.client.values import segment_targets

_PERCENT = click.IntRange(0, 100)
_DAY_S = 86_400


def _segments_of(flag: Any) -> str:
    return ",".join(f"{target.segment_key}={str(target.value).lower()}" for target in flag.segment_targets)


def _stale_for(_context: click.Context, _parameter: click.Parameter, days: int | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)


FLAG = Kind(
    plural="flags",
    name_of=text_of("key"),
    columns=(
        Column("FLAG", text_of("key")),
        Column("ENABLED", yes_of("enabled")),
        Column("ROLLOUT", lambda flag: f"{flag.rollout_percentage}%"),
        Column("DEFAULT", lambda flag: str(flag.default_value).lower()),
        Column("TAGS", texts_of("tags")),
        Column("OWNER", text_of("owner"), is_wide=True),
        Column("SEGMENTS", _segments_of, is_wide=True),
        Column("UPDATED", time_of("update_time"), is_wide=True),
        Column("REVISION", text_of("revision"), is_wide=True),
        Column("ETAG", text_of("etag"), is_wide=True),
        Column("DESCRIPTION", text_of("description"), is_wide=True),
    ),
)
TARGET = Kind(
    plural="targets",
    name_of=text_of("user_id"),
    columns=(Column("USER", text_of("user_id")), Column("VALUE", lambda target: str(target.value).lower())),
)
_FLAG = Resource(
    kind=FLAG,
    noun="flag",
    rpc="Flag",
    key="key",
    fields=(
        click.option("--description", help="What the flag is for."),
        click.option("--owner", help="The team or person responsible for it."),
        click.option("--tag", "tags", multiple=True, help="A label. Repeatable: all of them."),
        click.option("--rollout", "rollout_percentage", type=_PERCENT, help="Percentage of users who get true."),
        click.option("--default", "default_value", type=bool, help="The value when no rule applies."),
        click.option("--enabled/--disabled", default=None, help="Whether the rules apply."),
        click.option(
            "--segment",
            "segment_targets",
            multiple=True,
            metavar="SEGMENT=VALUE",
            callback=segment_targets,
            help="What users of a segment get. Repeatable: all of them, in their order.",
        ),
    ),
    clearable=("tags", "segment_targets"),
    can_preview=True,
)


@click.group()
def flags() -> None:
    """Read and change flags. Needs a login, or a token in GATEKEEPER_TOKEN."""


_FLAG.add_list(
    flags,
    "List flags, by key.",
    click.option("--prefix", "key_prefix", help="Only flags whose key begins with this."),
    click.option("--tag", "tags", multiple=True, help="Only flags with this tag. Repeatable: with all of them."),
    click.option("--owner", help="Only flags of this owner."),
    click.option("--enabled/--disabled", default=None, help="Only enabled ones, or only disabled ones."),
    click.option(
        "--stale-days",
        "stale_for",
        type=click.IntRange(1, 3650),
        callback=_stale_for,
        help="Only those that no request has named for so long.",
    ),
)
_FLAG.add_get(flags, "Print the flag KEY.")
_FLAG.add_create(flags, "Create the flag KEY; without options it is disabled, and false for all users.")
_FLAG.add_update(flags, "Change the fields of the flag KEY whose options are given.")
_FLAG.add_delete(flags, "Delete the flag KEY with its targets, for good.")


@flags.command("set-rollout")
@click.argument("key")
@click.argument("percentage", type=_PERCENT)
@preview_options
@if_match
@changes
def set_rollout(server: Server, out: Output, *, percentage: int, **how: Any) -> None:
    """Let PERCENTAGE (0 to 100) of the users get true for the flag KEY."""
    _FLAG.update(server, out, {"rollout_percentage": percentage}, **how)


@flags.command()
@click.argument("key")
@preview_options
@if_match
@changes
def enable(server: Server, out: Output, **how: Any) -> None:
    """Let the rules of the flag KEY apply."""
    _FLAG.update(server, out, {"enabled": True}, **how)


@flags.command()
@click.argument("key")
@preview_options
@if_match
@changes
def disable(server: Server, out: Output, **how: Any) -> None:
    """Give every user the default value of the flag KEY: the kill switch."""
    _FLAG.update(server, out, {"enabled": False}, **how)


@flags.command()
@click.argument("key")
@limit_option
@reads
def history(server: Server, out: Output, *, key: str, limit: int | None) -> None:
    """List who changed the flag KEY or its targets, newest first; also of a deleted flag."""
    kinds = ("RESOURCE_TYPE_FLAG", "RESOURCE_TYPE_TARGETS")
    pages = (
        listed(server, "ListAuditEntries", ENTRY.plural, limit=limit, resource_type=kind, resource_key=key)
        for kind in kinds
    )
    found = sorted((entry for page in pages for entry in page), key=lambda entry: entry.seq, reverse=True)
    out.items(ENTRY, found[:limit])


@flags.command()
@click.argument("key")
@choice_option(
    "--step", prefix="USAGE_STEP_", choices=("hour", "day"), default="hour", show_default=True, help="Of the series."
)
@reads
def usage(server: Server, out: Output, *, key: str, step: str) -> None:
    """Print how often the flag KEY was asked for, and what was answered."""
    answer = read(server, "GetFlagUsage", key=key, step=step)
    if out.is_document:
        out.result(answer, "", name=key)
        return
    rows = [
        (time_of("start_time")(period), *(say(count) for say in _COUNT))
        for period in answer.usage
        for count in period.counts
    ]
    out.table(["START", "ASKED_FOR", "VALUE", "REASON", "DECISIONS"], rows)
    for name, field in (("named", "last_named_time"), ("asked for with all", "last_all_time")):
        click.echo(f"last {name}: {time_of(field)(answer) or 'never'}")
    click.echo(f"counted since {time_of('counted_since')(answer)}")


_COUNT = (choice_of("asked_for"), text_of("variant"), choice_of("reason"), text_of("decisions"))

_TARGETS = UserIds(
    kind=TARGET,
    key="flag_key",
    list_rpc="ListTargets",
    remove_rpc="RemoveTargets",
    import_rpc="ImportTargets",
    options=(click.option("--value", type=bool, required=True, help="What these users get: true or false."),),
)
flags.add_command(_TARGETS.group("targets", "Give single users of a flag a fixed value."))
