"""Clients that keep calling during a fault, and count evaluations, edits and the staleness of answers."""

import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Protocol

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest, UpdateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsResponse
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.processes import TIMEOUT_S

# Enough to see a fault, little enough to leave the machine idle most of the time.
EVALUATIONS_PER_S = 40
EDITS_PER_S = 10
_KEPT_COMPLAINTS = 5
_BETWEEN_WRITES_S = 0.005
# Polling without a pause would take the core from the servers.
_POLL_S = 0.001


class Evaluated(Protocol):
    """Something that answers evaluations."""

    def evaluate(self) -> EvaluateFlagsResponse:
        """Ask for all flags."""
        ...


class Acknowledged:
    """Revisions that writers were told, and when: by these, answers are too old or not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two against writers; they only grow
        self._times: list[float] = []
        self._revisions: list[int] = []

    def add(self, revision: int) -> None:
        """Note that a write has been acknowledged now."""
        with self._lock:
            if not self._revisions or revision > self._revisions[-1]:
                self._times.append(time.monotonic())
                self._revisions.append(revision)

    def staleness_s(self, revision: int, *, asked_at: float) -> float:
        """For how long there had been something newer than `revision` when it was asked for; 0 when there was not."""
        index = bisect_right(self._revisions, revision)
        return max(0.0, asked_at - self._times[index]) if index < len(self._revisions) else 0.0


class Load:
    """Evaluates on every server from `start` to `close`, `per_s` times a second, at least once; each has a thread."""

    def __init__(self, servers: Sequence[Evaluated], *, per_s: float = EVALUATIONS_PER_S) -> None:
        self.acknowledged = Acknowledged()
        self._pause_s = 1 / per_s
        self.sent = 0
        self.failed: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.stale = 0
        self.staleness_s = 0.0
        self.latencies_s: list[float] = []
        self._lock = threading.Lock()  # guards the figures
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._evaluate, args=(server,), name="load") for server in servers]

    def start(self) -> None:
        """Start the clients."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the clients and wait for their last answers."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def p99_s(self) -> float:
        """The latency that all answers but one in a hundred stayed below."""
        return sorted(self.latencies_s)[int(len(self.latencies_s) * 0.99)]

    def _evaluate(self, server: Evaluated) -> None:
        self._evaluate_once(server)
        while not self._stopping.wait(self._pause_s):
            self._evaluate_once(server)

    def _evaluate_once(self, server: Evaluated) -> None:
        asked_at = time.monotonic()
        try:
            answer = server.evaluate()
        except grpc.RpcError as error:
            self._fail(error, after_s=time.monotonic() - asked_at)
        else:
            self._count(answer, asked_at=asked_at, took_s=time.monotonic() - asked_at)

    def _fail(self, error: grpc.RpcError, *, after_s: float) -> None:
        with self._lock:
            self.sent += 1
            self.failed[error.code().name] += 1
            if len(self.complaints) < _KEPT_COMPLAINTS:
                self.complaints.append(f"{error.code().name} after {after_s:.2f} s: {error.details()}")

    def _count(self, answer: EvaluateFlagsResponse, *, asked_at: float, took_s: float) -> None:
        staleness_s = self.acknowledged.staleness_s(answer.revision, asked_at=asked_at)
        with self._lock:
            self.sent += 1
            self.stale += answer.stale
            self.staleness_s = max(self.staleness_s, staleness_s)
            self.latencies_s.append(took_s)


class Editor:
    """Turns one flag over and over, from `start` to `close`; `slowest_s` is how long an edit took, or took to fail."""

    def __init__(self, admin: AdminServiceStub, acknowledged: Acknowledged, key: str = "edited") -> None:
        self.refused: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.acknowledged = acknowledged
        self._admin = admin
        self._key = key
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._edit, name="editor")

    def start(self) -> None:
        """Create the flag and start to edit it."""
        self._admin.CreateFlag(CreateFlagRequest(flag=Flag(key=self._key)), timeout=TIMEOUT_S)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the last answer."""
        self._stopping.set()
        self._thread.join(TIMEOUT_S)

    def _edit(self) -> None:
        value = False
        while not self._stopping.wait(1 / EDITS_PER_S):
            began, value = time.monotonic(), not value
            flag = Flag(key=self._key, default_value=value)
            request = UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["default_value"]))
            try:
                self.acknowledged.add(self._admin.UpdateFlag(request, timeout=TIMEOUT_S).revision)
            except grpc.RpcError as error:
                self.refused[error.code().name] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)


class Writer:
    """Creates one flag after another, as fast as it can; the flag of a call that failed may or may not be there.

    `admin` is asked before each call: the server may have been started again, on another port.
    """

    def __init__(self, admin: Callable[[], AdminServiceStub], name: str) -> None:
        self.acknowledged: dict[str, int] = {}
        self.refused: Counter[str] = Counter()
        self._admin = admin
        self._name = name
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write, name=name)

    def start(self) -> None:
        """Start to write."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the last answer."""
        self._stopping.set()
        self._thread.join(TIMEOUT_S)

    def _write(self) -> None:
        for number in count():
            if self._stopping.wait(_BETWEEN_WRITES_S):
                return
            flag = Flag(key=f"{self._name}-{number}")
            try:
                revision = self._admin().CreateFlag(CreateFlagRequest(flag=flag), timeout=TIMEOUT_S).revision
            except grpc.RpcError as error:
                self.refused[error.code().name] += 1
            else:
                self.acknowledged[flag.key] = revision


class Client(Protocol):
    """Something that runs for a while."""

    def start(self) -> None:
        """Begin."""
        ...

    def close(self) -> None:
        """End, and wait for it."""
        ...


@contextmanager
def at_work(*clients: Client) -> Iterator[None]:
    """Let clients work for the length of the block."""
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.close()


def visible_after_s(write: Callable[[], int], reader: Evaluated) -> float:
    """Write through one instance; how long after the acknowledgement another one shows it."""
    revision, acknowledged_at = write(), time.monotonic()
    deadline = acknowledged_at + TIMEOUT_S
    while reader.evaluate().revision < revision:
        assert time.monotonic() < deadline, f"revision {revision} never came"
        time.sleep(_POLL_S)
    return time.monotonic() - acknowledged_at
