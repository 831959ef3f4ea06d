"""Probes one worker periodically: is it alive, and is it ready?"""

import json
from dataclasses import fields
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from gatekeeper_grpc.operations.readiness import Readiness
from gatekeeper_grpc.scheduler import RepeatingThread

_INTERVAL_S = 0.25
_TIMEOUT_S = 1.0
# Failed probes in a row after which a worker counts as hung: within 2.5 s if it uses no processor time, within 13 s if
# it does, because then the machine may be busy.
_MAX_FAILURES_IF_IDLE = 2
_MAX_FAILURES_IF_BUSY = 10
_UTIME, _STIME = 11, 12  # Fields of /proc/PID/stat, counted after the name.


class Probe:
    """Probes one worker from `start` to `stop`, on a thread of its own."""

    def __init__(self, number: int, pid: int, ops_port: int) -> None:
        self.readiness: Readiness | None = None
        """The worker's last answer; None while it does not answer."""
        self.ops_port = ops_port
        self._pid = pid
        self._failures = 0
        self._ticks_before = 0
        self._is_busy = False
        self._thread = RepeatingThread(f"probe-{number}", self._check, interval_s=_INTERVAL_S)

    def start(self) -> None:
        """Start to probe."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to probe; does not wait for a running probe."""
        self._thread.stop()

    def is_hung(self) -> bool:
        """Whether the worker has failed too many probes in a row."""
        return self._failures >= (_MAX_FAILURES_IF_BUSY if self._is_busy else _MAX_FAILURES_IF_IDLE)

    def _check(self) -> None:
        if self._is_alive():
            self._failures = 0
            self.readiness = self._ready()
        else:
            self._is_busy = self._has_computed()
            self._failures += 1
            # One failed probe does not change the readiness, nor the log.
            self.readiness = self.readiness if self._failures < _MAX_FAILURES_IF_IDLE else None

    def _is_alive(self) -> bool:
        self._ticks_before = _cpu_ticks(self._pid)
        try:
            return fetch(self.ops_port, "/livez")[0] == HTTPStatus.OK
        except (OSError, HTTPException):
            return False

    def _has_computed(self) -> bool:
        """Whether the worker used the processor during the probe."""
        return _cpu_ticks(self._pid) > self._ticks_before

    def _ready(self) -> Readiness | None:
        try:
            return readiness_from_json(fetch(self.ops_port, "/readyz")[1])
        except (OSError, HTTPException, ValueError, TypeError):
            return None


def fetch(ops_port: int, path: str, *, token: str = "") -> tuple[int, str]:
    """Read a page of a worker; return its status and body. Each step may take 1 s.

    Args:
        ops_port: The worker's.
        path: Of the page.
        token: What the page asks for.

    Raises:
        OSError: The worker cannot be reached, or does not answer in time.
        HTTPException: The answer is not HTTP.
    """
    connection = HTTPConnection("127.0.0.1", ops_port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def readiness_from_json(text: str) -> Readiness:
    """Read an answer of `/readyz`; unknown fields, from a worker of another release, are ignored.

    Raises:
        ValueError: The text is not JSON.
        TypeError: A field is missing.
    """
    known = {field.name for field in fields(Readiness)}
    values: dict[str, Any] = {name: value for name, value in json.loads(text).items() if name in known}
    values["reasons"] = tuple(values.get("reasons", ()))
    return Readiness(**values)


def _cpu_ticks(pid: int) -> int:
    """Return the processor time of all threads of a process; 0 if the system does not report it."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(after_name[_UTIME]) + int(after_name[_STIME])
