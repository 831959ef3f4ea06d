"""The erasure ledger: who was erased, in a file outside the database, so that a restore brings nobody back.

A line is a JSON object with `time`, when the person was erased, and `mac`, the HMAC-SHA256 of the user id under a key
of its own. The ledger tells nobody's id to whoever lacks the key; with it, ids can be recognised, not listed.
"""

import errno
import hmac
import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import structlog

from gatekeeper_grpc.domain.errors import Unavailable

_log = structlog.get_logger(__name__)

DEFAULT_NAME = "erasures"


class ErasureLedger:
    """An append-only file. Every instance may write to the same one: lines are appended whole."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = key

    def record(self, user_id: str, time: datetime) -> None:
        """Append an erasure; durable when this returns. `Unavailable` when it cannot be."""
        # A new line on both sides: what follows a line that was cut off by a full disk is whole again.
        line = "\n" + json.dumps({"time": time.isoformat(), "mac": self.mac(user_id)}) + "\n"
        try:
            self._append(line.encode())
        except OSError as exc:
            raise Unavailable(f"the erasure ledger cannot be written ({exc.strerror}): nobody was erased") from exc

    def erasures(self) -> Mapping[str, datetime]:
        """Return when each person was last erased, by `mac`; empty when there is no ledger yet."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        erased_at: dict[str, datetime] = {}
        for entry in filter(None, map(_entry, lines)):
            time = datetime.fromisoformat(entry["time"])
            erased_at[entry["mac"]] = max(time, erased_at.get(entry["mac"], time))
        return erased_at

    def mac(self, user_id: str) -> str:
        """Return the name of a user id in the ledger."""
        return hmac.digest(self._key, user_id.encode(), "sha256").hex()

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _entry(line: str) -> dict[str, str] | None:
    """Read a line; None for an empty one, and for one that was cut off: then the erasure failed too."""
    try:
        entry: dict[str, str] = json.loads(line)
    except ValueError:
        if line:
            _log.warning("erasure_ledger_line_unreadable", length=len(line))
        return None
    return entry
