"""Honest clients during an attack: a loop for each kind of call, on kept and new connections, from own addresses."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import grpc

from gatekeeper_client.v1.admin_service_pb2 import ImportTargetsRequest, ListFlagsRequest, VerifyAuditLogRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.faults.attacks import ADDRESS
from tests.faults.fleet import ALICE
from tests.faults.proxy import proxied
from tests.support.servers import Bearer

FLAG = "attacked"
PASSWORD = "a-long-password-of-a-victim"

# Longer than any bound, so that a late answer is seen as late and not as none.
_DEADLINE_S = 10.0
_REFUSED_WITHIN_S = 2.0
_NONE_REFUSED: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of call: how often a second, and the share of its calls that must be served within a time."""

    call: Callable[[grpc.Channel, str], object]
    """Makes the call, with an access token."""
    per_s: float = 2.0
    within_s: float = 2.0
    share: float = 0.95
    address: str = ""
    """Where it comes from, if that is not an address of its own."""


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
    request = ImportTargetsRequest(flag_key=FLAG, user_ids=["anna", "bob"], value=False)
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
    # Not promised to be served; promised to be told.
    "neighbour of the attacker": Kind(call=_evaluate, per_s=1.0, share=0.0, address=ADDRESS),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    code: str
    text: str
    took_s: float

    def __str__(self) -> str:
        return f"{self.code} after {self.took_s:.1f} s: {self.text}"


class Victims:
    """Call a server from `start` to `close`: each kind from an address of its own, on a kept and on new connections."""

    def __init__(
        self, ports: Mapping[str, int], token: str, *, connect: Callable[[int], grpc.Channel], allowance_s: float
    ) -> None:
        self.outcomes: dict[str, list[Outcome]] = {kind: [] for kind in ports}
        """How the calls of each kind ended; appended to by two threads."""
        self._token = token
        self._connect = connect
        self._allowance_s = allowance_s
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

    def unserved(self, *, refused: Mapping[str, str] = _NONE_REFUSED) -> dict[str, str]:
        """Name the kinds of which too few calls were served in time, and what was answered instead.

        Args:
            refused: Kinds that may be refused in time instead, and what the refusal must say.
        """
        found = {}
        for kind, outcomes in self.outcomes.items():
            well = [outcome for outcome in outcomes if self._is_well(kind, outcome, refused.get(kind))]
            if len(well) < KINDS[kind].share * len(outcomes) or not outcomes:
                others = Counter(str(outcome) for outcome in outcomes if outcome not in well)
                found[kind] = f"{len(well)} of {len(outcomes)}, others: {others.most_common(4)}"
        return found

    def untold(self) -> list[str]:
        """List the calls of any kind that ended without a word, or with CANCELLED."""
        ended = [(kind, outcome) for kind, outcomes in self.outcomes.items() for outcome in outcomes]
        return [
            f"{kind}: {outcome}"
            for kind, outcome in ended
            if outcome.code == "CANCELLED" or (outcome.code != "OK" and not outcome.text)
        ]

    def __str__(self) -> str:
        return ", ".join(self._summary(kind, outcomes) for kind, outcomes in self.outcomes.items())

    def _summary(self, kind: str, outcomes: list[Outcome]) -> str:
        served = sum(self._is_well(kind, outcome) for outcome in outcomes)
        took_s = sorted(outcome.took_s for outcome in outcomes)
        return f"{kind} {served}/{len(outcomes)}" + (f" ({took_s[len(took_s) * 95 // 100]:.1f} s)" if took_s else "")

    def _is_well(self, kind: str, outcome: Outcome, refusal: str | None = None) -> bool:
        """Whether a call was served in time, or told `refusal` in time."""
        if outcome.code == "OK":
            return outcome.took_s <= KINDS[kind].within_s + self._allowance_s
        is_refusal = refusal is not None and refusal in outcome.text
        return is_refusal and outcome.took_s <= _REFUSED_WITHIN_S + self._allowance_s

    def _keep_connection(self, kind: str, port: int) -> None:
        with self._connect(port) as channel:
            while not self._stopping.wait(1 / KINDS[kind].per_s):
                self._call(kind, channel)

    def _connect_each_time(self, kind: str, port: int) -> None:
        while not self._stopping.wait(1 / KINDS[kind].per_s):
            with self._connect(port) as channel:
                self._call(kind, channel)

    def _call(self, kind: str, channel: grpc.Channel) -> None:
        began, code, text = time.monotonic(), "OK", ""
        try:
            KINDS[kind].call(channel, self._token)
        except grpc.RpcError as error:
            code, text = error.code().name, error.details() or ""
        self.outcomes[kind].append(Outcome(code, text, time.monotonic() - began))


@contextmanager
def victims(port: int, token: str, *, connect: Callable[[int], grpc.Channel], allowance_s: float) -> Iterator[Victims]:
    """Make victims of the server on `port`, who call it from `start` on; each kind comes from 127.0.2.x."""
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(proxied(port, source=kind.address or f"127.0.2.{number}")).port
            for number, (name, kind) in enumerate(KINDS.items(), start=1)
        }
        calling = Victims(ports, token, connect=connect, allowance_s=allowance_s)
        try:
            yield calling
        finally:
            calling.close()
