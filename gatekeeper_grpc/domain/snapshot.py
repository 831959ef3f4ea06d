"""All flags at one revision, ready to be evaluated. Immutable: a change makes another snapshot."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from gatekeeper_grpc.domain.attribute import Attributes
from gatekeeper_grpc.domain.attribute_index import AttributeEntry, AttributeIndex, UserAttributes
from gatekeeper_grpc.domain.attribute_memo import AttributeMemo
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail
from gatekeeper_grpc.domain.evaluator import FlagPlan, SegmentTest, compile_flag, evaluate
from gatekeeper_grpc.domain.flag import Flag
from gatekeeper_grpc.domain.flag_change import FlagChanges
from gatekeeper_grpc.domain.segment import Segment
from gatekeeper_grpc.domain.selection import NO_EXCEPTIONS, Decisions, Selection, Selections
from gatekeeper_grpc.domain.text_search import TextSearch
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex

_Resource = TypeVar("_Resource", Flag, Segment, FlagPlan)
# The id in a snapshot that no database made.
NO_INSTALLATION: Final = UUID(int=0)
_NO_TAGS: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDelta:
    """What changed up to `revision`: flags and segments by key (None: deleted), entries of the user indexes.

    `named_attributes` are the stored values of attributes that a changed segment names and the snapshot lacks.
    """

    revision: int
    audit_hash: bytes = b""
    flags: Mapping[str, Flag | None] = field(default_factory=dict)
    segments: Mapping[str, Segment | None] = field(default_factory=dict)
    targets: Sequence[UserEntry] = ()
    members: Sequence[UserEntry] = ()
    named_attributes: AttributeIndex = field(default_factory=AttributeIndex)
    attributes: Sequence[AttributeEntry] = ()


class Commit(NamedTuple):
    """What a revision touched, and when it was committed."""

    revision: int
    resource_type: str
    at: float
    """In monotonic seconds of this machine: when the database was asked, less the age of the revision on the clock of
    the database. So no two clocks are compared.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All flags and segments at `revision` of an installation, by key and in key order, with the users they name.

    Revisions of different installations cannot be compared. `audit_hash` is the hash of the audit entry of the
    revision, which is chained to all before: histories with the same hash are the same. Empty: unknown. `whole_at` is
    the revision of the last complete load; deltas lead from there to `revision`.

    `targets` has an index in `VARIANTS` for each flag id of a user; `members` the users of each segment id;
    `attributes` the stored values of the attributes that segments name. `plans` and `search` (for the texts of CONTAINS
    conditions) are derived from the rest: make snapshots with `build` and `after`, which keep them consistent.

    `changes` are the flag changes that lead here, for watchers, as far as the source knows them; None: unknown.
    `commits` are the revisions that a delta brought. Neither is a part of the state.
    """

    installation_id: UUID
    revision: int
    whole_at: int
    flags: Mapping[str, Flag]
    segments: Mapping[str, Segment]
    targets: UserIndex
    members: UserIndex
    attributes: AttributeIndex
    plans: Mapping[str, FlagPlan]
    search: TextSearch = field(default_factory=TextSearch, compare=False, repr=False)
    audit_hash: bytes = b""
    changes: FlagChanges | None = field(default=None, compare=False, repr=False)
    commits: Sequence[Commit] = field(default=(), compare=False, repr=False)
    _selections: Selections = field(default_factory=Selections, init=False, compare=False, repr=False)

    @classmethod
    def build(
        cls,
        *,
        revision: int,
        installation_id: UUID = NO_INSTALLATION,
        audit_hash: bytes = b"",
        whole_at: int | None = None,
        flags: Iterable[Flag] = (),
        segments: Iterable[Segment] = (),
        targets: UserIndex | None = None,
        members: UserIndex | None = None,
        attributes: AttributeIndex | None = None,
        changes: FlagChanges | None = None,
        sharing: "Snapshot | None" = None,
    ) -> "Snapshot":
        """Build a snapshot from everything that it contains. Without `whole_at`, it was loaded at `revision`.

        Plans that `sharing` compiled are reused for flag objects that both contain.
        """
        targets = targets or UserIndex()
        by_key = {flag.key: flag for flag in sorted(flags, key=lambda flag: flag.key)}
        segments_by_key = {segment.key: segment for segment in sorted(segments, key=lambda segment: segment.key)}
        return cls(
            installation_id=installation_id,
            revision=revision,
            audit_hash=audit_hash,
            whole_at=revision if whole_at is None else whole_at,
            flags=by_key,
            segments=segments_by_key,
            targets=targets,
            members=members or UserIndex(),
            # An empty index may still name attributes for which no user has a value.
            attributes=AttributeIndex() if attributes is None else attributes,
            plans={
                key: _compiled_before(flag, targets, sharing) or _compile(flag, targets) for key, flag in by_key.items()
            },
            search=_search_for(segments_by_key.values(), before=sharing),
            changes=changes,
        )

    def after(self, delta: SnapshotDelta) -> "Snapshot":
        """Return the snapshot after a delta; takes time proportional to the delta, and a few dict copies."""
        flags = _patched(self.flags, delta.flags)
        segments = _patched(self.segments, delta.segments)
        targets = self.targets.with_entries(delta.targets)
        retargeted = {entry.owner_id for entry in delta.targets}
        touched = (
            {*delta.flags, *(key for key, flag in flags.items() if flag.flag_id in retargeted)}
            if retargeted
            else delta.flags
        )
        return Snapshot(
            installation_id=self.installation_id,
            revision=delta.revision,
            audit_hash=delta.audit_hash,
            whole_at=self.whole_at,
            flags=flags,
            segments=segments,
            targets=targets,
            members=self.members.with_entries(delta.members),
            attributes=_patched_attributes(self.attributes, segments, delta),
            plans=_patched(
                self.plans, {key: _compile(flags[key], targets) if key in flags else None for key in touched}
            ),
            search=_search_for(segments.values(), before=self) if delta.segments else self.search,
        )

    def selected(self, flag_keys: tuple[str, ...]) -> Selection | None:
        """Return what `select` has made of these keys before; None if it has not, or that is forgotten."""
        return self._selections.get(flag_keys)

    def select(self, flag_keys: Iterable[str]) -> Selection:
        """Find the flags that a request names; no keys: all flags."""
        keys = tuple(flag_keys)
        known = self._selections.get(keys)
        return known if known is not None else self._selections.add(keys, self._select(keys))

    def _select(self, flag_keys: tuple[str, ...]) -> Selection:
        if not flag_keys:
            return Selection(tuple(self.plans.values()), revision=self.revision)
        return Selection(
            tuple(plan for key in flag_keys if (plan := self.plans.get(key))),
            unknown_flag_keys=tuple(key for key in flag_keys if key not in self.plans),
            are_named=True,
            revision=self.revision,
        )

    def evaluate(self, plans: Iterable[FlagPlan], context: EvaluationContext) -> list[EvaluationDetail]:
        """Evaluate flags of this snapshot for one user, in order."""
        targeted = _NO_TAGS if context.user_id is None else self.targets.find(context.user_id)
        in_segment = self._segment_test(context)
        return [evaluate(plan, context, targeted, in_segment) for plan in plans]

    def decide(self, selection: Selection, context: EvaluationContext) -> Decisions:
        """Decide the flags of a selection for one user: the values that `evaluate` gives, in a fraction of the time."""
        if context.user is None:
            return selection.of_details(self.evaluate(selection.plans, context))
        values = selection.draws.of_one(context.user)
        return (
            _excepting(values, self._exceptions(selection, context)) if selection.has_exceptions else Decisions(values)
        )

    def decide_all(self, selection: Selection, user_ids: Sequence[str], users: Sequence[bytes]) -> Decisions:
        """Decide the flags of a selection for users without attributes, given by their ids, as text and in UTF-8."""
        values = selection.draws.of_many(users)
        if not selection.has_exceptions:
            return Decisions(values, users=len(users))
        exceptions = {
            first + position: detail
            for first, user_id in zip(range(0, len(values), len(selection.plans)), user_ids, strict=True)
            for position, detail in self._exceptions(selection, EvaluationContext(user_id=user_id)).items()
        }
        return _excepting(values, exceptions, users=len(users))

    def _exceptions(self, selection: Selection, context: EvaluationContext) -> Mapping[int, EvaluationDetail]:
        """Evaluate the flags of a selection that a target or a segment may decide for a user; by their positions."""
        targeted = self.targets.find(context.user_id) if context.user_id and selection.positions else _NO_TAGS
        if not (targeted or selection.aimed):
            return NO_EXCEPTIONS
        in_segment = self._segment_test(context)
        at = {selection.positions[flag_id] for flag_id in targeted if flag_id in selection.positions}
        return {
            position: evaluate(selection.plans[position], context, targeted, in_segment)
            for position in at.union(selection.aimed)
        }

    def _segment_test(self, context: EvaluationContext) -> SegmentTest:
        """Return a function that says whether the user is in a segment, and tests each segment at most once."""
        known: dict[str, bool] = {}
        # Made for the first segment that is tested: most evaluations test none.
        test: Callable[[Segment], bool] | None = None

        def in_segment(key: str) -> bool:
            nonlocal test
            if key not in known:
                test = test or self._membership_test(context)
                known[key] = test(self.segments[key])
            return known[key]

        return in_segment

    def _membership_test(self, context: EvaluationContext) -> Callable[[Segment], bool]:
        attributes, memo = self._attributes_of(context), AttributeMemo(self.search)
        member_of = _NO_TAGS if context.user_id is None else self.members.find(context.user_id)
        return lambda segment: segment.segment_id in member_of or segment.conditions_match(attributes, memo)

    def _attributes_of(self, context: EvaluationContext) -> Attributes:
        if context.user_id is None or not self.attributes:
            return context.attributes
        return UserAttributes(context.user_id, context.attributes, self.attributes)


def _excepting(values: bytes, exceptions: Mapping[int, EvaluationDetail], *, users: int = 1) -> Decisions:
    if not exceptions:
        return Decisions(values, users=users)
    changed = bytearray(values)
    for at, detail in exceptions.items():
        changed[at] = detail.value
    return Decisions(bytes(changed), exceptions, users)


def _compile(flag: Flag, targets: UserIndex) -> FlagPlan:
    return compile_flag(flag, has_targets=targets.count(flag.flag_id) > 0)


def _compiled_before(flag: Flag, targets: UserIndex, before: Snapshot | None) -> FlagPlan | None:
    """Return the plan that another snapshot compiled from the same object; None if it would differ now."""
    if before is None or before.flags.get(flag.key) is not flag:
        return None
    was_targeted = before.targets.count(flag.flag_id) > 0
    return before.plans[flag.key] if was_targeted == (targets.count(flag.flag_id) > 0) else None


def _search_for(segments: Iterable[Segment], *, before: Snapshot | None) -> TextSearch:
    """Return a search for the texts of these segments; the one of a snapshot `before` if that is for the same texts."""
    texts = frozenset[str]().union(*(segment.config.sought_texts() for segment in segments))
    return before.search if before is not None and before.search.texts == texts else TextSearch(texts)


def _patched_attributes(
    attributes: AttributeIndex, segments: Mapping[str, Segment], delta: SnapshotDelta
) -> AttributeIndex:
    """Return the index after a delta that led to `segments`: it has the attributes that they name, and no others."""
    patched = attributes.joined_with(delta.named_attributes).with_entries(delta.attributes)
    return patched.restricted_to(named_by(segments.values())) if delta.segments else patched


def named_by(segments: Iterable[Segment]) -> frozenset[str]:
    """Return the top-level attributes that the conditions of these segments test."""
    return frozenset(name for segment in segments for name in segment.attribute_names())


def _patched(resources: Mapping[str, _Resource], changes: Mapping[str, _Resource | None]) -> Mapping[str, _Resource]:
    """Return a copy with the changes, still in key order; the same mapping if there are none."""
    if not changes:
        return resources
    patched = dict(resources)
    for key, resource in changes.items():
        if resource is None:
            patched.pop(key, None)
        else:
            patched[key] = resource
    # Of the changed keys alone: comparing all of them would cost as much as the copy.
    is_any_new = any(key in patched and key not in resources for key in changes)
    return dict(sorted(patched.items())) if is_any_new else patched
