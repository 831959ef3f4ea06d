"""Segments whose interesting fields are named."""

from typing import Any

from gatekeeper_grpc.domain.condition import Condition
from gatekeeper_grpc.domain.segment import (
    Match,
    Segment,
    SegmentConfig,
)
from tests.support.flags import EPOCH


def segment(
    key: str, *conditions: Condition, segment_id: int = 1, revision: int = 1, match: Match = Match.ALL, **config: Any
) -> Segment:
    """A segment whose interesting fields are named."""
    return Segment(
        segment_id=segment_id,
        config=SegmentConfig(key=key, conditions=conditions, match=match, **config),
        create_time=EPOCH,
        update_time=EPOCH,
        revision=revision,
    )
