"""The API reference: a page for each proto file, from the descriptor set and the comments that are in it."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

DESCRIPTORS = Path(__file__).parents[1] / "generated" / "gatekeeper.binpb"
_PACKAGE = "gatekeeper.v1"
# A comment is found by the numbers of the fields of descriptors that lead to what it is about.
_PACKAGE_LINE, _MESSAGES, _ENUMS, _SERVICES = 2, 4, 5, 6
_FIELDS_METHODS_VALUES, _NESTED_MESSAGES, _NESTED_ENUMS, _ONEOFS = 2, 3, 4, 8
_LIST = re.compile(r"(?<!\n)\n(?=(?:- |1\. ))")


def api_reference() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page, `index` first."""
    found = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    pages = {Path(file.name).stem: _Page(file) for file in found if file.package == _PACKAGE}
    homes = {each: name for name, page in pages.items() for each in page.names}
    rows = [f"| [{name}]({name}.md) | {page.summary} |" for name, page in sorted(pages.items())]
    yield (
        "index",
        "\n".join([f"# API reference\n\nPackage `{_PACKAGE}`.\n", "| file | what is in it |", "|---|---|", *rows]),
    )
    for name, page in pages.items():
        yield name, page.text(homes)


class _Page:
    """The page of a proto file."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(each.path): re.sub(r"^ ", "", each.leading_comments.strip("\n"), flags=re.MULTILINE)
            for each in file.source_code_info.location
        }
        self._homes: dict[str, str] = {}
        self._messages = [*_nested((_MESSAGES,), "", file.message_type)]
        self._enums: list[tuple[tuple[int, ...], str, EnumDescriptorProto]] = []
        self._enums += [((_ENUMS, index), each.name, each) for index, each in enumerate(file.enum_type)]
        for path, name, message in self._messages:
            inner = enumerate(message.enum_type)
            self._enums += [((*path, _NESTED_ENUMS, index), f"{name}.{each.name}", each) for index, each in inner]
        self.names = [name for _, name, _ in [*self._messages, *self._enums]]
        self.summary = _cell(self._comments[(_PACKAGE_LINE,)])

    def text(self, homes: dict[str, str]) -> str:
        """Return the page; `homes` has the page of each message and enum."""
        self._homes = homes
        lines = [f"# {Path(self._file.name).stem}", self.summary]
        for index, service in enumerate(self._file.service):
            lines += [f"## {service.name}", self._about(_SERVICES, index)]
            for at, method in enumerate(service.method):
                lines += [f"### {method.name}", self._signature(method)]
                lines += [self._about(_SERVICES, index, _FIELDS_METHODS_VALUES, at)]
        for path, name, message in self._messages:
            lines += [f"## {name}", self._about(*path), self._fields(path, message)]
        for path, name, enum in self._enums:
            lines += [f"## {name}", self._about(*path), self._values(path, enum)]
        return "\n\n".join(lines) + "\n"

    def _about(self, *path: int) -> str:
        return _LIST.sub("\n\n", self._comments.get(path, ""))

    def _fields(self, path: tuple[int, ...], message: DescriptorProto) -> str:
        maps = {each.name: each.field for each in message.nested_type if each.options.map_entry}
        rows = ["| field | type | |", "|---|---|---|"]
        told: set[int] = set()  # The choices whose comments are in the table.
        for at, field in enumerate(message.field):
            if self._is_choice(field) and field.oneof_index not in told:
                told.add(field.oneof_index)
                choice = message.oneof_decl[field.oneof_index].name
                rows.append(f"| `{choice}` | one of | {_cell(self._about(*path, _ONEOFS, field.oneof_index))} |")
            pair = maps.get(field.type_name.rpartition(".")[2])
            kind = f"map of {self._type(pair[0])} to {self._type(pair[1])}" if pair else self._kind(field)
            about = _cell(self._about(*path, _FIELDS_METHODS_VALUES, at))
            rows.append(f"| `{field.name}` = {field.number} | {kind} | {about} |")
        return "\n".join(rows) if message.field else ""

    def _kind(self, field: FieldDescriptorProto) -> str:
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"repeated {self._type(field)}"
        if field.proto3_optional:
            return f"optional {self._type(field)}"
        return f"or {self._type(field)}" if self._is_choice(field) else self._type(field)

    def _is_choice(self, field: FieldDescriptorProto) -> bool:
        return field.HasField("oneof_index") and not field.proto3_optional

    def _type(self, field: FieldDescriptorProto) -> str:
        if not field.type_name:
            return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
        return self._link(field.type_name)

    def _link(self, type_name: str) -> str:
        name = type_name.removeprefix(f".{_PACKAGE}.")
        if name not in self._homes:
            return f"`{name.lstrip('.')}`"
        return f"[{name}]({self._homes[name]}.md#{name.lower().replace('.', '')})"

    def _signature(self, method: MethodDescriptorProto) -> str:
        asked = "stream of " * method.client_streaming + self._link(method.input_type)
        return f"{asked} → {'stream of ' * method.server_streaming}{self._link(method.output_type)}"

    def _values(self, path: tuple[int, ...], enum: EnumDescriptorProto) -> str:
        rows = [
            f"| `{value.name}` = {value.number} | {_cell(self._about(*path, _FIELDS_METHODS_VALUES, at))} |"
            for at, value in enumerate(enum.value)
        ]
        return "\n".join(["| value | |", "|---|---|", *rows])


def _nested(
    path: tuple[int, ...], outer: str, messages: Iterable[DescriptorProto]
) -> Iterator[tuple[tuple[int, ...], str, DescriptorProto]]:
    """Yield each message with its path and name, those within it after it; maps are none."""
    for index, message in enumerate(messages):
        if not message.options.map_entry:
            yield (*path, index), f"{outer}{message.name}", message
            yield from _nested((*path, index, _NESTED_MESSAGES), f"{outer}{message.name}.", message.nested_type)


def _cell(text: str) -> str:
    """Return a comment as the cell of a table."""
    paragraphs = re.sub(r"\n(?=- )", "\n\n", text).replace("|", "\\|").split("\n\n")
    return "<br>".join(" ".join(paragraph.split()) for paragraph in paragraphs)
