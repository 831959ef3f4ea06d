"""What client commands print: tables for people, names for shells, JSON and YAML with the field names of the protos."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message

Function = TypeVar("Function", bound=Callable[..., Any])

TABLE, WIDE, NAME, JSON, YAML = "table", "wide", "name", "json", "yaml"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table of messages, and a line of what is printed of one message."""

    title: str
    say: Callable[[Any], str]
    is_wide: bool = False
    """Not in tables that have to fit a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of message, and how it is printed."""

    plural: str
    """The field of the responses that list it."""
    name_of: Callable[[Any], str]
    columns: Sequence[Column]


@dataclass(frozen=True, slots=True)
class Output:
    """Prints in the format that the option --output has chosen."""

    format: str = TABLE

    @property
    def is_document(self) -> bool:
        """Whether programs read it: JSON or YAML."""
        return self.format in (JSON, YAML)

    def items(self, kind: Kind, messages: "Iterable[Message | Mapping[str, Any] | str]") -> None:
        """Print a list."""
        if self.is_document:
            self._print({kind.plural: [document_of(message) for message in messages]})
        elif self.format == NAME:
            for message in messages:
                click.echo(one_line(kind.name_of(message)))
        else:
            columns = [column for column in kind.columns if self.format == WIDE or not column.is_wide]
            rows = [[column.say(message) for column in columns] for message in messages]
            self.table([column.title for column in columns], rows)

    def item(self, kind: Kind, message: "Message | Mapping[str, Any]") -> None:
        """Print one message: all that it has, a line for each column."""
        if self.is_document:
            self._print(document_of(message))
        elif self.format == NAME:
            click.echo(one_line(kind.name_of(message)))
        else:
            texts = [(column.title.lower().replace("_", " "), column.say(message)) for column in kind.columns]
            for title, text in texts:
                if text:
                    click.echo(f"{title + ':':<12} {one_line(text)}")

    def result(self, document: "Message | Mapping[str, Any]", text: str, *, name: str) -> None:
        """Print what a command has done.

        Args:
            document: For programs.
            text: For people.
            name: For shells: what the command was about.
        """
        if self.is_document:
            self._print(document_of(document))
        else:
            click.echo(one_line(name) if self.format == NAME else text)

    def event(self, message: "Message", text: str, *, name: str) -> None:
        """Print a message of a stream at once: a line, or with YAML a document."""
        if self.format == JSON:
            click.echo(json.dumps(document_of(message), ensure_ascii=False))
        elif self.format == YAML:
            click.echo("---")
            self._print(document_of(message))
        else:
            click.echo(one_line(name if self.format == NAME else text))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows in columns. On a terminal, a line that is too long ends with "…", but for wide tables."""
        lines = [header, *([one_line(cell) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        limit = _limit(self.format)
        whole = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        for text in whole:
            click.echo(_cut(text, limit))
        if limit is not None and max(map(len, whole)) > limit:
            click.echo("-o wide shows what is cut", err=True)

    def _print(self, document: Mapping[str, Any]) -> None:
        if self.format == YAML:
            import yaml  # noqa: PLC0415 - no other format needs it

            click.echo(yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True), nl=False)
        else:
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def output_option(function: Function) -> Function:
    """Give a command the option --output; the command gets `out`."""
    return click.option(
        "-o",
        "--output",
        "out",
        type=click.Choice([TABLE, WIDE, NAME, JSON, YAML]),
        default=TABLE,
        show_default=True,
        callback=lambda _context, _parameter, value: Output(value),
        help="JSON and YAML have the field names of the protos.",
    )(function)


def one_line(text: str) -> str:
    """Return a text without line ends and without characters that a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text).strip()


def document_of(message: "Message | Mapping[str, Any] | str") -> Any:
    """Return the JSON form of a message, with fields that have their default value; 64-bit integers as text."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415
    from google.protobuf.message import Message  # noqa: PLC0415

    if not isinstance(message, Message):  # A Struct is a Mapping, too.
        return message
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def yes_of(field: str) -> Callable[[Any], str]:
    """Return what says yes or no for a field."""
    return lambda message: "yes" if getattr(message, field) else "no"


def text_of(field: str) -> Callable[[Any], str]:
    """Return what says the value of a field: nothing for its default value."""
    return lambda message: str(getattr(message, field) or "")


def texts_of(field: str) -> Callable[[Any], str]:
    """Return what says the values of a repeated field."""
    return lambda message: ",".join(getattr(message, field))


def time_of(field: str) -> Callable[[Any], str]:
    """Return what says a time, to the second; nothing if it is absent."""
    return lambda message: (
        getattr(message, field).ToDatetime().strftime("%Y-%m-%dT%H:%M:%SZ") if message.HasField(field) else ""
    )


def choice_of(field: str) -> Callable[[Any], str]:
    """Return what says the value of an enum, in lower case and without the prefix of its name."""

    def say(message: Any) -> str:
        enum, number = message.DESCRIPTOR.fields_by_name[field].enum_type, getattr(message, field)
        value = enum.values_by_number.get(number)
        prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return value.name.removeprefix(prefix).lower() if value else str(number)

    return say


def _limit(output_format: str) -> int | None:
    return shutil.get_terminal_size().columns if output_format == TABLE and sys.stdout.isatty() else None


def _cut(line: str, limit: int | None) -> str:
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"
