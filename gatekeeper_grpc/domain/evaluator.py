"""Evaluates a flag for a user: the first rule that applies decides the value and the reason.

A flag is compiled once per snapshot into a `FlagPlan`. Evaluation then only looks up: every `EvaluationDetail` that it
can return exists already, and it allocates nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from gatekeeper_grpc.domain.bucketing import BUCKETS, bucket_of, salt
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail, Reason
from gatekeeper_grpc.domain.flag import ON, VARIANTS, Flag
from gatekeeper_grpc.draws.hashing import first_uint32, new_hash

# Whether the user is in a segment, by its key.
SegmentTest = Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagPlan:
    """A flag, compiled for evaluation.

    `constant` is the result if it is the same for everybody. Otherwise the first of these that applies decides: the
    individual target of the user, the first of `segments` that the user is in, the bucket of the user in `draw`;
    `undrawn` without a draw.
    """

    flag_id: int
    key: str
    salt: bytes
    constant: EvaluationDetail | None
    segments: tuple[tuple[str, EvaluationDetail], ...]
    draw: tuple[EvaluationDetail, ...]
    undrawn: EvaluationDetail


def compile_flag(flag: Flag, *, has_targets: bool) -> FlagPlan:
    """Compile a flag; `has_targets`: some user is individually targeted."""
    config = flag.config
    depends_on_user = has_targets or config.segment_targets or 0 < config.rollout_percentage < BUCKETS
    constant = None
    if not config.enabled:
        constant = detail(config.default_variant, Reason.DISABLED)
    elif not depends_on_user:
        constant = detail(ON if config.rollout_percentage else config.default_variant, Reason.STATIC)
    return FlagPlan(
        flag_id=flag.flag_id,
        key=config.key,
        salt=salt(config.key),
        constant=constant,
        segments=tuple(
            (target.segment_key, detail(target.variant, Reason.TARGETING_MATCH, target.segment_key))
            for target in config.segment_targets
        ),
        draw=_draw(config.rollout_percentage, config.default_variant),
        undrawn=_undrawn(config.rollout_percentage, config.default_variant),
    )


def evaluate(
    plan: FlagPlan, context: EvaluationContext, targeted: Mapping[int, int], in_segment: SegmentTest
) -> EvaluationDetail:
    """Evaluate one flag for one user; the first rule that applies decides.

    Args:
        plan: The compiled flag.
        context: The user.
        targeted: The individual targets of the user, from flag id to index in `VARIANTS`.
        in_segment: Whether the user is in a segment, by its key.

    Source: the evaluation waterfall of protos/gatekeeper/v1/flag.proto.
    """
    if plan.constant is not None:
        return plan.constant
    variant = targeted.get(plan.flag_id)
    if variant is not None:
        return _TARGETED[variant]
    for segment_key, match in plan.segments:
        if in_segment(segment_key):
            return match
    if plan.draw and context.user is not None:
        return plan.draw[bucket_of(context.user, plan.salt)]
    return plan.undrawn


def evaluate_all(
    plans: Iterable[FlagPlan], context: EvaluationContext, targeted: Mapping[int, int], in_segment: SegmentTest
) -> list[EvaluationDetail]:
    """Evaluate flags for one user, in order: the same as `evaluate` for each."""
    user = context.user
    if targeted or user is None:
        return [evaluate(plan, context, targeted, in_segment) for plan in plans]
    # Most flags of most users are constant or drawn. Written out, that takes two thirds of the time: a call costs as
    # much as a hash.
    return [
        plan.constant
        or (
            plan.draw[first_uint32(new_hash(user + plan.salt).digest())[0] % BUCKETS]
            if plan.draw and not plan.segments
            else evaluate(plan, context, targeted, in_segment)
        )
        for plan in plans
    ]


@lru_cache(maxsize=4096)
def detail(variant: str, reason: Reason, segment_key: str = "", slot: int | None = None) -> EvaluationDetail:
    """Return the one shared `EvaluationDetail` with these values."""
    return EvaluationDetail(variant=variant, reason=reason, segment_key=segment_key, bucket=slot)


_TARGETED = tuple(detail(variant, Reason.TARGETING_MATCH) for variant in VARIANTS)


@lru_cache
def _draw(rollout_percentage: int, default_variant: str) -> tuple[EvaluationDetail, ...]:
    """Return the result for each bucket; empty if nobody can be drawn."""
    if rollout_percentage == 0:
        return ()
    return tuple(
        detail(ON if slot < rollout_percentage else default_variant, Reason.SPLIT, slot=slot) for slot in range(BUCKETS)
    )


def _undrawn(rollout_percentage: int, default_variant: str) -> EvaluationDetail:
    """Return the result without a draw: at a rollout of 0, and for anonymous users, who are in at 100 only."""
    if rollout_percentage == BUCKETS:
        return detail(ON, Reason.SPLIT)
    return detail(default_variant, Reason.DEFAULT)
