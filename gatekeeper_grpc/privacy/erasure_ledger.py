"""The erasure ledger: a file outside the database that records erasures, to apply them again after a restore.

A line is a JSON object with `time`, when the person was erased; `mac`, the HMAC-SHA256 of the user id under a key of
the ledger's ring; and `kid`, the name of that key. Without the key the ledger reveals no id. With the key an id can be
recognised, but ids cannot be listed.
"""

import errno
import hmac
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from gatekeeper_grpc.auth.keys import KeyRing, SigningKey
from gatekeeper_grpc.domain.errors import Unavailable

_log = structlog.get_logger(__name__)

DEFAULT_NAME = "erasures"
UNNAMED: Final = "unnamed"
"""The name of a key that is given without one, and of that of lines without `kid`, which earlier releases wrote."""
# Stands for a mac in the line that says how old the oldest backup is: then older erasures can be forgotten.
_OLDEST_BACKUP: Final = "oldest backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A line: who was erased when; `replaces` is the name of the same person under an older key."""

    time: datetime
    mac: str
    kid: str = UNNAMED
    replaces: str = ""

    def text(self) -> str:
        replaces = {"replaces": self.replaces} if self.replaces else {}
        return json.dumps({"time": self.time.isoformat(), "mac": self.mac, "kid": self.kid, **replaces})


class ErasureLedger:
    """An append-only file. Several instances may share one: each line is appended in one write.

    The newest key of the ring names; people are recognised by every key.
    """

    def __init__(self, path: Path, ring: KeyRing) -> None:
        self._path = path
        self._ring = ring

    def use(self, ring: KeyRing) -> None:
        """Use another ring from now on.

        Raises:
            ValueError: A key has another secret than before, or one is dropped that the ledger needs.
            Unavailable: The ledger cannot be read.
        """
        self._ring.check_successor(ring)
        dropped = set(self._ring.kids) - set(ring.kids)
        if missing := _missing({kid: count for kid, count in self.needed_keys().items() if kid in dropped}):
            raise ValueError(missing)
        self._ring = ring

    def record(self, user_id: str, time: datetime) -> None:
        """Append an erasure; it is durable when this returns.

        Raises:
            Unavailable: The file cannot be written.
        """
        key = self._ring.newest
        self._append(_Line(time=time, mac=_mac(key, user_id), kid=key.kid), else_say=": the person was not erased")

    def erasures(self) -> Mapping[str, datetime]:
        """Return when each person was last erased, by each name; empty if there is no ledger yet.

        Raises:
            Unavailable: The ledger cannot be read.
        """
        erased_at: dict[str, datetime] = {}
        for line in self._lines():
            erased_at[line.mac] = max(line.time, erased_at.get(line.mac, line.time))
        return erased_at

    def names(self, user_id: str) -> list[str]:
        """Return the names of a user id in the ledger, that of the newest key first."""
        return [_mac(key, user_id) for key in self._ring.keys]

    def rename(self, user_ids: Iterable[str]) -> int:
        """Name people whom older keys name with the newest one as well; return how many names nobody needs any longer.

        Each line is durable before the next. It may be interrupted and run again.

        Raises:
            Unavailable: The ledger cannot be read or written.
        """
        needed, renamed = {line.mac: line.time for line in self._needed()}, 0
        for user_id in user_ids:
            newest, *older = self.names(user_id)
            for mac in filter(needed.__contains__, older):
                self._append(_Line(time=needed[mac], mac=newest, kid=self._ring.newest.kid, replaces=mac))
                renamed += 1
        return renamed

    def forget_before(self, oldest_backup: datetime) -> None:
        """Record how old the oldest backup is. Who was erased before is in none, so their names need no key.

        Raises:
            Unavailable: The file cannot be written.
        """
        self._append(_Line(time=oldest_backup, mac=_OLDEST_BACKUP, kid=self._ring.newest.kid))

    def needed_keys(self) -> Counter[str]:
        """Count by key the people whom no newer key names.

        Raises:
            Unavailable: The ledger cannot be read.
        """
        return Counter({line.mac: line.kid for line in self._needed()}.values())

    def missing(self) -> str:
        """Say which keys the ledger needs and the ring does not have; nothing if it has all.

        Raises:
            Unavailable: The ledger cannot be read.
        """
        return _missing({kid: count for kid, count in self.needed_keys().items() if kid not in self._ring.kids})

    def _needed(self) -> list[_Line]:
        """Return the lines, in their order, of which no other one makes up for: a restore needs their keys."""
        lines = list(self._lines())
        forgotten = max((line.time for line in lines if line.mac == _OLDEST_BACKUP), default=None)
        renamed: dict[str, datetime] = {}
        for line in lines:
            renamed[line.replaces] = max(line.time, renamed.get(line.replaces, line.time))
        return [
            line
            for line in lines
            if line.mac != _OLDEST_BACKUP
            and (forgotten is None or line.time >= forgotten)
            and (line.mac not in renamed or renamed[line.mac] < line.time)
        ]

    def _lines(self) -> Iterator[_Line]:
        try:
            texts = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return iter(())
        except OSError as exc:
            raise Unavailable(f"the erasure ledger cannot be read ({exc.strerror})") from exc
        return filter(None, map(_line, texts))

    def _append(self, line: _Line, *, else_say: str = "") -> None:
        # A newline on both sides: a line that a full disk cut off does not damage the next one.
        try:
            self._write(f"\n{line.text()}\n".encode())
        except OSError as exc:
            raise Unavailable(f"the erasure ledger cannot be written ({exc.strerror}){else_say}") from exc

    def _write(self, text: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.write(descriptor, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _missing(needed: Mapping[str, int]) -> str:
    return "; ".join(
        f"key {kid!r} is missing, by whose names alone the erasure ledger knows {count} of the erased people"
        for kid, count in sorted(needed.items())
    )


def _mac(key: SigningKey, user_id: str) -> str:
    return hmac.digest(key.secret.encode(), user_id.encode(), "sha256").hex()


def _line(text: str) -> _Line | None:
    """Read a line; None if it is empty, or was cut off: then the erasure failed as well."""
    try:
        fields: dict[str, str] = json.loads(text)
    except ValueError:
        if text:
            _log.warning("erasure_ledger_line_unreadable", length=len(text))
        return None
    return _Line(
        time=datetime.fromisoformat(fields["time"]),
        mac=fields["mac"],
        kid=fields.get("kid", UNNAMED),
        replaces=fields.get("replaces", ""),
    )
