"""EvaluationService: evaluates the snapshot in memory, never the database. WatchFlags is in `watch.py`."""

from collections.abc import Iterable, Iterator
from functools import partial

import grpc

from gatekeeper_client.v1 import evaluation_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.watcher_hub import WatcherHub
from gatekeeper_grpc.domain import evaluation as domain
from gatekeeper_grpc.domain.errors import GatekeeperError, InvalidArgument
from gatekeeper_grpc.domain.limits import MAX_CONTEXTS_PER_MESSAGE, check_count
from gatekeeper_grpc.domain.snapshot import Selection, Snapshot
from gatekeeper_grpc.domain.usage import UsageCounter
from gatekeeper_grpc.instrumentation import EVALUATIONS, FRESH, NONE, STALE
from gatekeeper_grpc.servicers.pacing import Pace, Pacer
from gatekeeper_grpc.servicers.watch import WatchRpcs
from gatekeeper_grpc.spans import TRACES, note_evaluations
from gatekeeper_grpc.wire.evaluation import (
    answer_to_bytes,
    bulk_error_to_proto,
    context_from_proto,
    detail_to_proto,
    only_context_from_proto,
    question_from_proto,
    result_to_bytes,
    split_header,
    split_results,
)

# So many take 0.3 ms, if no segment is tested.
_MAX_FLAGS_AT_ONCE = 200
# Odd ones, a list of nothing but empty lists, take as long.
_MAX_ATTRIBUTES_BYTES_AT_ONCE = 1 << 10


class EvaluationServicer(WatchRpcs):
    """Evaluates flags for the users of other services, and streams the keys of flags that changed.

    Args:
        cache: The current snapshot.
        watchers: Who is told of changes.
        pacer: Has bulk evaluation leave CPU to other calls.
        usage: Counts which flags are asked for; None: nobody does.
    """

    def __init__(
        self,
        cache: SnapshotCache,
        watchers: WatcherHub,
        pacer: Pacer | None = None,
        usage: UsageCounter | None = None,
    ) -> None:
        super().__init__(cache, watchers)
        self._pacer = pacer or Pacer()
        self._usage = usage

    def EvaluateFlags(  # type: ignore[override] # The response is serialised already.
        self, request: pb.EvaluateFlagsRequest, context: grpc.ServicerContext
    ) -> bytes:
        evaluation_context = only_context_from_proto(request)
        return self._answer(request, evaluation_context, *self._selected(request))

    def answer_at_once(self, request: pb.EvaluateFlagsRequest) -> bytes | None:
        """Answer EvaluateFlags on the serving thread; None if that could fail, wait or take long: a worker does it.

        Raises:
            InvalidArgument: As EvaluateFlags.
        """
        snapshot = self._cache.peek()
        if snapshot is None or request.min_revision > snapshot.revision or request.include_details:
            return None
        if request.context.attributes.ByteSize() > _MAX_ATTRIBUTES_BYTES_AT_ONCE:
            return None
        selection = snapshot.select(question_from_proto(request).flag_keys)
        # A list is made faster than a generator runs.
        if len(selection.plans) > _MAX_FLAGS_AT_ONCE or any([plan.segments for plan in selection.plans]):  # noqa: C419
            return None
        return self._answer(request, only_context_from_proto(request), snapshot, selection)

    def _answer(
        self,
        request: pb.EvaluateFlagsRequest,
        context: domain.EvaluationContext,
        snapshot: Snapshot,
        selection: Selection,
    ) -> bytes:
        details = snapshot.evaluate(selection.plans, context)
        is_stale = self._cache.is_stale()
        EVALUATIONS.count_answer(details, source=STALE if is_stale else FRESH)
        if TRACES.sink is not None:
            decided = ((plan.key, detail) for plan, detail in zip(selection.plans, details, strict=True))
            note_evaluations(decided, flags=len(details), revision=snapshot.revision)
        if self._usage:
            self._usage.count(selection, details)
        rest = pb.EvaluateFlagsResponse(
            unknown_flag_keys=selection.unknown_flag_keys, revision=snapshot.revision, stale=is_stale
        )
        if request.include_details:
            for plan, detail in zip(selection.plans, details, strict=True):
                rest.details[plan.key].CopyFrom(detail_to_proto(detail))
        return answer_to_bytes(selection.plans, details, rest)

    def BulkEvaluateFlags(  # type: ignore[override] # Batches are serialised already.
        self, request_iterator: Iterator[pb.BulkEvaluateFlagsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.BulkEvaluateFlagsResponse | bytes]:
        first = next(request_iterator, None)
        if first is None:
            return
        snapshot, selection = self._selected(first)
        is_stale = self._cache.is_stale()
        EVALUATIONS.count_answer(source=STALE if is_stale else FRESH)
        yield from split_header(selection, revision=snapshot.revision, stale=is_stale)
        pace = partial(self._pacer.pace, flags=len(selection.plans), is_active=context.is_active)
        yield from split_results(self._results(snapshot, selection, first, pace()))
        for request in request_iterator:
            _check_same_question(first, request)
            yield from split_results(self._results(snapshot, selection, request, pace()))

    def _selected(self, request: pb.EvaluateFlagsRequest | pb.BulkEvaluateFlagsRequest) -> tuple[Snapshot, Selection]:
        question = question_from_proto(request)
        try:
            snapshot = self._cache.at_least(question.min_revision)
        except GatekeeperError:
            EVALUATIONS.count_answer(source=NONE)
            raise
        return snapshot, snapshot.select(question.flag_keys)

    def _results(
        self, snapshot: Snapshot, selection: Selection, request: pb.BulkEvaluateFlagsRequest, pace: Pace
    ) -> Iterable[bytes]:
        check_count("contexts", request.contexts, at_most=MAX_CONTEXTS_PER_MESSAGE)
        if self._usage and request.contexts:
            self._usage.note(selection)
        return pace.through(
            self._result(snapshot, selection, pace, position, context)
            for position, context in enumerate(request.contexts)
        )

    def _result(
        self, snapshot: Snapshot, selection: Selection, pace: Pace, position: int, message: EvaluationContext
    ) -> bytes:
        try:
            context = context_from_proto("", message)
        except InvalidArgument:
            return _error_of(f"contexts[{position}]", message)
        details = snapshot.evaluate(pace.portions(selection.plans), context)
        EVALUATIONS.count(details)
        if self._usage:
            self._usage.count_in_bulk(selection, details)
        return result_to_bytes(context.user or b"", [detail.value for detail in details])


def _error_of(field: str, message: EvaluationContext) -> bytes:
    """Return why a context is not evaluated. Its field is named here: for those that are, it would be made in vain."""
    try:
        context_from_proto(field, message)
    except InvalidArgument as exc:
        return bulk_error_to_proto(message.user_id, exc).SerializeToString()
    raise AssertionError("unreachable: it was refused before")


def _check_same_question(first: pb.BulkEvaluateFlagsRequest, later: pb.BulkEvaluateFlagsRequest) -> None:
    if later.flag_keys and later.flag_keys != first.flag_keys:
        raise InvalidArgument.of("flag_keys", "is fixed by the first message; leave it empty in later ones")
    if later.min_revision and later.min_revision != first.min_revision:
        raise InvalidArgument.of("min_revision", "is fixed by the first message; leave it 0 in later ones")
