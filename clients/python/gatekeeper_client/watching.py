"""Answers kept in memory, and dropped as soon as WatchFlags says that they may have changed."""

import logging
import random
import threading
from collections.abc import Iterator
from typing import Final, Self

import grpc

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, WatchFlagsRequest, WatchFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

_log = logging.getLogger(__name__)

# The server sends something at least every 20 s.
_SILENT_S: Final = 30.0
_MAX_BACKOFF_S: Final = 5.0


class CachedFlags:
    """Evaluates flags, and answers again from memory until they change. Thread-safe; use it as a context manager.

    While the watch is broken nothing is answered from memory.

    Args:
        channel: To the server.
        timeout_s: Deadline of an evaluation.
        capacity: Answers kept at most; then all are dropped.
    """

    def __init__(self, channel: grpc.Channel, *, timeout_s: float = 5.0, capacity: int = 100_000) -> None:
        self._stub = EvaluationServiceStub(channel)
        self._timeout_s = timeout_s
        self._capacity = capacity
        self._lock = threading.Lock()  # guards the five below
        self._answers: dict[tuple[bytes, str], bool] = {}
        self._changed_at: dict[str, int] = {}
        self._reset_at = 0
        self._is_watching = False
        self._call: grpc.Call | None = None
        self._stopping = threading.Event()
        self._revision = 0
        self._thread = threading.Thread(target=self._run, name="gatekeeper-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        self._thread.join(self._timeout_s)

    @property
    def is_watching(self) -> bool:
        """Whether answers come from memory: the watch is open."""
        return self._is_watching

    def is_on(self, flag_key: str, context: EvaluationContext) -> bool | None:
        """Return the value of a flag; None: there is no such flag.

        Raises:
            grpc.RpcError: It is not in memory, and the server cannot be asked.
        """
        question = (context.SerializeToString(deterministic=True), flag_key)
        with self._lock:
            if self._is_watching and question in self._answers:
                return self._answers[question]
        request = EvaluateFlagsRequest(context=context, flag_keys=[flag_key])
        answer = self._stub.EvaluateFlags(request, timeout=self._timeout_s)
        if flag_key not in answer.flags:
            return None
        self._keep(question, answer.flags[flag_key], answer.revision)
        return answer.flags[flag_key]

    def _keep(self, question: tuple[bytes, str], value: bool, revision: int) -> None:
        """Keep an answer, unless the flag has changed since the revision at which it is true."""
        with self._lock:
            if not self._is_watching or revision < max(self._reset_at, self._changed_at.get(question[1], 0)):
                return
            if len(self._answers) >= self._capacity:
                self._answers.clear()
            self._answers[question] = value

    def _run(self) -> None:
        backoff_s = 0.1
        while not self._stopping.is_set():
            try:
                for message in self._opened():
                    self._apply(message)
                    backoff_s = 0.1
            except grpc.RpcError as error:
                self._close()
                if not self._stopping.is_set():
                    _log.info("watch ended, opening another: %s", error)
            # Jitter: thousands of clients lose one instance at the same moment.
            self._stopping.wait(random.uniform(0, backoff_s))  # noqa: S311 - no secret
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def _opened(self) -> Iterator[WatchFlagsResponse]:
        """Open a watch; cancel it when nothing has come for longer than the server is ever silent."""
        call = self._stub.WatchFlags(WatchFlagsRequest(from_revision=self._revision))
        with self._lock:
            self._call = call
        if self._stopping.is_set():
            call.cancel()
        while True:
            silence = threading.Timer(_SILENT_S, call.cancel)
            silence.daemon = True
            silence.start()
            try:
                yield next(call)
            finally:
                silence.cancel()

    def _apply(self, message: WatchFlagsResponse) -> None:
        with self._lock:
            if message.reset or not self._is_watching:
                self._answers.clear()
            if message.reset:
                self._changed_at.clear()
                self._reset_at = message.revision
            changed = {change.flag_key for change in message.changes}
            self._changed_at.update(dict.fromkeys(changed, message.revision))
            if changed:
                self._answers = {
                    question: value for question, value in self._answers.items() if question[1] not in changed
                }
            self._revision = message.revision
            self._is_watching = True

    def _close(self) -> None:
        with self._lock:
            self._is_watching = False
            self._answers.clear()
