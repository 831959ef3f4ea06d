"""Honest clients during an attack: a loop for each kind of call, on kept and new connections, from own addresses."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import grpc

from gatekeeper_client.v1.admin_service_pb2 import ImportTargetsRequest, ListFlagsRequest, VerifyAuditLogRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.faults.fleet import ALICE
from tests.faults.proxy import proxied
from tests.support.processes import connect
from tests.support.servers import Bearer

FLAG = "attacked"
PASSWORD = "a-long-password-of-a-victim"

# Longer than any bound, so that a late answer is seen as late and not as none.
_DEADLINE_S = 10.0
_KEPT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of call: how often a second, and the share of its calls that must be served within a time."""

    call: Callable[[grpc.Channel, str], object]
    """Makes the call, with an access token."""
    per_s: float = 2.0
    within_s: float = 2.0
    share: float = 0.95


def _admin(channel: grpc.Channel, token: str) -> AdminServiceStub:
    return AdminServiceStub(grpc.intercept_channel(channel, Bearer(token)))


def _evaluate(channel: grpc.Channel, _token: str) -> object:
    return EvaluationServiceStub(channel).EvaluateFlags(ALICE, timeout=_DEADLINE_S)


def _read(channel: grpc.Channel, token: str) -> object:
    return _admin(channel, token).ListFlags(ListFlagsRequest(), timeout=_DEADLINE_S)


def _log_in(channel: grpc.Channel, _token: str) -> object:
    return AuthServiceStub(channel).Login(LoginRequest(username="victim", password=PASSWORD), timeout=_DEADLINE_S)


def _bulk(channel: grpc.Channel, _token: str) -> object:
    request = BulkEvaluateFlagsRequest(contexts=[EvaluationContext(user_id=f"user-{number}") for number in range(10)])
    return list(EvaluationServiceStub(channel).BulkEvaluateFlags(iter([request]), timeout=_DEADLINE_S))


def _import(channel: grpc.Channel, token: str) -> object:
    request = ImportTargetsRequest(flag_key=FLAG, user_ids=["anna", "bob"])
    return _admin(channel, token).ImportTargets(iter([request]), timeout=_DEADLINE_S)


def _verify(channel: grpc.Channel, token: str) -> object:
    return list(_admin(channel, token).VerifyAuditLog(VerifyAuditLogRequest(), timeout=_DEADLINE_S))


KINDS: Mapping[str, Kind] = {
    "evaluation": Kind(call=_evaluate, per_s=4.0),
    "admin read": Kind(call=_read),
    "bulk": Kind(call=_bulk),
    "import": Kind(call=_import, per_s=1.0),
    # An instance runs two verifications at a time.
    "verification": Kind(call=_verify, per_s=0.5),
    "login": Kind(call=_log_in, per_s=0.4, within_s=5.0, share=0.9),
}


@dataclass(slots=True)
class Seen:
    """How the calls of one kind went."""

    sent: int = 0
    in_time: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    complaints: list[str] = field(default_factory=list)


class Victims:
    """Call a server from `start` to `close`: each kind from an address of its own, on a kept and on new connections."""

    def __init__(self, ports: Mapping[str, int], token: str, *, allowance_s: float) -> None:
        self.seen = {kind: Seen() for kind in ports}
        self._token = token
        self._allowance_s = allowance_s
        self._lock = threading.Lock()  # guards what was seen
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=loop, args=(kind, port), name=f"victim {kind}")
            for kind, port in ports.items()
            for loop in (self._keep_connection, self._connect_each_time)
        ]

    def start(self) -> None:
        """Begin to call."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop, and wait for the last answers."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(2 * _DEADLINE_S)

    def unserved(self, *, but: tuple[str, ...] = ()) -> list[str]:
        """Name the kinds, `but` some, of which too few calls were served in time, and what was answered instead."""
        return [
            f"{kind}: {seen.in_time} of {seen.sent} served in time, {dict(seen.codes)}, {seen.complaints}"
            for kind, seen in self.seen.items()
            if kind not in but and (seen.in_time < KINDS[kind].share * seen.sent or not seen.sent)
        ]

    def cancelled(self) -> int:
        """How many calls of any kind ended with CANCELLED."""
        return sum(seen.codes["CANCELLED"] for seen in self.seen.values())

    def __str__(self) -> str:
        return ", ".join(f"{kind} {seen.in_time}/{seen.sent}" for kind, seen in self.seen.items())

    def _keep_connection(self, kind: str, port: int) -> None:
        with connect(port) as channel:
            while not self._stopping.wait(1 / KINDS[kind].per_s):
                self._call(kind, channel)

    def _connect_each_time(self, kind: str, port: int) -> None:
        while not self._stopping.wait(1 / KINDS[kind].per_s):
            with connect(port) as channel:
                self._call(kind, channel)

    def _call(self, kind: str, channel: grpc.Channel) -> None:
        began, complaint, code = time.monotonic(), "", "OK"
        try:
            KINDS[kind].call(channel, self._token)
        except grpc.RpcError as error:
            code, complaint = (
                error.code().name,
                f"{error.code().name} after {time.monotonic() - began:.1f} s: {error.details()}",
            )
        took_s = time.monotonic() - began
        with self._lock:
            seen = self.seen[kind]
            seen.sent += 1
            seen.codes[code] += 1
            seen.in_time += code == "OK" and took_s <= KINDS[kind].within_s + self._allowance_s
            seen.slowest_s = max(seen.slowest_s, took_s)
            if complaint and len(seen.complaints) < _KEPT:
                seen.complaints.append(complaint)


@contextmanager
def victims(port: int, token: str, *, allowance_s: float, kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[Victims]:
    """Make victims of the server on `port`, who call it from `start` on; each kind comes from 127.0.2.x."""
    with ExitStack() as stack:
        ports = {
            kind: stack.enter_context(proxied(port, source=f"127.0.2.{number}")).port
            for number, kind in enumerate(kinds, start=1)
        }
        calling = Victims(ports, token, allowance_s=allowance_s)
        try:
            yield calling
        finally:
            calling.close()
