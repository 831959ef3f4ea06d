"""Compares a configuration with what there is: what has to change. Pure: the store reads and writes."""

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from gatekeeper_grpc.domain.audit import SALT_BYTES, hash_evidence, subject_line
from gatekeeper_grpc.domain.configuration import (
    MEMBER,
    Configuration,
    Deletion,
    WantedFlag,
    WantedSegment,
    WantedUsers,
    errors_of,
)
from gatekeeper_grpc.domain.errors import NotFound, ResourceExhausted
from gatekeeper_grpc.domain.etag import check_etag
from gatekeeper_grpc.domain.flag import Flag, FlagConfig
from gatekeeper_grpc.domain.limits import check_visible
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.segment import Segment, SegmentConfig
from gatekeeper_grpc.domain.set_hash import EMPTY, SetHash, member_element, target_element
from gatekeeper_grpc.domain.user import User, UserProfile, changed_attributes, check_new_attribute_names

MAX_CHANGES = 1_000
"""How many resources one configuration may change."""
MAX_OTHERS = 20_000
"""How many entries a set may have of which those that a configuration does not name are removed."""
_ADVICE = "apply it in several parts, and add long lists of users by ImportTargets and AddSegmentMembers"


def too_large(what: str, **metadata: object) -> ResourceExhausted:
    """Make the error of a configuration that cannot be applied at once."""
    return ResourceExhausted(
        f"{what}: {_ADVICE}",
        reason="CONFIGURATION_TOO_LARGE",
        metadata={name: str(value) for name, value in metadata.items()},
    )


class SetOwner(NamedTuple):
    """The flag or segment whose targets or members are meant, by its key."""

    resource: ResourceType
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetState:
    """The targets of a flag or the members of a segment: those entries that a configuration is about."""

    hash: SetHash = EMPTY
    variants: Mapping[UUID, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What there is of the resources that a configuration is about, at a revision."""

    revision: int
    flags: Mapping[str, Flag]
    segments: Mapping[str, Segment]
    subjects: Mapping[str, UUID]
    """By user id; those without a subject id are absent."""
    sets: Mapping[SetOwner, SetState]
    users: Mapping[str, User] = field(default_factory=dict)
    """Those with stored attributes, by user id."""


class NewSubject(NamedTuple):
    """A person who gets a subject id, and the commitment to who they are, see `domain.audit.subject_line`."""

    subject_id: UUID
    user_id: str
    salt: bytes
    commitment: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagStep:
    """A flag to create, to update, or to delete: `config` None."""

    before: Flag | None
    config: FlagConfig | None
    field: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentStep:
    """A segment to create, to update, or to delete: `config` None."""

    before: Segment | None
    config: SegmentConfig | None
    field: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStep:
    """A set to change: whom to add and to move, by variant, and whom to remove with which variant."""

    owner: SetOwner
    added: Mapping[str, Sequence[UUID]]
    moved: Mapping[str, Sequence[UUID]]
    removed: Sequence[UUID]
    before: SetHash
    after: SetHash
    new: Sequence[NewSubject] = ()

    @property
    def subjects(self) -> tuple[UUID, ...]:
        """Everybody whose entry changes."""
        groups = (*self.added.values(), *self.moved.values(), self.removed)
        return tuple(subject for group in groups for subject in group)

    @property
    def evidence_hash(self) -> bytes | None:
        """The hash of the commitments to new subjects; None: there are none."""
        return _evidence_hash(self.new)

    def counts(self) -> dict[str, int]:
        """Return how many users are added, moved and removed."""
        groups = {"added": self.added.values(), "moved": self.moved.values(), "removed": (self.removed,)}
        return {name: sum(map(len, group)) for name, group in groups.items()}

    def document(self) -> dict[str, Any]:
        """Return whom it adds, moves and removes as JSON values, for the audit log."""
        removed = _texts(self.removed)
        if self.owner.resource is ResourceType.MEMBERS:
            return {"added": _texts(self.added.get(MEMBER, ())), "removed": removed}
        variants = {
            variant: {"added": _texts(self.added.get(variant, ())), "moved": _texts(self.moved.get(variant, ()))}
            for variant in sorted({*self.added, *self.moved})
        }
        return {"variants": variants, "removed": removed}


def _evidence_hash(people: Iterable[NewSubject]) -> bytes | None:
    lines = [subject_line(str(new.subject_id), new.commitment) for new in sorted(people)]
    return hash_evidence(lines) if lines else None


@dataclass(frozen=True, slots=True, kw_only=True)
class UserStep:
    """A stored user to create, to update, or to delete: `config` None. `new`: the user, without a subject id before."""

    subject_id: UUID
    before: User | None
    config: UserProfile | None
    new: Sequence[NewSubject] = ()

    @property
    def user_id(self) -> str:
        """The user's id."""
        profile = self.config or (self.before and self.before.profile)
        assert profile is not None  # noqa: S101 - a step has at least one side
        return profile.user_id

    @property
    def evidence_hash(self) -> bytes | None:
        """The hash of the commitment to a new subject; None: the user is none."""
        return _evidence_hash(self.new)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the attributes that change; of a deletion, all."""
        return changed_attributes(
            self.before.attributes if self.before else {}, self.config.attributes if self.config else {}
        )


Step = SegmentStep | FlagStep | SetStep | UserStep


def changed_fields(before: FlagConfig | SegmentConfig | None, after: FlagConfig | SegmentConfig) -> tuple[str, ...]:
    """Return the names of the fields in which two states differ; of a new one, those that are not its defaults."""
    base = before or type(after)(key=after.key)
    return tuple(
        one.name for one in fields(after) if getattr(after, one.name) != getattr(base, one.name) and one.name != "key"
    )


def plan(wanted: Configuration, state: State) -> tuple[Step, ...]:
    """Return what has to change, in the order of revisions; nothing, if everything is as it should be.

    Raises:
        NotFound: It is about a flag, segment or user that neither exists nor is made.
        Changed: A flag, segment or user has another etag.
        InvalidArgument: A new name or id cannot be seen.
        ResourceExhausted: More would change than may at once.
    """
    people = _People(state)
    steps: tuple[Step, ...] = (
        *_segments(wanted, state),
        *_sets(ResourceType.MEMBERS, wanted.members, _left(state.segments, wanted.segments, ()), people),
        *_flags(wanted, state),
        *_sets(ResourceType.TARGETS, wanted.targets, _left(state.flags, wanted.flags, wanted.flag_deletions), people),
        *_users(wanted, state, people),
        *_flag_deletions(wanted.flag_deletions, state),
        *_segment_deletions(wanted.segment_deletions, state),
        *_user_deletions(wanted.user_deletions, state),
    )
    if len(steps) > MAX_CHANGES:
        raise too_large(
            f"this would change {len(steps)} resources, and {MAX_CHANGES} may change at once",
            limit=MAX_CHANGES,
            wanted=len(steps),
        )
    return steps


def _segments(wanted: Configuration, state: State) -> Iterator[SegmentStep]:
    for segment in wanted.segments:
        before = state.segments.get(segment.config.key)
        with errors_of(segment.field):
            _check_seen("segment", segment.config.key, segment.etag, before)
        if before is None or before.config != segment.config:
            yield SegmentStep(before=before, config=segment.config, field=segment.field)


def _flags(wanted: Configuration, state: State) -> Iterator[FlagStep]:
    known = _left(state.segments, wanted.segments, wanted.segment_deletions)
    for flag in wanted.flags:
        before = state.flags.get(flag.config.key)
        with errors_of(flag.field, instead_of="flag"):
            _check_seen("flag", flag.config.key, flag.etag, before)
            flag.config.check_new_names(before=before.config if before else None)
        for position, target in enumerate(flag.config.segment_targets):
            if target.segment_key not in known:
                with errors_of(f"{flag.field}.segment_targets[{position}].segment_key"):
                    raise NotFound.segment(target.segment_key)
        if before is None or before.config != flag.config:
            yield FlagStep(before=before, config=flag.config, field=flag.field)


def _flag_deletions(deletions: Iterable[Deletion], state: State) -> Iterator[FlagStep]:
    for deletion in deletions:
        with errors_of(deletion.field):
            if deletion.key not in state.flags:
                raise NotFound.flag(deletion.key)
            before = state.flags[deletion.key]
            check_etag(f"flag {before.key!r}", deletion.etag, current=before.etag)
        yield FlagStep(before=before, config=None, field=deletion.field)


def _segment_deletions(deletions: Iterable[Deletion], state: State) -> Iterator[SegmentStep]:
    for deletion in deletions:
        with errors_of(deletion.field):
            if deletion.key not in state.segments:
                raise NotFound.segment(deletion.key)
            before = state.segments[deletion.key]
            check_etag(f"segment {before.key!r}", deletion.etag, current=before.etag)
        yield SegmentStep(before=before, config=None, field=deletion.field)


def _users(wanted: Configuration, state: State, people: "_People") -> Iterator[UserStep]:
    for user in wanted.users:
        before = state.users.get(user.profile.user_id)
        with errors_of(user.field, instead_of="user"):
            _check_seen("user", user.profile.user_id, user.etag, before)
            if before is None:
                check_visible("user.user_id", user.profile.user_id)
            stored = before.attributes if before else {}
            check_new_attribute_names(user.profile.attributes.keys() - stored.keys())
        if before is None or changed_attributes(stored, user.profile.attributes):
            yield people.user_step(before, user.profile)


def _user_deletions(deletions: Iterable[Deletion], state: State) -> Iterator[UserStep]:
    for deletion in deletions:
        with errors_of(deletion.field):
            if deletion.key not in state.users:
                raise NotFound.user(deletion.key)
            before = state.users[deletion.key]
            check_etag(f"user {deletion.key!r}", deletion.etag, current=before.etag)
        yield UserStep(subject_id=before.subject_id, before=before, config=None)


def _check_seen(kind: str, key: str, etag: str, before: Flag | Segment | User | None) -> None:
    """Check that a resource is in the state that its editor has seen; one with an etag must exist."""
    if before is not None:
        check_etag(f"{kind} {key!r}", etag, current=before.etag)
    elif etag:
        missing = {"flag": NotFound.flag, "segment": NotFound.segment, "user": NotFound.user}
        raise missing[kind](key)


def _left(
    existing: Iterable[str], wanted: Iterable[WantedFlag | WantedSegment], deletions: Iterable[Deletion]
) -> set[str]:
    """Return the keys that there will be."""
    return ({*existing} | {one.config.key for one in wanted}) - {deletion.key for deletion in deletions}


def _sets(
    resource: ResourceType, wanted: Iterable[WantedUsers], known: set[str], people: "_People"
) -> Iterator[SetStep]:
    by_key: defaultdict[str, list[WantedUsers]] = defaultdict(list)
    for users in wanted:
        with errors_of(users.field):
            if users.key not in known:
                raise NotFound.flag(users.key) if resource is ResourceType.TARGETS else NotFound.segment(users.key)
        by_key[users.key].append(users)
    for key, lists in by_key.items():
        step = people.step(SetOwner(resource, key), lists)
        if step.subjects:
            yield step


class _People:
    """Gives users subject ids, each once: in the step that meets them first."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._subjects = dict(state.subjects)

    def step(self, owner: SetOwner, lists: Sequence[WantedUsers]) -> SetStep:
        """Return the change of one set."""
        new: list[NewSubject] = []
        wanted = {subject: users.variant for users in lists for subject in self._subjects_of(users, new)}
        state = self._state.sets.get(owner, SetState())
        closed = {users.variant for users in lists if users.removes_others}
        removed = {s: v for s, v in state.variants.items() if v in closed and s not in wanted}
        return _step(owner, state, wanted, removed, new)

    def user_step(self, before: User | None, profile: UserProfile) -> UserStep:
        """Return the change of one stored user."""
        new: list[NewSubject] = []
        subject_id = self._subject_of(profile.user_id, new)
        return UserStep(subject_id=subject_id, before=before, config=profile, new=new)

    def _subjects_of(self, users: WantedUsers, new: list[NewSubject]) -> Iterator[UUID]:
        for position, user_id in enumerate(users.user_ids):
            if user_id not in self._subjects:
                check_visible(f"{users.field}.user_ids[{position}]", user_id)
            yield self._subject_of(user_id, new)

    def _subject_of(self, user_id: str, new: list[NewSubject]) -> UUID:
        if user_id not in self._subjects:
            new.append(_new_subject(user_id))
            self._subjects[user_id] = new[-1].subject_id
        return self._subjects[user_id]


def _new_subject(user_id: str) -> NewSubject:
    salt = secrets.token_bytes(SALT_BYTES)
    return NewSubject(uuid4(), user_id, salt, hashlib.sha256(salt + user_id.encode()).digest())


def _step(
    owner: SetOwner, state: SetState, wanted: Mapping[UUID, str], removed: Mapping[UUID, str], new: Sequence[NewSubject]
) -> SetStep:
    added: defaultdict[str, list[UUID]] = defaultdict(list)
    moved: defaultdict[str, list[UUID]] = defaultdict(list)
    for subject, variant in sorted(wanted.items()):
        if (old := state.variants.get(subject)) != variant:
            (added if old is None else moved)[variant].append(subject)
    came = [(subject, variant) for group in (added, moved) for variant, some in group.items() for subject in some]
    left = [*removed.items(), *((subject, state.variants[subject]) for some in moved.values() for subject in some)]
    after = state.hash.changed(added=_elements(owner, came), removed=_elements(owner, left))
    return SetStep(
        owner=owner, added=added, moved=moved, removed=sorted(removed), before=state.hash, after=after, new=new
    )


def _elements(owner: SetOwner, entries: Iterable[tuple[UUID, str]]) -> Iterator[bytes]:
    for subject, variant in entries:
        is_member = owner.resource is ResourceType.MEMBERS
        yield member_element(subject) if is_member else target_element(subject, variant)


def _texts(subjects: Iterable[UUID]) -> list[str]:
    return [str(subject) for subject in subjects]
