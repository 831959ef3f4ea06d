"""The users of a file as the messages of a stream, and how far they have come."""

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO, cast

import click

from gatekeeper_grpc.cli.client.bulk_rows import JSONL, User, form_of, users_in

# Of a message: a context has at most 16 KiB, and a message 4 MiB.
_MESSAGE_USERS, _MESSAGE_BYTES = 1_000, 1 << 20
_LINE_CHARS = 60


class BulkUsers:
    """The users of a source, each of which is taken once.

    Args:
        source: Lines of text.
        form: How they are to be read, see `users_in`.
        skipped: How many users are left out.
    """

    def __init__(self, source: TextIO, form: str, *, skipped: int = 0) -> None:
        self.fault: click.UsageError | None = None
        """What is wrong with the source. It ends the messages: raised in the thread of grpc, it would be a log line."""
        self.has_begun = False
        """Whether users were taken."""
        self._source = source
        users = users_in(source, form, skipped=skipped)
        # Those that are left out are read before there is a stream: the server ends a silent one.
        self._users = chain([*islice(users, 1)] if skipped else [], users)
        self._skipped = self._sent = skipped
        self._began = time.monotonic()

    def messages(self) -> Iterator[list[Any]]:
        """Yield the contexts of each message."""
        self.has_begun = True
        try:
            while contexts := self._contexts():
                yield contexts
                self._sent += len(contexts)
        except click.UsageError as exc:
            self.fault = exc

    def show(self, done: int) -> None:
        """Say on a terminal how many users are evaluated, how fast, and how long it may still take."""
        if not sys.stderr.isatty():
            return
        rate = (done - self._skipped) / (time.monotonic() - self._began)
        left = self._total() - done
        text = f"{done:,} users, {rate:,.0f}/s{f', {left / rate:.0f} s left' if rate and left > 0 else ''}"
        click.echo("\r" + text.ljust(_LINE_CHARS), err=True, nl=False)

    def hide(self) -> None:
        """Take from the terminal what `show` said."""
        if sys.stderr.isatty():
            click.echo("\r" + " " * _LINE_CHARS + "\r", err=True, nl=False)

    def _total(self) -> float:
        """Estimate how many users there are; 0 if that is not known."""
        size = os.fstat(self._source.fileno())
        read_bytes = self._source.buffer.tell() if stat.S_ISREG(size.st_mode) else 0
        return self._sent * size.st_size / read_bytes if read_bytes else 0.0

    def _contexts(self) -> list[Any]:
        contexts: list[Any] = []
        size = 0
        while len(contexts) < _MESSAGE_USERS and size < _MESSAGE_BYTES:
            user = next(self._users, None)
            if user is None:
                break
            contexts.append(_context(user))
            size += contexts[-1].ByteSize()
        return contexts


@contextmanager
def users_of(file: Path, *, skipped: int = 0) -> Iterator[BulkUsers]:
    """Open the users of a file, whose name says how it is to be read; "-" is standard input, with JSON Lines."""
    if str(file) == "-":
        with click.open_file("-", encoding="utf-8") as stdin:
            yield BulkUsers(cast("TextIO", stdin), JSONL, skipped=skipped)
        return
    with file.open(encoding="utf-8-sig", newline="") as source:
        yield BulkUsers(source, form_of(file), skipped=skipped)


def _context(user: User) -> Any:
    from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext  # noqa: PLC0415

    user_id, attributes = user
    context = EvaluationContext(user_id=user_id)
    context.attributes.update(attributes)
    return context
