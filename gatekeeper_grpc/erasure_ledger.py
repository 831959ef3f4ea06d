"""The erasure ledger: who was erased, in a file outside the database and its backups, so that a restore brings nobody back.

A line is a JSON object with `time`, when the person was erased, and `mac`, the HMAC-SHA256 of the user id under a key of its own.
The ledger tells nobody's id to whoever lacks the key; with it, ids can be recognised, not listed.
"""

import hmac
import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path


class ErasureLedger:
    """An append-only file. Every instance may write to the same one: lines are appended whole."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = key

    def record(self, user_id: str, time: datetime) -> None:
        """Append an erasure; durable when this returns."""
        line = json.dumps({"time": time.isoformat(), "mac": self.mac(user_id)}) + "\n"
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def erasures(self) -> Mapping[str, datetime]:
        """Return when each person was last erased, by `mac`; empty when there is no ledger yet."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        entries = [json.loads(line) for line in lines]
        return {entry["mac"]: datetime.fromisoformat(entry["time"]) for entry in entries}

    def mac(self, user_id: str) -> str:
        """Return the name of a user id in the ledger."""
        return hmac.digest(self._key, user_id.encode(), "sha256").hex()
