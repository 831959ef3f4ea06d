"""EvaluationService: evaluates the snapshot in memory, never the database. WatchFlags is in `watch.py`."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

import grpc

from gatekeeper_client.v1 import evaluation_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.watcher_hub import WatcherHub
from gatekeeper_grpc.domain import evaluation as domain
from gatekeeper_grpc.domain.errors import GatekeeperError, InvalidArgument
from gatekeeper_grpc.domain.limits import MAX_CONTEXTS_PER_MESSAGE, check_count
from gatekeeper_grpc.domain.selection import Decisions, Selection
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.usage import UsageCounter
from gatekeeper_grpc.instrumentation.counters import EVALUATIONS, FRESH, NONE, STALE
from gatekeeper_grpc.instrumentation.spans import TRACES, note_evaluations
from gatekeeper_grpc.servicers.pacing import Pace, Pacer
from gatekeeper_grpc.servicers.watch import WatchRpcs
from gatekeeper_grpc.wire.evaluation import (
    answer_to_bytes,
    check_flag_keys,
    check_min_revision,
    context_from_proto,
    error_to_bytes,
    only_context_from_proto,
    results_to_bytes,
    split_header,
    split_results,
    users_of,
)

# Odd ones, a list of nothing but empty lists, take 0.3 ms.
_MAX_ATTRIBUTES_BYTES_AT_ONCE = 1 << 10
# Half the time of a slice of bulk, for draws; so many flags also take 0.1 ms to be joined.
_PART_AT_ONCE = 0.4
_MAX_FLAGS_AT_ONCE = 3_000
# So many keys are checked and compiled in 0.3 ms; of more, only a selection that is known already.
_MAX_NEW_KEYS_AT_ONCE = 200
# Their ids alone may be a quarter of a response.
_MAX_USERS_AT_ONCE = 1_000


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
        if snapshot is None or not 0 <= request.min_revision <= snapshot.revision or request.include_details:
            return None
        context = request.context
        if context.HasField("attributes") and context.attributes.ByteSize() > _MAX_ATTRIBUTES_BYTES_AT_ONCE:
            return None
        selection = _selected_at_once(snapshot, tuple(request.flag_keys) if request.flag_keys else ())
        if selection is None or selection.aimed:
            return None
        return self._answer(request, only_context_from_proto(request), snapshot, selection)

    def _answer(
        self,
        request: pb.EvaluateFlagsRequest,
        context: domain.EvaluationContext,
        snapshot: Snapshot,
        selection: Selection,
    ) -> bytes:
        details: Sequence[domain.EvaluationDetail] = ()
        if request.include_details or TRACES.sink is not None:
            details = snapshot.evaluate(selection.plans, context)
            decided = ((plan.key, detail) for plan, detail in zip(selection.plans, details, strict=True))
            note_evaluations(decided, flags=len(details), revision=snapshot.revision)
        decisions = selection.of_details(details) if details else snapshot.decide(selection, context)
        is_stale = self._cache.is_stale()
        EVALUATIONS.count(selection.tally(decisions) + (STALE if is_stale else FRESH))
        if self._usage:
            self._usage.count(selection, decisions)
        explained = details if request.include_details else ()
        return answer_to_bytes(selection, decisions.values, stale=is_stale, details=explained)

    def BulkEvaluateFlags(  # type: ignore[override] # Batches are serialised already.
        self, request_iterator: Iterator[pb.BulkEvaluateFlagsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.BulkEvaluateFlagsResponse | bytes]:
        first = next(request_iterator, None)
        if first is None:
            return
        snapshot, selection = self._selected(first)
        is_stale = self._cache.is_stale()
        EVALUATIONS.count(STALE if is_stale else FRESH)
        yield from split_header(selection, stale=is_stale)
        pace = partial(self._pacer.pace, flags=len(selection.plans), is_active=context.is_active)
        yield from split_results(self._results(snapshot, selection, first, pace()))
        for request in request_iterator:
            _check_same_question(first, request)
            yield from split_results(self._results(snapshot, selection, request, pace()))

    def _selected(self, request: pb.EvaluateFlagsRequest | pb.BulkEvaluateFlagsRequest) -> tuple[Snapshot, Selection]:
        flag_keys, snapshot = tuple(request.flag_keys), self._cache.peek()
        if snapshot is None or snapshot.selected(flag_keys) is None:
            check_flag_keys(flag_keys)
        check_min_revision(request.min_revision)
        try:
            snapshot = self._cache.at_least(request.min_revision)
        except GatekeeperError:
            EVALUATIONS.count(NONE)
            raise
        return snapshot, snapshot.select(flag_keys)

    def _results(
        self, snapshot: Snapshot, selection: Selection, request: pb.BulkEvaluateFlagsRequest, pace: Pace
    ) -> Iterable[bytes]:
        contexts = request.contexts
        check_count("contexts", contexts, at_most=MAX_CONTEXTS_PER_MESSAGE)
        if self._usage and contexts:
            self._usage.note(selection)
        at_once = min(_MAX_USERS_AT_ONCE, selection.draws.at_once // max(1, len(selection.plans)))
        if not at_once:
            return pace.through(self._one_by_one(snapshot, selection, pace, 0, contexts))
        return pace.through(
            chain.from_iterable(
                self._results_at_once(snapshot, selection, pace, first, contexts[first : first + at_once])
                for first in range(0, len(contexts), at_once)
            )
        )

    def _results_at_once(
        self, snapshot: Snapshot, selection: Selection, pace: Pace, first: int, contexts: Sequence[EvaluationContext]
    ) -> Iterable[bytes]:
        """Evaluate some users; all together, if each of them has an id and nothing else."""
        found = users_of(contexts)
        if found is None:
            return self._one_by_one(snapshot, selection, pace, first, contexts)
        return (self._counted(selection, snapshot.decide_all(selection, *found), found[1]),)

    def _one_by_one(
        self, snapshot: Snapshot, selection: Selection, pace: Pace, first: int, contexts: Iterable[EvaluationContext]
    ) -> Iterator[bytes]:
        for position, context in enumerate(contexts, first):
            yield self._result(snapshot, selection, pace, position, context)

    def _result(
        self, snapshot: Snapshot, selection: Selection, pace: Pace, position: int, message: EvaluationContext
    ) -> bytes:
        try:
            context = context_from_proto("", message)
        except InvalidArgument:
            return _error_of(f"contexts[{position}]", message)
        if len(selection.plans) > selection.draws.at_once:
            decisions = selection.of_details(snapshot.evaluate(pace.portions(selection.plans), context))
        else:
            decisions = snapshot.decide(selection, context)
        return self._counted(selection, decisions, (context.user or b"",))

    def _counted(self, selection: Selection, decisions: Decisions, users: Sequence[bytes]) -> bytes:
        EVALUATIONS.count(selection.tally(decisions))
        if self._usage:
            self._usage.count_in_bulk(selection, decisions)
        return results_to_bytes(users, decisions.values, flags=len(selection.plans))


def _selected_at_once(snapshot: Snapshot, flag_keys: tuple[str, ...]) -> Selection | None:
    """Return the selection of a small request; None if it is large, or it would take long to compile it."""
    selection = snapshot.selected(flag_keys)
    if selection is None:
        if len(flag_keys or snapshot.flags) > _MAX_NEW_KEYS_AT_ONCE:
            return None
        check_flag_keys(flag_keys)
        selection = snapshot.select(flag_keys)
    at_most = min(_MAX_FLAGS_AT_ONCE, selection.draws.at_once * _PART_AT_ONCE)
    return selection if len(selection.plans) <= at_most else None


def _error_of(field: str, message: EvaluationContext) -> bytes:
    """Return why a context is not evaluated. Its field is named here: for those that are, it would be made in vain."""
    try:
        context_from_proto(field, message)
    except InvalidArgument as exc:
        return error_to_bytes(message.user_id, exc)
    raise AssertionError("unreachable: it was refused before")


def _check_same_question(first: pb.BulkEvaluateFlagsRequest, later: pb.BulkEvaluateFlagsRequest) -> None:
    if later.flag_keys and later.flag_keys != first.flag_keys:
        raise InvalidArgument.of("flag_keys", "is fixed by the first message; leave it empty in later ones")
    if later.min_revision and later.min_revision != first.min_revision:
        raise InvalidArgument.of("min_revision", "is fixed by the first message; leave it 0 in later ones")
