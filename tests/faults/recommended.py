"""Clients as we recommend them: evaluations, reads, mutations that are repeated with their request_id, a watch."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.channels import SERVICE_CONFIG
from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest, ListFlagsRequest, UpdateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_service_pb2 import WatchFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.fleet import ALICE
from tests.support.processes import TIMEOUT_S
from tests.support.servers import Bearer
from tests.support.tls import CertificateFolder

KEY = "changed"
# As the documents say, and as much again, for a machine on which the servers that start share two cores.
_DEADLINE_S = 10.0
_PAUSE_S = 0.005
_BETWEEN_CHANGES_S = 0.05


class RecommendedClients:
    """Several clients, each with a connection of its own to every port, from `start` to `close`.

    Args:
        ports: Of the instances.
        token: Of an editor.
        certificates: For TLS. None: plaintext.
        service_config: None: no retries.
        clients: How many evaluate; one more reads, one changes a flag, one watches it.
    """

    def __init__(
        self,
        ports: Sequence[int],
        token: str,
        *,
        certificates: CertificateFolder | None,
        service_config: str | None = SERVICE_CONFIG,
        clients: int = 6,
    ) -> None:
        self._target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        self._token = token
        self._certificates = certificates
        self._service_config = service_config
        self._lock = threading.Lock()  # guards the figures
        self.answered: Counter[str] = Counter()
        """Calls by kind: evaluate, read, change."""
        self.failed: Counter[str] = Counter()
        """The same by kind and code, of calls that failed for good."""
        self.repeated = 0
        """Changes that were sent again with their request_id."""
        self.watches: Counter[str] = Counter()
        """How streams ended."""
        self.seen_revision = 0
        """What the watcher has heard of."""
        self.changed_revision = 0
        """Of the last change that was acknowledged."""
        self._stopping = threading.Event()
        kinds = [*[self._evaluate] * clients, self._read, self._change, self._watch]
        self._threads = [threading.Thread(target=kind, name=f"client-{number}") for number, kind in enumerate(kinds)]

    def start(self) -> None:
        """Make the flag that is changed, and begin."""
        with self._channel() as channel:
            created = self._admin(channel).CreateFlag(CreateFlagRequest(flag=Flag(key=KEY)), timeout=TIMEOUT_S)
        self.seen_revision = self.changed_revision = created.revision
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End, and wait for the last answers."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    @contextmanager
    def _channel(self) -> Iterator[grpc.Channel]:
        options: dict[str, Any] = {"grpc.use_local_subchannel_pool": 1, "grpc.max_reconnect_backoff_ms": 100}
        if self._service_config is not None:
            options["grpc.service_config"] = self._service_config
        with ExitStack() as stack:
            if self._certificates is None:
                yield stack.enter_context(grpc.insecure_channel(self._target, list(options.items())))
            else:
                options["grpc.ssl_target_name_override"] = "localhost"
                yield stack.enter_context(self._certificates.channel(target=self._target, **options))

    def _admin(self, channel: grpc.Channel) -> AdminServiceStub:
        return AdminServiceStub(grpc.intercept_channel(channel, Bearer(self._token)))

    def _evaluate(self) -> None:
        with self._channel() as channel:
            stub = EvaluationServiceStub(channel)
            self._repeat("evaluate", lambda: stub.EvaluateFlags(ALICE, timeout=_DEADLINE_S), every_s=_PAUSE_S)

    def _read(self) -> None:
        with self._channel() as channel:
            admin = self._admin(channel)
            read = lambda: admin.ListFlags(ListFlagsRequest(page_size=1), timeout=_DEADLINE_S)  # noqa: E731
            self._repeat("read", read, every_s=_PAUSE_S)

    def _change(self) -> None:
        with self._channel() as channel:
            admin = self._admin(channel)
            self._repeat("change", lambda: self._change_once(admin), every_s=_BETWEEN_CHANGES_S)

    def _change_once(self, admin: AdminServiceStub) -> None:
        """Change the flag; send the same again while the answer is UNAVAILABLE."""
        flag = Flag(key=KEY, description=str(uuid4()))
        mask = FieldMask(paths=["description"])
        request = UpdateFlagRequest(flag=flag, update_mask=mask, request_id=str(uuid4()))
        gives_up_at = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self.changed_revision = admin.UpdateFlag(request, timeout=_DEADLINE_S, wait_for_ready=True).revision
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > gives_up_at:
                    raise
                self.repeated += 1
                time.sleep(_PAUSE_S)
            else:
                return

    def _watch(self) -> None:
        with self._channel() as channel:
            stub = EvaluationServiceStub(channel)
            while not self._stopping.is_set():
                request = WatchFlagsRequest(from_revision=self.seen_revision)
                call: Any = stub.WatchFlags(request, timeout=TIMEOUT_S, wait_for_ready=True)
                self._read_watch(call)

    def _read_watch(self, call: Any) -> None:
        try:
            for message in call:
                self.seen_revision = max(self.seen_revision, message.revision)
                if self._stopping.is_set():
                    call.cancel()
        except grpc.RpcError:
            if not self._stopping.is_set():
                self.watches[call.code().name] += 1
        else:
            self.watches["OK"] += 1

    def _repeat(self, kind: str, call: Callable[[], object], *, every_s: float) -> None:
        while not self._stopping.wait(every_s):
            try:
                call()
            except grpc.RpcError as error:
                self._count(self.failed, f"{kind}: {error.code().name}: {error.details()}")
            else:
                self._count(self.answered, kind)

    def _count(self, counter: Counter[str], what: str) -> None:
        with self._lock:
            counter[what] += 1
