"""EvaluationService: answers from the snapshot, never from the database; WatchFlags is in a module of its own."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import grpc

from gatekeeper.v1 import evaluation_service_pb2 as pb
from gatekeeper.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import MAX_CONTEXTS_PER_MESSAGE, check_count
from gatekeeper_grpc.domain.snapshot import Selection, Snapshot
from gatekeeper_grpc.servicers.watch import Watchers, WatchRpcs
from gatekeeper_grpc.wire.evaluation import (
    bulk_error_to_proto,
    check_flag_keys,
    check_min_revision,
    context_from_proto,
    detail_to_proto,
    split_header,
    split_results,
)


class Snapshots(Protocol):
    """Where snapshots are read."""

    def at_least(self, revision: int, *, asked_as: str = ...) -> Snapshot:
        """Return a snapshot at `revision` or later, or raise; 0: the current one."""
        ...

    def is_stale(self) -> bool:
        """Tell whether the current snapshot could not be confirmed in time."""
        ...


class EvaluationServicer(WatchRpcs):
    """Evaluates flags for the users of other services, and tells these when to ask again."""

    def __init__(self, snapshots: Snapshots, watchers: Watchers) -> None:
        super().__init__(snapshots, watchers)
        self._snapshots = snapshots

    def EvaluateFlags(
        self, request: pb.EvaluateFlagsRequest, context: grpc.ServicerContext
    ) -> pb.EvaluateFlagsResponse:
        evaluation_context = context_from_proto("context", request.context)
        snapshot, selection = self._selected(request)
        details = snapshot.evaluate(selection.plans, evaluation_context)
        response = pb.EvaluateFlagsResponse(
            flags={plan.key: detail.value for plan, detail in zip(selection.plans, details, strict=True)},
            unknown_flag_keys=selection.unknown_flag_keys,
            revision=snapshot.revision,
            stale=self._snapshots.is_stale(),
        )
        if request.include_details:
            for plan, detail in zip(selection.plans, details, strict=True):
                response.details[plan.key].CopyFrom(detail_to_proto(detail))
        return response

    def BulkEvaluateFlags(
        self, request_iterator: Iterator[pb.BulkEvaluateFlagsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.BulkEvaluateFlagsResponse]:
        first = next(request_iterator, None)
        if first is None:
            return
        snapshot, selection = self._selected(first)
        yield from split_header(selection, revision=snapshot.revision, stale=self._snapshots.is_stale())
        yield from split_results(_results(snapshot, selection, first))
        for request in request_iterator:
            _check_same_question(first, request)
            yield from split_results(_results(snapshot, selection, request))

    def _selected(self, request: pb.EvaluateFlagsRequest | pb.BulkEvaluateFlagsRequest) -> tuple[Snapshot, Selection]:
        check_flag_keys(request.flag_keys)
        check_min_revision(request.min_revision)
        snapshot = self._snapshots.at_least(request.min_revision)
        return snapshot, snapshot.select(request.flag_keys)


def _results(
    snapshot: Snapshot, selection: Selection, request: pb.BulkEvaluateFlagsRequest
) -> Iterable[pb.BulkEvaluationResult]:
    check_count("contexts", request.contexts, at_most=MAX_CONTEXTS_PER_MESSAGE)
    return (_result(snapshot, selection, position, context) for position, context in enumerate(request.contexts))


def _result(
    snapshot: Snapshot, selection: Selection, position: int, message: EvaluationContext
) -> pb.BulkEvaluationResult:
    try:
        context = context_from_proto(f"contexts[{position}]", message)
    except InvalidArgument as exc:
        return bulk_error_to_proto(message.user_id, exc)
    details = snapshot.evaluate(selection.plans, context)
    return pb.BulkEvaluationResult(user_id=message.user_id, values=[detail.value for detail in details])


def _check_same_question(first: pb.BulkEvaluateFlagsRequest, later: pb.BulkEvaluateFlagsRequest) -> None:
    if later.flag_keys and later.flag_keys != first.flag_keys:
        raise InvalidArgument.of("flag_keys", "is fixed by the first message; leave it empty in later ones")
    if later.min_revision and later.min_revision != first.min_revision:
        raise InvalidArgument.of("min_revision", "is fixed by the first message; leave it 0 in later ones")
