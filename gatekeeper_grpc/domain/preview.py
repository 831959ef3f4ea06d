"""What a change of a flag would do to users: they are evaluated on a snapshot with the change, and on one without."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from operator import ne
from typing import NamedTuple

from gatekeeper_grpc.domain.commands import FlagUpdate
from gatekeeper_grpc.domain.errors import NotFound, ResourceExhausted
from gatekeeper_grpc.domain.etag import check_etag
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail, Reason
from gatekeeper_grpc.domain.flag import Flag, FlagConfig
from gatekeeper_grpc.domain.limits import MAX_SEGMENT_TARGETS_IN_ALL
from gatekeeper_grpc.domain.selection import Decisions
from gatekeeper_grpc.domain.snapshot import Snapshot, SnapshotDelta


class Effect(NamedTuple):
    """The answers that one user gets without the change and with it."""

    before: EvaluationDetail
    after: EvaluationDetail

    @property
    def is_change(self) -> bool:
        """Whether the value differs."""
        return self.before.value != self.after.value

    @property
    def shows_target(self) -> bool:
        """Whether the answer tells that the user is targeted, and evaluation of the flag as it is does not."""
        return self.after.reason is Reason.TARGETING_MATCH and self.after != self.before


class Effects(NamedTuple):
    """What a change would do to some users: how many there are of each effect, and the positions of those it concerns.

    `counts` is by the codes (see `code_of`) before and after. `changed` are the users whose value differs, `targeted`
    those of whom the answer `shows_target`.
    """

    counts: Mapping[tuple[int, int], int]
    changed: Sequence[int]
    targeted: Sequence[int]


class FlagPreview:
    """A change of a flag of a snapshot, which is made in another snapshot and nowhere else.

    Args:
        snapshot: All flags without the change.
        update: The change.

    Raises:
        NotFound: There is no such flag, or a segment target names no segment.
        Changed: The flag has another etag than the update names.
        InvalidArgument: A field would be invalid.
        ResourceExhausted: All flags together would have more segment targets than they may.
    """

    def __init__(self, snapshot: Snapshot, update: FlagUpdate) -> None:
        self.before, self.after = _states(snapshot, update)
        self.revision = snapshot.revision
        delta = SnapshotDelta(
            revision=snapshot.revision, audit_hash=snapshot.audit_hash, flags={update.key: self.after}
        )
        self._snapshots = snapshot, snapshot.after(delta)
        self._selections = tuple(each.select((update.key,)) for each in self._snapshots)
        self._plans = [plan for selection in self._selections for plan in selection.plans]
        self.is_aimed = any(selection.aimed for selection in self._selections)
        """Whether the flag aims at segments, with the change or without: then each user is evaluated alone."""
        self.at_once = max(1, self._selections[0].draws.at_once // len(self._plans))
        """How many users `of_many` takes half a millisecond for."""

    def of_one(self, context: EvaluationContext) -> Effect:
        """Return what the change would do to one user."""
        # The users that both flags may find are the same: one snapshot finds them once.
        return Effect(*self._snapshots[1].evaluate(self._plans, context))

    def of_many(self, user_ids: Sequence[str], users: Sequence[bytes]) -> Effects:
        """Return what the change would do to users without attributes, given by their ids, as text and in UTF-8."""
        before, after = (
            snapshot.decide_all(selection, user_ids, users)
            for snapshot, selection in zip(self._snapshots, self._selections, strict=True)
        )
        counts, targeted = self._counts(before, after), list[int]()
        for at in sorted(before.exceptions.keys() | after.exceptions.keys()):
            effect = self.of_one(EvaluationContext(user_id=user_ids[at]))
            counts[self._usual_codes(before.values[at], after.values[at])] -= 1
            counts[effect.before.code, effect.after.code] += 1
            if effect.shows_target:
                targeted.append(at)
        changed = list(compress(range(len(users)), map(ne, before.values, after.values)))
        return Effects(counts, changed, targeted)

    def _counts(self, before: Decisions, after: Decisions) -> Counter[tuple[int, int]]:
        """Count the users by what they get, as if no target decided for any of them."""
        both_on = (int.from_bytes(before.values) & int.from_bytes(after.values)).bit_count()
        lost, gained = before.values.count(1) - both_on, after.values.count(1) - both_on
        both_off = len(before.values) - both_on - lost - gained
        by_values = {(0, 0): both_off, (0, 1): gained, (1, 0): lost, (1, 1): both_on}
        counts = Counter[tuple[int, int]]()
        for values, count in by_values.items():
            counts[self._usual_codes(*values)] += count
        return counts

    def _usual_codes(self, before: int, after: int) -> tuple[int, int]:
        plan_before, plan_after = self._plans
        return plan_before.codes[before], plan_after.codes[after]


def _states(snapshot: Snapshot, update: FlagUpdate) -> tuple[Flag, Flag]:
    """Return the flag as it is, and as it would be: with the times and the revision that it has."""
    before = snapshot.flags.get(update.key)
    if before is None:
        raise NotFound.flag(update.key)
    check_etag(f"flag {update.key!r}", update.etag, current=before.etag)
    config = update.applied_to(before.config)
    if config.segment_targets != before.config.segment_targets:
        _check_segments(snapshot, config, before=before.config)
    return before, replace(before, config=config)


def _check_segments(snapshot: Snapshot, config: FlagConfig, *, before: FlagConfig) -> None:
    keys = [target.segment_key for target in config.segment_targets]
    unknown = [key for key in keys if key not in snapshot.segments]
    others = sum(len(flag.config.segment_targets) for flag in snapshot.flags.values()) - len(before.segment_targets)
    if others + len(keys) - len(unknown) > MAX_SEGMENT_TARGETS_IN_ALL:
        raise ResourceExhausted.segment_targets(MAX_SEGMENT_TARGETS_IN_ALL)
    if unknown:
        raise NotFound.segment(unknown[0])
