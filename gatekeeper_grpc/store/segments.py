"""Segments in PostgreSQL."""

from typing import Any

from gatekeeper_grpc.domain.condition import condition_from_document
from gatekeeper_grpc.domain.segment import Match, Segment

SELECT_SEGMENTS = """
    SELECT segment_id, key, description, match, conditions FROM segments
"""


def segment_from_row(
    *,
    segment_id: int,
    key: str,
    description: str,
    match: str,
    conditions: list[dict[str, Any]],
) -> Segment:
    """Build the segment of a row of `SELECT_SEGMENTS`."""
    return Segment(
        segment_id=segment_id,
        key=key,
        description=description,
        match=Match(match),
        conditions=tuple(condition_from_document(condition) for condition in conditions),
    )
