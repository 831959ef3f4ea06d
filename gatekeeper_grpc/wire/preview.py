"""Previews of changes, between domain types and messages."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_pb2, preview_pb2
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.evaluation import EvaluationDetail, decision_of
from gatekeeper_grpc.domain.flag import ON
from gatekeeper_grpc.domain.preview import Effect, FlagPreview
from gatekeeper_grpc.wire.evaluation import detail_to_proto, error_to_proto
from gatekeeper_grpc.wire.flags import flag_to_proto
from gatekeeper_grpc.wire.portions import portions

# Some 200 occur in one preview: each bucket, without the change and with it.
_REMEMBERED_DETAILS = 4_096


def header_to_proto(preview: FlagPreview) -> admin.PreviewFlagChangeResponse:
    """Convert what applies to a whole preview."""
    header = preview_pb2.PreviewHeader(
        before=flag_to_proto(preview.before), after=flag_to_proto(preview.after), revision=preview.revision
    )
    return admin.PreviewFlagChangeResponse(header=header)


def row_to_proto(user_id: str, effect: Effect) -> preview_pb2.PreviewRow:
    """Convert what the change would do to one user."""
    return preview_pb2.PreviewRow(user_id=user_id, before=_detail(effect.before), after=_detail(effect.after))


def error_row_to_proto(user_id: str, error: InvalidArgument) -> preview_pb2.PreviewRow:
    """Convert why one context was not evaluated."""
    return preview_pb2.PreviewRow(user_id=user_id, error=error_to_proto(error))


def split_rows(
    rows: Sequence[preview_pb2.PreviewRow], *, evaluated_count: int
) -> Iterator[admin.PreviewFlagChangeResponse]:
    """Spread the rows of a message over batches below 1 MiB; the last one has the count."""
    batches = [preview_pb2.PreviewBatch(rows=portion) for portion in portions(rows)]
    batches[-1].evaluated_count = evaluated_count
    return (admin.PreviewFlagChangeResponse(batch=batch) for batch in batches)


def totals_to_proto(
    counts: Counter[tuple[int, int]], *, errors: int, sample: Sequence[preview_pb2.PreviewRow]
) -> admin.PreviewFlagChangeResponse:
    """Convert how many users there are of each effect, by the codes (see `code_of`) before and after."""
    transitions = [_transition(*codes, count=count) for codes, count in counts.most_common() if count]
    gained = sum(each.count for each in transitions if each.after_value > each.before_value)
    lost = sum(each.count for each in transitions if each.after_value < each.before_value)
    totals = preview_pb2.PreviewTotals(
        evaluated_count=counts.total(),
        gained_count=gained,
        lost_count=lost,
        unchanged_count=counts.total() - gained - lost,
        error_count=errors,
        transitions=transitions,
        sample=sample,
    )
    return admin.PreviewFlagChangeResponse(totals=totals)


def _transition(before: int, after: int, *, count: int) -> preview_pb2.PreviewTransition:
    (variant_before, reason_before), (variant_after, reason_after) = decision_of(before), decision_of(after)
    return preview_pb2.PreviewTransition(
        before_value=variant_before == ON,
        before_reason=evaluation_pb2.Reason.ValueType(reason_before),
        after_value=variant_after == ON,
        after_reason=evaluation_pb2.Reason.ValueType(reason_after),
        count=count,
    )


@lru_cache(maxsize=_REMEMBERED_DETAILS)
def _detail(detail: EvaluationDetail) -> evaluation_pb2.EvaluationDetail:
    return detail_to_proto(detail)
