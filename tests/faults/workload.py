"""Concurrent clients that edit, read and evaluate a few flags through all instances, and record it as a history."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import grpc
import psycopg
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from gatekeeper_client.v1.admin_service_pb2 import (
    CreateFlagRequest,
    DeleteFlagRequest,
    GetFlagRequest,
    UpdateFlagRequest,
)
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.flag import ON, flag_from_document
from tests.faults.fleet import Fleet, Instance
from tests.faults.history import Action, Evaluation, FlagState, Operation, Outcome, Read, Step, Write
from tests.support.processes import TIMEOUT_S

FLAGS = 6
_CALL_TIMEOUT_S = 2.0
_TRIES_AGAIN = 0.5
_BETWEEN_FAILURES_S = 0.05
# Beyond any revision that a run reaches.
_FUTURE = 100_000
# After these, nobody knows whether the call did anything.
_UNKNOWN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How often a client does what, in parts of the whole; the rest is plain evaluation."""

    update: float = 0.25
    create_or_delete: float = 0.04
    read: float = 0.1
    min_revision: float = 0.2
    future_revision: float = 0.01


class Workload:
    """`clients` threads that work on a fleet until they have recorded so many operations.

    The same seed gives the same intentions; what comes of them depends on the fleet.
    """

    def __init__(self, fleet: Fleet, *, seed: int, clients: int = 16, mix: Mix | None = None) -> None:
        self._board = _Board()
        mix = mix or Mix()
        self._clients = [
            _Client(f"client-{number}", fleet, self._board, mix, Random(f"{seed}-{number}"))
            for number in range(clients)
        ]

    def run(self, operations: int) -> Sequence[Operation]:
        """Work until the clients have recorded at least so many operations, and return all of them."""
        threads = [
            threading.Thread(target=client.work, args=(operations,), name=client.name) for client in self._clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._board.operations


@dataclass(slots=True)
class _Board:
    """What the clients share: what was recorded, and the newest revision that any of them was told."""

    operations: list[Operation] = field(default_factory=list)
    newest: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards both

    def record(self, operation: Operation) -> None:
        with self.lock:
            self.operations.append(operation)
            if isinstance(operation, Write):
                self.newest = max(self.newest, operation.revision)


class _Client:
    """One client: does one thing after another, each through an instance that it picks at random."""

    def __init__(self, name: str, fleet: Fleet, board: _Board, mix: Mix, random: Random) -> None:
        self.name = name
        self._fleet = fleet
        self._board = board
        self._random = random
        plain = 1 - mix.update - mix.create_or_delete - mix.read - mix.min_revision - mix.future_revision
        self._choices: Mapping[Callable[[], Outcome], float] = {
            self._update: mix.update,
            self._create_or_delete: mix.create_or_delete,
            self._read_any: mix.read,
            lambda: self._evaluate(self._board.newest): mix.min_revision,
            lambda: self._evaluate(self._board.newest + _FUTURE): mix.future_revision,
            lambda: self._evaluate(0): plain,
        }

    def work(self, operations: int) -> None:
        """Do things until everybody together has done enough."""
        while len(self._board.operations) < operations:
            (act,) = self._random.choices([*self._choices], [*self._choices.values()])
            if act() is Outcome.UNKNOWN:
                time.sleep(_BETWEEN_FAILURES_S)

    def _any_instance(self) -> Instance:
        return self._random.choice(self._fleet.instances)

    def _any_key(self) -> str:
        return f"flag-{self._random.randrange(FLAGS)}"

    def _evaluate(self, min_revision: int) -> Outcome:
        instance, began = self._any_instance(), time.monotonic()
        request = EvaluateFlagsRequest(context=EvaluationContext(user_id=self.name), min_revision=min_revision)
        tried = _try(lambda: instance.evaluation.EvaluateFlags(request, timeout=_CALL_TIMEOUT_S))
        answer = tried.answer
        found = {"revision": answer.revision, "values": dict(answer.flags)} if answer else {}
        self._record(Evaluation, instance, began, tried, min_revision=min_revision, **found)
        return tried.outcome

    def _read_any(self) -> Outcome:
        return self._read(self._any_key()).outcome

    def _read(self, key: str) -> Read:
        instance, began = self._any_instance(), time.monotonic()
        tried = _try(lambda: instance.admin.GetFlag(GetFlagRequest(key=key), timeout=_CALL_TIMEOUT_S))
        answer = tried.answer
        found = {"revision": answer.revision, "state": _state(answer.flag)} if answer else {}
        read: Read = self._record(Read, instance, began, tried, flag_key=key, **found)
        return read

    def _update(self) -> Outcome:
        """Read a flag and turn it over, as it was seen; create it when there is none."""
        seen = self._read(self._any_key())
        if seen.reason == "FLAG_NOT_FOUND":
            return self._write(Action.CREATE, seen.flag_key, None)
        return self._write(Action.UPDATE, seen.flag_key, seen.state) if seen.state else seen.outcome

    def _create_or_delete(self) -> Outcome:
        seen = self._read(self._any_key())
        if seen.reason == "FLAG_NOT_FOUND":
            return self._write(Action.CREATE, seen.flag_key, None)
        return self._write(Action.DELETE, seen.flag_key, seen.state) if seen.state else seen.outcome

    def _write(self, action: Action, key: str, seen: FlagState | None) -> Outcome:
        """Write; while the outcome is unknown, sometimes again, under the same request id, through any instance."""
        write_id = str(UUID(int=self._random.getrandbits(128), version=4))
        value = seen is None or not seen.value
        flag = Flag(key=key, description=write_id, default_value=value, etag=seen.etag if seen else "")
        instance, began = self._any_instance(), time.monotonic()
        tried = _try(_writer(action, instance, flag))
        while tried.outcome is Outcome.UNKNOWN and self._random.random() < _TRIES_AGAIN:
            instance = self._any_instance()
            again = _try(_writer(action, instance, flag))
            # A refusal tells nothing: the attempt before may have done it, or may still.
            tried = again if again.outcome is Outcome.OK else tried
        answer = tried.answer
        told = {"revision": answer.revision, "etag": _etag(answer)} if answer else {}
        self._record(
            Write, instance, began, tried, write_id=write_id, action=action, flag_key=key, seen_etag=flag.etag, **told
        )
        return tried.outcome

    # Any: an operation of that kind, and its fields.
    def _record(self, kind: Any, instance: Instance, began: float, tried: "_Tried", **fields: Any) -> Any:
        operation = kind(
            client=self.name,
            instance=instance.name,
            began=began,
            ended=time.monotonic(),
            outcome=tried.outcome,
            reason=tried.reason,
            **fields,
        )
        self._board.record(operation)
        return operation


@dataclass(frozen=True, slots=True)
class _Tried:
    """What came of a call. Any: the answer's message."""

    outcome: Outcome
    reason: str = ""
    answer: Any = None


def _try(call: Callable[[], Any]) -> _Tried:
    try:
        return _Tried(Outcome.OK, answer=call())
    except grpc.RpcError as error:
        outcome = Outcome.UNKNOWN if error.code() in _UNKNOWN else Outcome.REFUSED
        return _Tried(outcome, _reason(error))


def _reason(error: Any) -> str:
    """The reason that Gatekeeper gave, or the status of an error that is not from it."""
    info, status = error_details_pb2.ErrorInfo(), rpc_status.from_call(error)
    for detail in status.details if status else ():
        detail.Unpack(info)
    return info.reason or str(error.code().name)


def _writer(action: Action, instance: Instance, flag: Flag) -> Callable[[], Any]:
    """Return the call that carries out a write; its id goes into the audit log as the reason of the change."""
    # Any: messages take other types under other names.
    intent: dict[str, Any] = {"change_reason": flag.description, "request_id": flag.description}
    if action is Action.CREATE:
        return lambda: instance.admin.CreateFlag(CreateFlagRequest(flag=flag, **intent), timeout=_CALL_TIMEOUT_S)
    if action is Action.DELETE:
        deletion = DeleteFlagRequest(key=flag.key, etag=flag.etag, **intent)
        return lambda: instance.admin.DeleteFlag(deletion, timeout=_CALL_TIMEOUT_S)
    mask = FieldMask(paths=["description", "default_value"])
    update = UpdateFlagRequest(flag=flag, update_mask=mask, **intent)
    return lambda: instance.admin.UpdateFlag(update, timeout=_CALL_TIMEOUT_S)


def _etag(answer: Any) -> str:
    return answer.flag.etag if hasattr(answer, "flag") else ""


def _state(flag: Flag) -> FlagState:
    return FlagState(write_id=flag.description, value=flag.default_value, etag=flag.etag)


_ENTRIES = """
    SELECT revision, resource_type, resource_key, document FROM audit_log JOIN audit_documents USING (seq) ORDER BY seq
"""


def recorded_steps(dsn: str) -> Sequence[Step]:
    """All changes of flags in the audit log."""
    with psycopg.connect(dsn, connect_timeout=int(TIMEOUT_S)) as conn:
        return [_step(*entry) for entry in conn.execute(_ENTRIES)]


def _step(revision: int, resource_type: str, key: str, document: bytes) -> Step:
    if resource_type != "flag":
        return Step(revision=revision)
    told = json.loads(document)
    before, after = _documented(told["before"]), _documented(told["after"])
    return Step(revision=revision, flag_key=key, before=before, after=after, write_id=told["change_reason"])


def _documented(document: Mapping[str, Any] | None) -> FlagState | None:
    if document is None:
        return None
    flag = flag_from_document(document)
    return FlagState(write_id=flag.config.description, value=flag.config.default_variant == ON, etag=flag.etag)
