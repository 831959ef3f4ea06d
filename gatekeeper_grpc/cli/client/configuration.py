"""`gatekeeper export`, `diff` and `apply`: flags, segments and users as a file describes them."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gatekeeper_grpc.cli.client.access import change, change_many, listed, read
from gatekeeper_grpc.cli.client.config_file import IMPORT_FILE, MAX_USERS, OUTPUT_ONLY, ConfigFile, Import
from gatekeeper_grpc.cli.client.failures import Failure
from gatekeeper_grpc.cli.client.marked_yaml import write_yaml
from gatekeeper_grpc.cli.client.output import JSON, YAML, Output, choice_of, document_of, one_line
from gatekeeper_grpc.cli.client.prompts import confirm, yes_option
from gatekeeper_grpc.cli.client.resources import changes, reads
from gatekeeper_grpc.cli.client.server import Server, server_option
from gatekeeper_grpc.cli.client.user_ids import batches, lines
from gatekeeper_grpc.durable_file import replace_file

if TYPE_CHECKING:
    from gatekeeper_client.v1.admin_service_pb2 import ApplyConfigurationResponse, ConfigurationChange

Answer = TypeVar("Answer")

_RPC = "ApplyConfiguration"
_IMPORTED = 10_000
# While it is exported, somebody may change it; and reads are limited.
_EXPORTS, _RETRIES = 3, 100
_SHOWN_CHARS = 60
_SIGNS = {"created": "+", "updated": "~", "deleted": "-"}
_file_option = click.option(
    "-f", "--file", "path", required=True, metavar="FILE", help="YAML or JSON; - is standard input."
)
_prune_option = click.option(
    "--prune", is_flag=True, help="Also delete and remove what is not in FILE, in each section that FILE has."
)


# --- export -----------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--to", "target", type=click.Path(path_type=Path, dir_okay=False), help="A file, instead of the output.")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice([YAML, JSON]),
    default=YAML,
    show_default=True,
    help="Of what is written.",
)
@click.option("--users", "has_users", is_flag=True, help="Also stored users with their attributes: personal data.")
@server_option
def export(server: Server, *, target: Path | None, form: str, has_users: bool) -> None:
    """Print all flags and segments with their targets and members, as a file.

    `apply` takes such a file.
    """
    exported = _exported(server, target, has_users=has_users)
    text = write_yaml(exported.document) if form == YAML else json.dumps(exported.document, indent=2) + "\n"
    if target is None:
        click.echo(text, nl=False)
        return
    for path, user_ids in exported.files.items():
        replace_file(path, (f"{user_id}\n".encode() for user_id in user_ids))
    replace_file(target, [text.encode()])
    counts = ", ".join(f"{section}: {len(found)}" for section, found in exported.document.items())
    click.echo(f"{counts}, at revision {exported.revision}", err=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exported:
    """A document, the lists of users that stand in files of their own, and the revision of it all."""

    document: dict[str, Any]
    files: dict[Path, list[str]]
    revision: int


def _exported(server: Server, target: Path | None, *, has_users: bool) -> _Exported:
    """Read everything at one revision: again, if somebody changes it while it is read."""
    for _ in range(_EXPORTS):
        begun = _revision(server)
        files: dict[Path, list[str]] = {}
        flags = _patiently(lambda: list(listed(server, "ListFlags", "flags")))
        segments = _patiently(lambda: list(listed(server, "ListSegments", "segments")))
        document = {
            "flags": [_flag(server, flag, target, files) for flag in flags],
            "segments": [_segment(server, segment, target, files) for segment in segments],
        }
        if has_users:
            users = _patiently(lambda: list(listed(server, "ListUsers", "users")))
            document["users"] = [_in_order(_said(user)) for user in users]
        if _revision(server) == begun:
            return _Exported(document=document, files=files, revision=begun)
    raise Failure("somebody changed it each time while it was read", 6, hint="try again later")


def _revision(server: Server) -> int:
    return int(_patiently(lambda: read(server, "ListSegments", page_size=1)).revision)


def _flag(server: Server, flag: Any, target: Path | None, files: dict[Path, list[str]]) -> dict[str, Any]:
    found = _patiently(lambda: list(listed(server, "ListTargets", "targets", flag_key=flag.key)))
    lists = []
    for value in (True, False):
        user_ids = [one.user_id for one in found if one.value is value]
        name = f"{flag.key}.{str(value).lower()}.txt"
        # Also if there is nobody, so that --prune makes it so elsewhere.
        lists.append({"value": value, **_users(user_ids, name, target, files, in_all=len(found))})
    return {**_said(flag), "targets": lists}


def _segment(server: Server, segment: Any, target: Path | None, files: dict[Path, list[str]]) -> dict[str, Any]:
    user_ids: list[str] = []
    if segment.member_count:
        user_ids = _patiently(lambda: list(listed(server, "ListSegmentMembers", "user_ids", segment_key=segment.key)))
    name = f"{segment.key}.members.txt"
    return {**_said(segment), "members": _users(user_ids, name, target, files, in_all=len(user_ids))}


def _users(
    user_ids: list[str], name: str, target: Path | None, files: dict[Path, list[str]], *, in_all: int
) -> dict[str, Any]:
    if in_all <= MAX_USERS or not user_ids:
        return {"user_ids": user_ids}
    if target is None:
        raise click.UsageError(f"{name} would have {len(user_ids)} users: use --to FILE, next to which it is written")
    files[target.parent / f"{target.name}.{name}"] = user_ids
    return {IMPORT_FILE: f"{target.name}.{name}"}


def _said(message: Any) -> dict[str, Any]:
    """Return what people decide of a flag, segment or user; its defaults are left out, its key or id is not."""
    document = document_of(message)
    defaults = document_of(type(message)())
    left_out = {*OUTPUT_ONLY, "etag"}
    return {name: value for name, value in document.items() if name not in left_out and value != defaults.get(name)}


def _in_order(user: dict[str, Any]) -> dict[str, Any]:
    """Return a user with the names of attributes in order: a message has them in any."""
    attributes = json.loads(json.dumps(user.get("attributes", {}), sort_keys=True))
    return {**user, "attributes": attributes}


def _patiently(call: Callable[[], Answer]) -> Answer:
    """Make a call that only reads; wait where the server says that it is called too often."""
    for _ in range(_RETRIES):
        try:
            return call()
        except Failure as failure:
            if not failure.retry_s:
                raise
            time.sleep(failure.retry_s)
    return call()


# --- diff and apply ---------------------------------------------------------------------------------------------------


@click.command()
@_file_option
@_prune_option
@click.option("--exit-code", "tells", is_flag=True, help="Exit with 1 if there is a difference.")
@reads
def diff(server: Server, out: Output, *, path: str, prune: bool, tells: bool) -> None:
    """Print what `apply` would change. Needs the role editor, as `apply` does."""
    wanted = _Wanted.of(server, path, prune=prune)
    answer = wanted.apply(validate_only=True)
    out.result(answer, "\n".join(wanted.lines(answer)) or "no difference", name=_names(answer))
    if tells and (answer.changes or wanted.file.imports):
        raise click.exceptions.Exit(1)


@click.command()
@_file_option
@_prune_option
@yes_option
@changes
def apply(server: Server, out: Output, *, path: str, prune: bool, yes: bool, **how: Any) -> None:
    """Make flags, segments and users what FILE says, all of it or nothing.

    What FILE does not name stays as it is.
    """
    wanted = _Wanted.of(server, path, prune=prune)
    if prune and not yes and not how["validate_only"]:
        _confirm(server, wanted)
    answer = wanted.apply(**how)
    said = [*wanted.lines(answer), _summary(answer, is_dry=how["validate_only"])]
    out.result(answer, "\n".join(said), name=_names(answer))
    if not how["validate_only"]:
        for one in wanted.file.imports:
            _import(server, one, how["change_reason"])


def _confirm(server: Server, wanted: "_Wanted") -> None:
    """Ask, if anything would be deleted or removed."""
    tried = wanted.apply(validate_only=True)
    if any(choice_of("change_type")(one) == "deleted" or one.removed_count for one in tried.changes):
        for line in wanted.lines(tried):
            click.echo(line, err=True)
        confirm(f"Make these changes on {server}", yes=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A file, and what the server has of it."""

    server: Server
    file: ConfigFile
    present: Mapping[tuple[str, str], Any]
    """Flags and segments, and users that may be pruned, by "flag", "segment" or "user" and their key or id."""

    @classmethod
    def of(cls, server: Server, path: str, *, prune: bool) -> "_Wanted":
        """Read a file and what the server has, and name in the request what was seen."""
        file = ConfigFile.read(path)
        present: dict[tuple[str, str], Any] = {("flag", one.key): one for one in listed(server, "ListFlags", "flags")}
        present |= {("segment", one.key): one for one in listed(server, "ListSegments", "segments")}
        for kind, resources in (("flag", file.request.flags), ("segment", file.request.segments)):
            for one in resources:
                if not one.etag and (kind, one.key) in present:
                    one.etag = present[kind, one.key].etag
        if prune:
            if file.has("users"):
                present |= {("user", one.user_id): one for one in listed(server, "ListUsers", "users")}
            _prune(file, present)
        return cls(server=server, file=file, present=present)

    def apply(self, **how: Any) -> "ApplyConfigurationResponse":
        """Send the request.

        Raises:
            Failure: As `change`; names the line that it is about.
        """
        names = [described.name for described in self.file.request.DESCRIPTOR.fields if described.is_repeated]
        try:
            answer = change(self.server, _RPC, **{name: getattr(self.file.request, name) for name in names}, **how)
        except Failure as failure:
            raise self.file.located(failure) from None
        return answer  # type: ignore[no-any-return]

    def lines(self, answer: "ApplyConfigurationResponse") -> Iterator[str]:
        """Yield what changes, for people."""
        wanted: dict[tuple[str, str], Any] = {("flag", one.key): one for one in self.file.request.flags}
        wanted |= {("segment", one.key): one for one in self.file.request.segments}
        users = {one.user_id: document_of(one.attributes) for one in self.file.request.users}
        for one in answer.changes:
            kind = choice_of("resource_type")(one)
            yield _line(one, kind)
            for name in one.fields:
                if kind == "user":
                    yield f"    {name}: {_attribute(name.removeprefix('attributes.'), users[one.key])}"
                    continue
                yield f"    {name}: {_change_of(name, self.present.get((kind, one.key)), wanted[kind, one.key])}"
        for file in self.file.imports:
            yield f"? users of {file.key}: {file.path} is imported afterwards, and not compared"


def _prune(file: ConfigFile, present: Mapping[tuple[str, str], Any]) -> None:
    """Have the request delete and remove what the file does not name, in the sections that it has."""
    named_by_kind = {
        "flag": {one.key for one in file.request.flags},
        "segment": {one.key for one in file.request.segments},
        "user": {one.user_id for one in file.request.users},
    }
    for kind, named in named_by_kind.items():
        if file.has(f"{kind}s"):
            deletions = getattr(file.request, f"{kind}_deletions")
            for of_kind, key in sorted(present):
                if of_kind == kind and key not in named:
                    deletions.add(key=key, etag=present[kind, key].etag)
    for targets in file.request.targets:
        targets.remove_others = True
    for members in file.request.members:
        members.remove_others = True


def _line(one: "ConfigurationChange", kind: str) -> str:
    sign = _SIGNS[choice_of("change_type")(one)]
    counts = [
        f"{count} {what}"
        for what, count in (("added", one.added_count), ("moved", one.moved_count), ("removed", one.removed_count))
        if count
    ]
    about = f"{kind} of {one.key}: {', '.join(counts)}" if counts else f"{kind} {one.key}"
    return f"{sign} {about}"


def _change_of(name: str, before: Any, after: Any) -> str:
    new = _shown(name, after)
    return new if before is None else f"{_shown(name, before)} -> {new}"


def _attribute(name: str, attributes: Mapping[str, Any]) -> str:
    """Return what an attribute of a user will be: what it was is not read."""
    return _short(attributes[name]) if name in attributes else "removed"


def _shown(name: str, message: Any) -> str:
    return _short(document_of(message)[name])


def _short(value: Any) -> str:
    text = one_line(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


def _summary(answer: "ApplyConfigurationResponse", *, is_dry: bool) -> str:
    if not answer.changes:
        return "nothing to change"
    count = f"{len(answer.changes)} change{'s' if len(answer.changes) > 1 else ''}"
    return f"{count} would be made" if is_dry else f"{count} made, at revision {answer.revision}"


def _names(answer: "ApplyConfigurationResponse") -> str:
    return " ".join(dict.fromkeys(one.key for one in answer.changes))


def _import(server: Server, one: Import, change_reason: str) -> None:
    """Import a list of users from its own file."""
    try:
        with one.path.open(encoding="utf-8") as source:
            user_ids: Sequence[str] = lines(source)
    except OSError as exc:
        raise Failure(f"{one.path} cannot be read: {exc.strerror}; the rest is applied", 2) from None
    requests: Iterable[dict[str, Any]] = (
        {**one.fields, "change_reason": change_reason, "user_ids": batch} for batch in batches(user_ids, _IMPORTED)
    )
    answer = change_many(server, one.rpc, list(requests))
    click.echo(f"{one.path}: {answer.added_count} users added to {one.key}", err=True)
