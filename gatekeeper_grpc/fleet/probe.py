"""Asks one worker again and again whether it is alive, and what it says of itself."""

import json
from dataclasses import fields
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from gatekeeper_grpc.operations.readiness import Readiness
from gatekeeper_grpc.scheduler import RepeatingThread

_EVERY_S = 0.25
_TIMEOUT_S = 1.0
# How many times in a row a worker may not answer before it counts as hung: within 2.5 s when it does nothing at all,
# within 13 s when it computes, for then it may be a busy machine that keeps it.
_SILENCES_IF_IDLE = 2
_SILENCES_IF_BUSY = 10
_UTIME, _STIME = 11, 12  # Fields of /proc/PID/stat, counted after the name.


class Probe:
    """Keeps asking one worker, from `start` to `stop`, on a thread of its own."""

    def __init__(self, number: int, pid: int, ops_port: int) -> None:
        self.readiness: Readiness | None = None
        """What it last said; None while it does not answer."""
        self.ops_port = ops_port
        self._pid = pid
        self._silences = 0
        self._computed = 0
        self._is_busy = False
        self._asking = RepeatingThread(f"probe-{number}", self._ask, interval_s=_EVERY_S)

    def start(self) -> None:
        """Start to ask."""
        self._asking.start()

    def stop(self) -> None:
        """Ask no more; does not wait for the answer."""
        self._asking.stop()

    def is_hung(self) -> bool:
        """Whether it has not answered for too long."""
        return self._silences >= (_SILENCES_IF_BUSY if self._is_busy else _SILENCES_IF_IDLE)

    def _ask(self) -> None:
        if self._is_alive():
            self._silences = 0
            self.readiness = self._ready()
        else:
            self._is_busy = self._has_computed()
            self._silences += 1
            # One silence is no state change worth a line in the log.
            self.readiness = self.readiness if self._silences < _SILENCES_IF_IDLE else None

    def _is_alive(self) -> bool:
        self._computed = _cpu_ticks(self._pid)
        try:
            return fetch(self.ops_port, "/health")[0] == HTTPStatus.OK
        except (OSError, HTTPException):
            return False

    def _has_computed(self) -> bool:
        """Whether it used the processor while it was asked."""
        return _cpu_ticks(self._pid) > self._computed

    def _ready(self) -> Readiness | None:
        try:
            return readiness_from_json(fetch(self.ops_port, "/ready")[1])
        except (OSError, HTTPException, ValueError, TypeError):
            return None


def fetch(ops_port: int, path: str) -> tuple[int, str]:
    """Read a page of a worker: status and body. Errors: `OSError`, `HTTPException`; each step may take 1 s."""
    connection = HTTPConnection("127.0.0.1", ops_port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def readiness_from_json(text: str) -> Readiness:
    """Read what `/ready` answered; a worker of another release may say more."""
    known = {field.name for field in fields(Readiness)}
    said: dict[str, Any] = {name: value for name, value in json.loads(text).items() if name in known}
    said["reasons"] = tuple(said.get("reasons", ()))
    return Readiness(**said)


def _cpu_ticks(pid: int) -> int:
    """Processor time that a process has used, all threads together; 0 where the system does not tell."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(after_name[_UTIME]) + int(after_name[_STIME])
