"""Clients as we recommend them: evaluations, reads, mutations that are repeated with their request_id, a watch."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.channels import SERVICE_CONFIG
from gatekeeper_client.v1.admin_service_pb2 import ListFlagsRequest, UpdateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_service_pb2 import WatchFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.fleet import ALICE
from tests.support.processes import TIMEOUT_S
from tests.support.servers import Bearer
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually

# As the documents say, and as much again, for a machine on which the servers that start share two cores.
_DEADLINE_S = 10.0
_EVALUATORS = 4
_BETWEEN_CALLS_S = 0.04
_BETWEEN_CHANGES_S = 0.1
_BEFORE_REPEAT_S = 0.005
# gRPC's own; connections of other tests try again sooner.
_MAX_RECONNECT_BACKOFF_MS = 120_000


@dataclass
class Figures:
    """What clients of one language counted."""

    answered: Counter[str] = field(default_factory=Counter)
    """Calls by kind: evaluate, read, change, connect."""
    failed: Counter[str] = field(default_factory=Counter)
    """Calls that failed for good, by kind, code and text."""
    repeated: int = 0
    """Changes that were sent again with their request_id."""
    watches: Counter[str] = field(default_factory=Counter)
    """How streams ended."""
    seen_revision: int = 0
    """What the watcher has heard of."""
    changed_revision: int = 0
    """Of the last change that was acknowledged."""

    @property
    def sent(self) -> int:
        """How many calls have ended."""
        return self.answered.total() + self.failed.total()


class Clients(Protocol):
    """Clients of one language, which call from `start` to `close`."""

    language: str
    figures: Figures

    def start(self) -> None:
        """Begin."""
        ...

    def close(self) -> None:
        """End, and wait for the last answers and until the watch has heard of the last change."""
        ...


def flag_of(language: str) -> str:
    """The key of the flag that clients of a language change, and no others."""
    return f"changed-by-{language.lower()}"


def without_retries(service_config: str) -> str:
    """The same service config without its retry policies."""
    config = json.loads(service_config)
    for method in config["methodConfig"]:
        del method["retryPolicy"]
    return json.dumps(config)


class PythonClients:
    """Clients with a connection of their own to every port each: four evaluate, one reads, one changes, one watches.

    Args:
        ports: Of the instances.
        token: Of an editor.
        certificates: For TLS. None: plaintext, in which evaluations have no retry policy.
        newcomers: How many more open a connection for each evaluation, and try once.
        between_calls_s: How long each of them pauses.
    """

    language = "Python"

    def __init__(
        self,
        ports: Sequence[int],
        token: str,
        *,
        certificates: CertificateFolder | None,
        newcomers: int = 0,
        between_calls_s: float = _BETWEEN_CALLS_S,
    ) -> None:
        self._target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        self._token = token
        self._certificates = certificates
        self._to_evaluate = SERVICE_CONFIG if certificates else without_retries(SERVICE_CONFIG)
        self._between_calls_s = between_calls_s
        self._lock = threading.Lock()  # guards the figures
        self.figures = Figures()
        self._stopping = threading.Event()
        self._closed = threading.Event()
        kinds = [*[self._evaluate] * _EVALUATORS, *[self._connect] * newcomers, self._read, self._change]
        self._callers = [threading.Thread(target=kind, name=f"client-{number}") for number, kind in enumerate(kinds)]
        self._watcher = threading.Thread(target=self._watch, name="client-watch")
        self._watched: Any = None

    def start(self) -> None:
        """Begin."""
        for thread in [self._watcher, *self._callers]:
            thread.start()

    def close(self) -> None:
        """End, and wait for the last answers and until the watch has heard of the last change."""
        self._stopping.set()
        for caller in self._callers:
            caller.join(TIMEOUT_S)
        eventually(lambda: self.figures.seen_revision >= self.figures.changed_revision)
        self._closed.set()
        if self._watched is not None:
            self._watched.cancel()
        self._watcher.join(TIMEOUT_S)

    @contextmanager
    def _channel(self, *, service_config: str = SERVICE_CONFIG) -> Iterator[grpc.Channel]:
        options: dict[str, Any] = {
            "grpc.service_config": service_config,
            "grpc.use_local_subchannel_pool": 1,
            "grpc.max_reconnect_backoff_ms": _MAX_RECONNECT_BACKOFF_MS,
        }
        with ExitStack() as stack:
            if self._certificates is None:
                yield stack.enter_context(grpc.insecure_channel(self._target, list(options.items())))
            else:
                options["grpc.ssl_target_name_override"] = "localhost"
                yield stack.enter_context(self._certificates.channel(target=self._target, **options))

    def _admin(self, channel: grpc.Channel) -> AdminServiceStub:
        return AdminServiceStub(grpc.intercept_channel(channel, Bearer(self._token)))

    def _evaluate(self) -> None:
        with self._channel(service_config=self._to_evaluate) as channel:
            stub = EvaluationServiceStub(channel)
            self._repeat(
                "evaluate", lambda: stub.EvaluateFlags(ALICE, timeout=_DEADLINE_S), every_s=self._between_calls_s
            )

    def _connect(self) -> None:
        self._repeat("connect", self._connect_once, every_s=self._between_calls_s)

    def _connect_once(self) -> None:
        with self._channel(service_config="{}") as channel:
            EvaluationServiceStub(channel).EvaluateFlags(ALICE, timeout=_DEADLINE_S)

    def _read(self) -> None:
        with self._channel() as channel:
            admin = self._admin(channel)
            read = lambda: admin.ListFlags(ListFlagsRequest(page_size=1), timeout=_DEADLINE_S)  # noqa: E731
            self._repeat("read", read, every_s=self._between_calls_s)

    def _change(self) -> None:
        with self._channel() as channel:
            admin = self._admin(channel)
            self._repeat("change", lambda: self._change_once(admin), every_s=_BETWEEN_CHANGES_S)

    def _change_once(self, admin: AdminServiceStub) -> None:
        """Change the flag; send the same again while the answer is UNAVAILABLE."""
        flag = Flag(key=flag_of(self.language), description=str(uuid4()))
        mask = FieldMask(paths=["description"])
        request = UpdateFlagRequest(flag=flag, update_mask=mask, request_id=str(uuid4()))
        gives_up_at = time.monotonic() + TIMEOUT_S
        while True:
            try:
                answer = admin.UpdateFlag(request, timeout=_DEADLINE_S, wait_for_ready=True)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > gives_up_at:
                    raise
                self.figures.repeated += 1
                time.sleep(_BEFORE_REPEAT_S)
            else:
                self.figures.changed_revision = answer.revision
                return

    def _watch(self) -> None:
        with self._channel() as channel:
            stub = EvaluationServiceStub(channel)
            while not self._closed.wait(random.uniform(0, 1)):
                request = WatchFlagsRequest(from_revision=self.figures.seen_revision)
                self._watched = stub.WatchFlags(request)
                self._hear(self._watched)

    def _hear(self, watched: Any) -> None:
        try:
            for message in watched:
                self.figures.seen_revision = max(self.figures.seen_revision, message.revision)
        except grpc.RpcError:
            pass
        if not self._closed.is_set():
            self.figures.watches[watched.code().name] += 1

    def _repeat(self, kind: str, call: Callable[[], object], *, every_s: float) -> None:
        while not self._stopping.wait(every_s):
            try:
                call()
            except grpc.RpcError as error:
                self._count(self.figures.failed, f"{kind}: {error.code().name}: {error.details()}")
            else:
                self._count(self.figures.answered, kind)

    def _count(self, counter: Counter[str], what: str) -> None:
        with self._lock:
            counter[what] += 1
