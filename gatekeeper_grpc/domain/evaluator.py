"""Evaluates a flag for a user: the first rule that applies decides the value and the reason.

A flag is compiled once per snapshot into a `FlagPlan`. Evaluation then only looks up: every `EvaluationDetail` that it
can return exists already, and it allocates nothing. Where only values are asked for, `Snapshot.decide` makes the draws
of all flags at once, and evaluates here what a target or a segment may decide.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from gatekeeper_grpc.domain.bucketing import BUCKETS, bucket_of, salt
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail, Reason, code_of
from gatekeeper_grpc.domain.flag import OFF, ON, VARIANTS, Flag
from gatekeeper_grpc.draws import ALL

# Whether the user is in a segment, by its key.
SegmentTest = Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagPlan:
    """A flag, compiled for evaluation.

    `constant` is the result if it is the same for everybody. Otherwise the first of these that applies decides: the
    individual target of the user, the first of `segments` that the user is in, the bucket of the user in `draw`;
    `undrawn` without a draw.

    For users whom no target and no segment decides for: `weight` of them have the flag on, in thousandths of a per
    cent; `tally` is that of the reason, and `codes` are those of off and on with it.
    """

    flag_id: int
    key: str
    salt: bytes
    constant: EvaluationDetail | None
    segments: tuple[tuple[str, EvaluationDetail], ...]
    draw: tuple[EvaluationDetail, ...]
    undrawn: EvaluationDetail
    has_targets: bool
    weight: int
    tally: int
    codes: tuple[int, int]


def compile_flag(flag: Flag, *, has_targets: bool) -> FlagPlan:
    """Compile a flag; `has_targets`: some user is individually targeted."""
    config = flag.config
    depends_on_user = has_targets or config.segment_targets or 0 < config.rollout_percentage < BUCKETS
    constant = None
    if not config.enabled:
        constant = detail(config.default_variant, Reason.DISABLED)
    elif not depends_on_user:
        constant = detail(ON if config.rollout_percentage else config.default_variant, Reason.STATIC)
    draw = _draw(config.rollout_percentage, config.default_variant)
    undrawn = _undrawn(config.rollout_percentage, config.default_variant)
    usual = constant or (draw or (undrawn,))[0]
    return FlagPlan(
        flag_id=flag.flag_id,
        key=config.key,
        salt=salt(config.key),
        constant=constant,
        segments=tuple(
            (target.segment_key, detail(target.variant, Reason.TARGETING_MATCH, target.segment_key))
            for target in config.segment_targets
        ),
        draw=draw,
        undrawn=undrawn,
        has_targets=has_targets and constant is None,
        weight=_weight(usual, config.rollout_percentage, config.default_variant),
        tally=usual.tally,
        codes=(code_of(OFF, usual.reason), code_of(ON, usual.reason)),
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


def _weight(usual: EvaluationDetail, rollout_percentage: int, default_variant: str) -> int:
    """Return how many of the users that get `usual` or another result of its draw have the flag on."""
    if usual.reason is not Reason.SPLIT or default_variant == ON:
        return ALL * usual.value
    return ALL // BUCKETS * rollout_percentage


def _undrawn(rollout_percentage: int, default_variant: str) -> EvaluationDetail:
    """Return the result without a draw: at a rollout of 0, and for anonymous users, who are in at 100 only."""
    if rollout_percentage == BUCKETS:
        return detail(ON, Reason.SPLIT)
    return detail(default_variant, Reason.DEFAULT)
