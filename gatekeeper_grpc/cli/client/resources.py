"""Commands for the resources of AdminService, from one declaration of each.

The options of a command are fields of its request: they have the names of the protos.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from gatekeeper_grpc.cli.client.access import change, listed, read
from gatekeeper_grpc.cli.client.output import NAME, TABLE, WIDE, Kind, Output, document_of, output_option
from gatekeeper_grpc.cli.client.preview import Told, ask, preview_options
from gatekeeper_grpc.cli.client.prompts import confirm, yes_option
from gatekeeper_grpc.cli.client.server import Server, server_option

Function = TypeVar("Function", bound=Callable[..., Any])
Option = Callable[[Any], Any]

_HOW = ("change_reason", "validate_only")
_PREVIEW = ("preview", "preview_rows", "yes")


def reads(function: Function) -> Function:
    """Give a command the options of every call; it gets `server` and `out`."""
    return server_option(output_option(function))


def changes(function: Function) -> Function:
    """Give a command the options of every change; it gets `change_reason` and `validate_only` too."""
    function = click.option("--dry-run", "validate_only", is_flag=True, help="Check the change, and make none.")(
        reads(function)
    )
    return click.option("--reason", "change_reason", default="", help="Why, for the audit log.")(function)


def if_match(function: Function) -> Function:
    """Give a command the option --if-match; it gets `etag`."""
    return click.option("--if-match", "etag", default="", metavar="ETAG", help="Only if it still has this etag.")(
        function
    )


def choice_option(*names: str, prefix: str, choices: Sequence[str], **settings: Any) -> Option:
    """Return an option for an enum: its choices are the names of the values, in lower case and without their prefix."""

    def name_of(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
        return value and f"{prefix}{value.upper()}"

    return click.option(*names, type=click.Choice(choices), callback=name_of, **settings)


def role_option(**settings: Any) -> Option:
    """Return the option --role."""
    return choice_option(
        "--role",
        prefix="ROLE_",
        choices=("viewer", "editor", "admin"),
        help="viewer: read. editor: also change flags, segments and users. admin: everything.",
        **settings,
    )


def days_option(*, default: int | None, help: str) -> Option:  # noqa: A002 - as click calls it
    """Return an option for a lifetime in days, 1 to 366; the command gets `expire_time`."""

    def end_of(_context: click.Context, _parameter: click.Parameter, days: int | None) -> datetime | None:
        return days and datetime.now(UTC) + timedelta(days=days)  # type: ignore[return-value]

    return click.option(
        "--days",
        "expire_time",
        type=click.IntRange(1, 366),
        default=default,
        show_default=True,
        callback=end_of,
        help=help,
    )


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields whose options were given."""
    return {name: value for name, value in fields.items() if value not in (None, ())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind of resource, and the commands that AdminService has for it."""

    kind: Kind
    noun: str
    """The field of requests and responses that has it, such as "flag"."""
    rpc: str
    """What RPCs call it, such as "Flag" in GetFlag."""
    key: str
    """The field that identifies it; also what commands call their argument."""
    fields: Sequence[Option] = ()
    """Options for its fields; None or () if they are not given."""
    clearable: Sequence[str] = ()
    """Repeated fields, which an update can empty."""
    can_preview: bool = False
    """Whether AdminService tells what an update would do to users."""

    def add_list(self, group: click.Group, help: str, *options: Option) -> None:  # noqa: A002
        """Add the command `list`; options are filters of the request."""

        @reads
        def command(server: Server, out: Output, limit: int | None, **filters: Any) -> None:
            rpc, plural = f"List{self.rpc}s", self.kind.plural
            out.items(self.kind, listed(server, rpc, plural, limit=limit, **given(filters)))

        self._add(group, "list", help, command, *options, limit_option)

    def add_get(self, group: click.Group, help: str) -> None:  # noqa: A002
        """Add the command `get`."""

        @reads
        def command(server: Server, out: Output, **key: str) -> None:
            out.item(self.kind, getattr(read(server, f"Get{self.rpc}", **key), self.noun))

        self._add(group, "get", help, command, click.argument(self.key))

    def add_create(self, group: click.Group, help: str, *options: Option, key: str = "") -> None:  # noqa: A002
        """Add the command `create`, which prints the resource, or its secret if it has one."""

        @changes
        def command(server: Server, out: Output, **values: Any) -> None:
            self.create(server, out, **values)

        self._add(group, "create", help, command, click.argument(key or self.key), *options, *self.fields)

    def create(self, server: Server, out: Output, **values: Any) -> None:
        """Create a resource, of values by the names of its fields."""
        how = {name: values.pop(name) for name in _HOW}
        may_have_secret = "secret" in _response(f"Create{self.rpc}").DESCRIPTOR.fields_by_name
        if may_have_secret and out.format == NAME:
            raise click.UsageError("-o name would lose the secret, which is shown once")
        answer = change(server, f"Create{self.rpc}", **{self.noun: given(values)}, **how)
        created = getattr(answer, self.noun)
        if may_have_secret and answer.secret:
            click.echo(f"{self.kind.name_of(created)}: its secret is shown once", err=True)
            out.result(answer, answer.secret, name="")
        else:
            out.item(self.kind, created)

    def add_update(self, group: click.Group, help: str) -> None:  # noqa: A002
        """Add the command `update`, which changes the fields whose options are given."""

        @if_match
        @changes
        def command(server: Server, out: Output, clear: tuple[str, ...] = (), **values: Any) -> None:
            previews = _PREVIEW if self.can_preview else ()
            how = {name: values.pop(name) for name in (self.key, "etag", *_HOW, *previews)}
            fields = given(values)
            if not fields and not clear:
                raise click.UsageError("nothing to change: name a field")
            self.update(server, out, fields, clear=clear, **how)

        emptying = [
            click.option("--clear", multiple=True, type=click.Choice(self.clearable), help="Empty this. Repeatable.")
        ]
        options = [
            *self.fields,
            *(emptying if self.clearable else ()),
            *([preview_options] if self.can_preview else ()),
        ]
        self._add(group, "update", help, command, click.argument(self.key), *options)

    def update(
        self,
        server: Server,
        out: Output,
        fields: dict[str, Any],
        *,
        clear: Sequence[str] = (),
        etag: str = "",
        preview: Path | None = None,
        preview_rows: str | None = None,
        yes: bool = False,
        **how: Any,
    ) -> None:
        """Change fields of the resource that `how` has the key of; with a file `preview`, preview it and ask first."""
        resource = {self.key: how.pop(self.key), "etag": etag, **fields}
        mask = {"paths": list(dict.fromkeys([*fields, *clear]))}
        if preview is not None:
            asked = {self.noun: resource, "update_mask": mask}
            told = ask(server, f"Preview{self.rpc}Change", preview, rows=preview_rows, **asked)
            self._update_if_wanted(server, out, told, yes=yes, resource=resource, update_mask=mask, **how)
            return
        answer = change(server, f"Update{self.rpc}", **{self.noun: resource}, update_mask=mask, **how)
        out.item(self.kind, getattr(answer, self.noun))

    def _update_if_wanted(
        self, server: Server, out: Output, told: Told, *, yes: bool, resource: dict[str, Any], **how: Any
    ) -> None:
        """Make a change that was previewed, unless the answer is no or something has changed since; print both."""
        changed = None
        if out.format in (TABLE, WIDE):
            told.show(out)
        try:
            if not how["validate_only"]:
                confirm(f"Change {self.noun} {resource[self.key]!r} on {server}: {told.summary}", yes=yes)
                seen = {**resource, "etag": told.header.before.etag}
                changed = getattr(change(server, f"Update{self.rpc}", **{self.noun: seen}, **how), self.noun)
        finally:
            if out.is_document:
                done = None if changed is None else document_of(changed)
                out.result({"preview": told.document(), self.noun: done}, "", name="")
        if not out.is_document:
            self._say_changed(out, changed, key=resource[self.key])

    def _say_changed(self, out: Output, changed: Any, *, key: str) -> None:
        if changed is None:
            out.result({}, "nothing was changed", name=key)
        else:
            out.item(self.kind, changed)

    def add_delete(self, group: click.Group, help: str) -> None:  # noqa: A002
        """Add the command `delete`, which asks first."""

        @yes_option
        @if_match
        @changes
        def command(server: Server, out: Output, *, yes: bool, **fields: Any) -> None:
            key = fields[self.key]
            if not fields["validate_only"]:
                confirm(f"Delete {self.noun.replace('_', ' ')} {key!r} on {server}", yes=yes)
            answer = change(server, f"Delete{self.rpc}", **fields)
            out.result(answer, f"{key} {done(fields, 'is', 'deleted')}", name=key)

        self._add(group, "delete", help, command, click.argument(self.key))

    def add_revoke(self, group: click.Group, help: str) -> None:  # noqa: A002
        """Add the command `revoke`, which does not ask: what has leaked must be refused at once."""

        @changes
        def command(server: Server, out: Output, **fields: Any) -> None:
            answer = change(server, f"Revoke{self.rpc}", **fields)
            key = fields[self.key]
            out.result(getattr(answer, self.noun), f"{key} {done(fields, 'is', 'revoked')}", name=key)

        self._add(group, "revoke", help, command, click.argument(self.key))

    def _add(self, group: click.Group, name: str, help: str, command: Any, *options: Option) -> None:  # noqa: A002
        for option in reversed(options):
            command = option(command)
        group.command(name, help=help)(command)


limit_option = click.option("--limit", type=click.IntRange(min=1), help="Only so many.  [default: all]")


def done(how: dict[str, Any], verb: str, participle: str) -> str:
    """Return what was done, or would have been done without --dry-run."""
    return f"would be {participle}" if how["validate_only"] else f"{verb} {participle}"


def _response(rpc: str) -> Any:
    from gatekeeper_client.v1 import admin_service_pb2  # noqa: PLC0415

    return getattr(admin_service_pb2, f"{rpc}Response")
