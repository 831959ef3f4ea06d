"""Files of `gatekeeper bulk-evaluate`: users to read, results to write, and how far a run has come."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import click

from gatekeeper_grpc.cli.client.values import exact_json, value_of
from gatekeeper_grpc.durable_file import replace_file

JSONL, CSV = "jsonl", "csv"
_USER_ID = "user_id"

User = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come: what is in its results, and at which revision. Kept next to the results."""

    revision: int
    users: int
    """How many have a result."""
    size: int
    """Length of the results, in bytes."""
    request: Sequence[str]
    """What makes two runs the same: the file of users, the flags, the format."""

    @staticmethod
    def file_of(results: Path) -> Path:
        """Return where it is kept."""
        return results.with_name(f"{results.name}.progress")

    @classmethod
    def read(cls, results: Path) -> "Progress | None":
        """Return that of an interrupted run; None if there is none.

        Raises:
            click.UsageError: The file is damaged.
        """
        file = cls.file_of(results)
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError):
            raise click.UsageError(f"{file} is damaged: remove it and {results.name}, to begin again") from None

    def keep(self, results: Path) -> None:
        """Keep it, in place of an earlier one."""
        replace_file(self.file_of(results), [json.dumps(asdict(self)).encode()])


def form_of(file: Path) -> str:
    """Return how a file is to be read or written, by the end of its name."""
    return CSV if file.suffix.lower() == ".csv" else JSONL


def users_in(file: TextIO, form: str, *, skipped: int = 0) -> Iterator[User]:
    """Yield the users of a file, but for so many.

    Args:
        file: The file.
        form: JSON Lines of objects with `user_id` and `attributes`, or CSV with a header: user_id, and a column for
            each attribute; a value that is JSON is that, any other is text, and an empty one is none.
        skipped: How many are left out, at the beginning.

    Raises:
        click.UsageError: A line is no user.
    """
    lines: Iterable[Any] = csv.DictReader(file) if form == CSV else file
    read: Callable[[Any], User] = _of_row if form == CSV else _of_line
    first = 2 if form == CSV else 1
    try:
        for number, line in enumerate(islice(lines, skipped, None), start=first + skipped):
            yield _checked(read, line, f"{file.name}, line {number}")
    except (UnicodeDecodeError, csv.Error) as exc:
        raise click.UsageError(f"{file.name}: {exc}") from None


def writer(file: TextIO, form: str, flag_keys: Sequence[str], *, with_header: bool) -> Callable[[Iterable[Any]], None]:
    """Return what writes results: objects in lines, or rows with a column for each flag."""
    if form == JSONL:
        return lambda results: file.writelines(f"{_line_of(result, flag_keys)}\n" for result in results)
    rows = csv.writer(file, lineterminator="\n")
    if with_header:
        file.write(header_of(flag_keys))
    return lambda results: rows.writerows(_row_of(result, flag_keys) for result in results)


def header_of(flag_keys: Sequence[str]) -> str:
    """Return the first line of results as CSV; keys of flags need no quotes."""
    return f"{','.join([_USER_ID, *flag_keys, 'error'])}\n"


def _checked(read: Callable[[Any], User], line: Any, where: str) -> User:
    try:
        return read(line)
    except (ArithmeticError, ValueError, TypeError, AttributeError, KeyError):
        raise click.UsageError(f"{where}: must have a user_id, and attributes if there are any") from None


def _of_line(line: str) -> User:
    found = exact_json(line)
    user_id, attributes = found[_USER_ID], found.get("attributes") or {}
    if not isinstance(user_id, str) or not isinstance(attributes, dict) or found.keys() - {_USER_ID, "attributes"}:
        raise ValueError(line)
    return user_id, attributes


def _of_row(row: dict[str, str]) -> User:
    return row.pop(_USER_ID), {name: value_of(name, text) for name, text in row.items() if text}


def _line_of(result: Any, flag_keys: Sequence[str]) -> str:
    if result.HasField("error"):
        said = {"error": {"reason": result.error.reason, "message": result.error.message}}
        return json.dumps({_USER_ID: result.user_id, **said}, ensure_ascii=False)
    flags = dict(zip(flag_keys, result.evaluation.values, strict=True))
    return json.dumps({_USER_ID: result.user_id, "flags": flags}, ensure_ascii=False)


def _row_of(result: Any, flag_keys: Sequence[str]) -> list[str]:
    if result.HasField("error"):
        return [result.user_id, *[""] * len(flag_keys), result.error.message]
    return [result.user_id, *(str(value).lower() for value in result.evaluation.values), ""]
