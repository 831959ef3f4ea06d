"""Files of flags, segments and users: read into a request that knows on which line each of its fields stands."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from gatekeeper_grpc.cli.client.failures import Failure
from gatekeeper_grpc.cli.client.marked_yaml import Node, fault, read_marked

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from gatekeeper_client.v1.admin_service_pb2 import ApplyConfigurationRequest

MAX_USERS = 10_000
"""How many users of a flag or segment stand in the file itself."""
MAX_BYTES = 3 << 20
"""How long a request may be."""
IMPORT_FILE = "import_file"
SECTIONS = ("flags", "segments", "users")
# What the server says of a resource, which is no part of what it should be.
OUTPUT_ONLY = ("create_time", "update_time", "revision", "member_count")
# The largest integers that doubles hold exactly.
_LARGEST_EXACT = 2**53
# What names a resource.
_IDENTITIES = ("key", "user_id")
_STEP = re.compile(r"([a-z_]+)|\[(\d+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """A list of users in a file of its own, which is imported after everything else."""

    rpc: str
    path: Path
    key: str
    fields: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class ConfigFile:
    """A file, the request that it makes, and where in the file the parts of the request stand."""

    name: str
    root: Node
    request: "ApplyConfigurationRequest"
    imports: list[Import] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    """Where targets and members of the request stand in the file, such as "targets[3]": "flags[1].targets[0]"."""

    @classmethod
    def read(cls, path: str) -> "ConfigFile":
        """Read a file; - is standard input.

        Raises:
            Failure: It cannot be read, or has something that cannot stand there; names the line.
        """
        from gatekeeper_client.v1 import admin_service_pb2 as pb  # noqa: PLC0415

        try:
            with click.open_file(path, encoding="utf-8-sig") as source:
                text = source.read()
        except (OSError, ValueError) as exc:
            raise Failure(f"{path} cannot be read: {getattr(exc, 'strerror', '') or 'it must be UTF-8'}", 2) from None
        file = cls(name=path, root=read_marked(text, path), request=pb.ApplyConfigurationRequest())
        file._fill()
        if file.request.ByteSize() > MAX_BYTES:
            raise Failure(
                f"{path} makes a request of {file.request.ByteSize()} bytes, and {MAX_BYTES} are possible",
                2,
                hint=f"divide it into several files, or name long lists of users as {IMPORT_FILE}",
            )
        return file

    def has(self, section: str) -> bool:
        """Return whether the file says which flags, which segments, or which users there should be."""
        return isinstance(self.root.value, dict) and section in self.root.value

    def located(self, failure: Failure) -> Failure:
        """Return the failure of the request with the line of what it is about, if that is known."""
        if not failure.field:
            return failure
        prefix = next((known for known in self.paths if _begins(failure.field, known)), "")
        path = self.paths.get(prefix, prefix) + failure.field.removeprefix(prefix)
        line = self._line_of(path)
        if line is None:
            return failure
        message = str(failure).replace(failure.field, path)
        said = message if path in message else f"{path}: {message}"
        return failure.saying(f"{self.name}:{line}: {said}")

    def _line_of(self, path: str) -> int | None:
        """Return the line of the deepest part of a path that the file has."""
        node, line = self.root, None
        for name, position in _STEP.findall(path):
            value = node.value
            if name and isinstance(value, dict) and name in value:
                node = value[name]
            elif position and isinstance(value, list) and int(position) < len(value):
                node = value[int(position)]
            else:
                break
            line = node.line
        return line

    # --- What it says ---

    def _fill(self) -> None:
        sections = self._mapping(self.root, "the file")
        for name, node in sections.items():
            if name not in SECTIONS:
                raise self._fault(node, f"{name!r} is none of {', '.join(SECTIONS)}")
        for position, node in enumerate(self._list(sections.get("flags"), "flags")):
            self._add_flag(f"flags[{position}]", node)
        for position, node in enumerate(self._list(sections.get("segments"), "segments")):
            self._add_segment(f"segments[{position}]", node)
        for position, node in enumerate(self._list(sections.get("users"), "users")):
            path = f"users[{position}]"
            self._read_fields(self.request.users.add(), self._mapping(node, path), path, node)

    def _add_flag(self, path: str, node: Node) -> None:
        fields = dict(self._mapping(node, path))
        lists = self._list(fields.pop("targets", None), f"{path}.targets")
        flag = self.request.flags.add()
        self._read_fields(flag, fields, path, node)
        for position, users in enumerate(lists):
            path_of_item = f"{path}.targets[{position}]"
            targets, file = self._users(self.request.targets, users, path_of_item)
            targets.flag_key = flag.key
            if file:
                served = {"variant": targets.variant} if targets.HasField("variant") else {"value": targets.value}
                self.imports.append(
                    Import(rpc="ImportTargets", path=file, key=flag.key, fields={"flag_key": flag.key, **served})
                )
                self.request.targets.pop()
            else:
                self.paths[f"targets[{len(self.request.targets) - 1}]"] = path_of_item

    def _add_segment(self, path: str, node: Node) -> None:
        fields = dict(self._mapping(node, path))
        users = fields.pop("members", None)
        segment = self.request.segments.add()
        self._read_fields(segment, fields, path, node)
        if users is None:
            return
        members, file = self._users(self.request.members, users, f"{path}.members")
        members.segment_key = segment.key
        if file:
            self.imports.append(
                Import(rpc="AddSegmentMembers", path=file, key=segment.key, fields={"segment_key": segment.key})
            )
            self.request.members.pop()
        else:
            self.paths[f"members[{len(self.request.members) - 1}]"] = f"{path}.members"

    def _users(self, lists: Any, node: Node, path: str) -> tuple[Any, Path | None]:
        """Add a list of users to the request; also return the file that has it instead."""
        fields = dict(self._mapping(node, path))
        for name in ("flag_key", "segment_key", "remove_others"):
            if name in fields:
                raise self._fault(fields[name], f"{path}.{name} cannot stand here")
        file = fields.pop(IMPORT_FILE, None)
        users = lists.add()
        self._read_fields(users, fields, path, node)
        if len(users.user_ids) > MAX_USERS:
            raise self._fault(
                fields["user_ids"],
                f"{path}.user_ids has more than {MAX_USERS} users: put them into a file, a line each, and name it as"
                f" {IMPORT_FILE}; or add them by `targets import` or `members import`",
            )
        if file is None:
            return users, None
        if users.user_ids or not isinstance(file.value, str):
            raise self._fault(file, f"{path}.{IMPORT_FILE} must be the name of a file, instead of user_ids")
        return users, Path(self.name).parent / file.value

    def _read_fields(self, message: "Message", fields: Mapping[str, Node], path: str, node: Node) -> None:
        known = message.DESCRIPTOR.fields_by_name
        for name, value in fields.items():
            if name in OUTPUT_ONLY and name in known:
                continue
            if name not in known:
                names = sorted({*known} - {*OUTPUT_ONLY})
                raise self._fault(value, f"{path}.{name}: there is no such field; there are {', '.join(names)}")
            if value.value is not None:
                self._read_field(message, known[name], value, f"{path}.{name}")
        for name in _IDENTITIES:
            if name in known and not getattr(message, name):
                raise self._fault(node, f"{path}.{name} is missing")

    def _read_field(self, message: "Message", described: Any, node: Node, path: str) -> None:
        name = described.name
        if described.is_repeated:
            into = getattr(message, name)
            for position, item in enumerate(self._list(node, path)):
                path_of_item = f"{path}[{position}]"
                if described.message_type is None:
                    into.append(self._scalar(described, item, path_of_item))
                else:
                    self._read_message(into.add(), item, path_of_item)
        elif described.message_type is not None:
            self._read_message(getattr(message, name), node, path)
        else:
            setattr(message, name, self._scalar(described, node, path))

    def _read_message(self, message: "Message", node: Node, path: str) -> None:
        kind = message.DESCRIPTOR.full_name
        if kind == "google.protobuf.Struct":
            self._mapping(node, path)
        if kind in ("google.protobuf.Struct", "google.protobuf.Value"):
            self._check_exact(node, path)
            from google.protobuf.json_format import ParseDict, ParseError  # noqa: PLC0415

            try:
                ParseDict(node.plain(), message)
            except ParseError as exc:
                raise self._fault(node, f"{path} is no JSON value: {exc}") from None
        else:
            self._read_fields(message, self._mapping(node, path), path, node)

    def _check_exact(self, node: Node, path: str) -> None:
        value = node.value
        is_inexact = isinstance(value, int) and abs(value) > _LARGEST_EXACT
        if is_inexact or (isinstance(value, float) and not math.isfinite(value)):
            raise self._fault(node, f"{path} is a number that doubles do not hold: put it in quotes")
        for name, item in _items(node):
            self._check_exact(item, f"{path}{name}")

    def _scalar(self, described: Any, node: Node, path: str) -> Any:
        value, kinds = node.value, _kinds()
        if described.enum_type is not None:
            values = described.enum_type.values_by_name
            if value not in values:
                known = [name for name in values if not name.endswith("_UNSPECIFIED")]
                raise self._fault(node, f"{path} must be one of {', '.join(known)}")
            return values[str(value)].number
        kind, words = kinds[described.cpp_type]
        if type(value) is not kind:
            raise self._fault(node, f"{path} {words}")
        if kind is int and not -(2**31) <= int(str(value)) < 2**31:
            raise self._fault(node, f"{path} is out of range")
        return value

    # --- Shapes ---

    def _mapping(self, node: Node, path: str) -> dict[str, Node]:
        if isinstance(node.value, dict):
            return node.value
        raise self._fault(node, f"{path} must be a mapping of names to values")

    def _list(self, node: Node | None, path: str) -> list[Node]:
        if node is None or node.value is None:
            return []
        if isinstance(node.value, list):
            return node.value
        raise self._fault(node, f"{path} must be a list")

    def _fault(self, node: Node, what: str) -> Failure:
        return fault(self.name, node.line, what)


def _items(node: Node) -> Iterator[tuple[str, Node]]:
    if isinstance(node.value, dict):
        yield from ((f".{name}", item) for name, item in node.value.items())
    elif isinstance(node.value, list):
        yield from ((f"[{position}]", item) for position, item in enumerate(node.value))


def _kinds() -> Mapping[int, tuple[type, str]]:
    from google.protobuf.descriptor import FieldDescriptor  # noqa: PLC0415

    text = (str, "must be text: put it in quotes")
    whole = (int, "must be a whole number")
    return MappingProxyType(
        {
            FieldDescriptor.CPPTYPE_STRING: text,
            FieldDescriptor.CPPTYPE_BOOL: (bool, "must be true or false"),
            FieldDescriptor.CPPTYPE_INT32: whole,
        }
    )


def _begins(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))
