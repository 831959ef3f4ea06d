"""AdminService: what a change would do to users, before it is made."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Final

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.preview_pb2 import (
    PREVIEW_ROWS_ALL,
    PREVIEW_ROWS_CHANGED,
    PreviewRow,
    PreviewRows,
)
from gatekeeper_grpc.domain import evaluation as domain
from gatekeeper_grpc.domain.errors import InvalidArgument, Unavailable
from gatekeeper_grpc.domain.limits import MAX_CONTEXTS_PER_MESSAGE, check_count
from gatekeeper_grpc.domain.preview import Effect, FlagPreview
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.evaluation import context_from_proto, users_of
from gatekeeper_grpc.wire.flags import flag_update_from_proto
from gatekeeper_grpc.wire.preview import (
    error_row_to_proto,
    header_to_proto,
    row_to_proto,
    split_rows,
    totals_to_proto,
)

_SAMPLE: Final = 20
_MAX_USERS_AT_ONCE: Final = 500
# Longer than an evaluation waits for a revision: a preview holds a worker of previews alone.
_CATCH_UP_TIMEOUT_S: Final = 5.0


class PreviewRpcs(AdminRpcs):
    """PreviewFlagChange."""

    def PreviewFlagChange(
        self, request_iterator: Iterator[pb.PreviewFlagChangeRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.PreviewFlagChangeResponse]:
        first = next(request_iterator, None)
        if first is None:
            return
        rows, update = _rows_of(first), flag_update_from_proto(first)
        preview = FlagPreview(self._newest_snapshot(), update)
        yield header_to_proto(preview)
        run = _Run(preview, rows)
        # Each user is evaluated for two flags.
        pace = partial(self.pacer.pace, flags=2, is_active=context.is_active)
        for request in chain((first,), request_iterator):
            _check_same_question(first, request)
            found = [row for row in pace().through(run.evaluate(request.contexts)) if row is not None]
            if shown := run.take_targeted():
                self.stores.flags.record_preview(shown)
            yield from split_rows(found, evaluated_count=run.evaluated)
        yield run.totals()

    def _newest_snapshot(self) -> Snapshot:
        """Return a snapshot that knows what any instance had written before this call, as other reads do.

        Raises:
            Unavailable: This instance does not get there within 5 s.
        """
        if not self.cache.wait_for_revision(self.stores.current_revision(), timeout_s=_CATCH_UP_TIMEOUT_S):
            raise Unavailable("this instance cannot catch up with the newest revision now", retry_after_s=1.0)
        return self.cache.current()


class _Run:
    """The users of one preview, evaluated message by message, and what is counted of them."""

    def __init__(self, preview: FlagPreview, rows: PreviewRows.ValueType) -> None:
        self.evaluated = 0
        """How many contexts were taken, invalid ones among them."""
        self._preview = preview
        self._rows = rows
        self._counts = Counter[tuple[int, int]]()
        self._errors = 0
        self._sample: list[PreviewRow] = []
        self._targeted: list[str] = []

    def evaluate(self, contexts: Sequence[EvaluationContext]) -> Iterator[PreviewRow | None]:
        """Yield the rows of a message, and None where a slice may end without one.

        Raises:
            InvalidArgument: There are too many contexts.
        """
        check_count("contexts", contexts, at_most=MAX_CONTEXTS_PER_MESSAGE)
        at_once = min(_MAX_USERS_AT_ONCE, self._preview.at_once)
        for first in range(0, len(contexts), at_once):
            yield from self._some(first, contexts[first : first + at_once])
        self.evaluated += len(contexts)

    def take_targeted(self) -> Sequence[str]:
        """Return the users since the last time of whom the answers tell that they are targeted, each once."""
        targeted, self._targeted = self._targeted, []
        return [*dict.fromkeys(targeted)]

    def totals(self) -> pb.PreviewFlagChangeResponse:
        """Return what was counted."""
        return totals_to_proto(self._counts, errors=self._errors, sample=self._sample)

    def _some(self, first: int, contexts: Sequence[EvaluationContext]) -> Iterable[PreviewRow | None]:
        """Evaluate some users; all together, if nothing but their ids counts, and only some of them get a row."""
        is_each_alone = self._preview.is_aimed or self._rows == PREVIEW_ROWS_ALL
        found = None if is_each_alone else users_of(contexts)
        if found is None:
            return (self._one(f"contexts[{at}]", context) for at, context in enumerate(contexts, first))
        return self._together(*found)

    def _together(self, user_ids: Sequence[str], users: Sequence[bytes]) -> Iterator[PreviewRow | None]:
        effects = self._preview.of_many(user_ids, users)
        self._counts.update(effects.counts)
        self._targeted += [user_ids[at] for at in effects.targeted]
        yield None
        at_most = None if self._rows == PREVIEW_ROWS_CHANGED else _SAMPLE - len(self._sample)
        for at in effects.changed[:at_most]:
            yield self._row(user_ids[at], self._preview.of_one(domain.EvaluationContext(user_id=user_ids[at])))

    def _one(self, field: str, message: EvaluationContext) -> PreviewRow | None:
        try:
            context = context_from_proto(field, message)
        except InvalidArgument as exc:
            self._errors += 1
            return error_row_to_proto(message.user_id, exc) if self._rows else None
        effect = self._preview.of_one(context)
        self._counts[effect.before.code, effect.after.code] += 1
        if effect.shows_target and context.user_id:
            self._targeted.append(context.user_id)
        return self._row(message.user_id, effect)

    def _row(self, user_id: str, effect: Effect) -> PreviewRow | None:
        """Return the row of a user, if it is wanted; keep it for the sample, if that has room."""
        is_sampled = effect.is_change and len(self._sample) < _SAMPLE
        is_wanted = self._rows == PREVIEW_ROWS_ALL or (self._rows == PREVIEW_ROWS_CHANGED and effect.is_change)
        if not is_sampled and not is_wanted:
            return None
        row = row_to_proto(user_id, effect)
        if is_sampled:
            self._sample.append(row)
        return row if is_wanted else None


def _rows_of(request: pb.PreviewFlagChangeRequest) -> PreviewRows.ValueType:
    if request.rows not in PreviewRows.values():
        raise InvalidArgument.of("rows", "must be unspecified, PREVIEW_ROWS_CHANGED or PREVIEW_ROWS_ALL")
    return request.rows


def _check_same_question(first: pb.PreviewFlagChangeRequest, later: pb.PreviewFlagChangeRequest) -> None:
    for field in ("flag", "update_mask", "rows"):
        if getattr(later, field) != getattr(first, field) and _is_set(later, field):
            raise InvalidArgument.of(field, "is fixed by the first message; leave it out of later ones")


def _is_set(request: pb.PreviewFlagChangeRequest, field: str) -> bool:
    return bool(request.rows) if field == "rows" else request.HasField(field)  # type: ignore[arg-type]
