"""Flags whose interesting fields are named."""

from datetime import UTC, datetime
from typing import Any

from gatekeeper_grpc.domain.flag import (
    Flag,
    FlagConfig,
    SegmentTarget,
)

EPOCH = datetime(2026, 1, 31, 12, tzinfo=UTC)


def flag(key: str = "flag", *, flag_id: int = 1, revision: int = 1, **config: Any) -> Flag:
    """A flag whose interesting fields are named."""
    return Flag(
        flag_id=flag_id,
        config=FlagConfig(key=key, **config),
        create_time=EPOCH,
        update_time=EPOCH,
        revision=revision,
    )


def on_for(*segment_keys: str) -> tuple[SegmentTarget, ...]:
    return tuple(SegmentTarget(segment_key=key, variant="on") for key in segment_keys)
