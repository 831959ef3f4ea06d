"""The erasure ledger: a file outside the database that records erasures, to apply them again after a restore.

A line is a JSON object with `time`, when the person was erased, and `mac`, the HMAC-SHA256 of the user id under a key
of its own. Without the key the ledger reveals no id. With the key an id can be recognised, but ids cannot be listed.
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
    """An append-only file. Several instances may share one: each line is appended in one write."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = key

    def record(self, user_id: str, time: datetime) -> None:
        """Append an erasure; it is durable when this returns.

        Raises:
            Unavailable: The file cannot be written.
        """
        # A newline on both sides: a line that a full disk cut off does not damage the next one.
        line = "\n" + json.dumps({"time": time.isoformat(), "mac": self.mac(user_id)}) + "\n"
        try:
            self._append(line.encode())
        except OSError as exc:
            raise Unavailable(
                f"the erasure ledger cannot be written ({exc.strerror}): the person was not erased"
            ) from exc

    def erasures(self) -> Mapping[str, datetime]:
        """Return when each person was last erased, by `mac`; empty if there is no ledger yet."""
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
    """Read a line; None if it is empty, or was cut off: then the erasure failed as well."""
    try:
        entry: dict[str, str] = json.loads(line)
    except ValueError:
        if line:
            _log.warning("erasure_ledger_line_unreadable", length=len(line))
        return None
    return entry
