"""Hashes of the targets of flags and the members of segments, kept next to these sets for the audit log.

Each entry that changes a set holds its hash before and after, so that `gatekeeper audit reconcile` finds what was
changed behind the log.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.set_hash import EMPTY, SetHash
from gatekeeper_grpc.store.postgres.database import Connection, one

# Triggers forget the hash of a set that a transaction without this setting changes.
_COUNT_SETS = "SELECT set_config('gatekeeper.counts_sets', 'on', true)"
_UUID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTable:
    """A kind of set, owned by flags or segments: queries for hashes and elements.

    `read` is by the key of an owner, the other reads and writes by ids. `elements` are those of all sets, one a row;
    `packed` are those of some sets: the subject ids of each set that end in the same suffix, in one value.
    """

    resource: ResourceType
    read: LiteralString
    read_many: LiteralString
    write: LiteralString
    write_many: LiteralString
    elements: LiteralString
    packed: LiteralString


TARGETS = SetTable(
    resource=ResourceType.TARGETS,
    read="SELECT flag_id, targets_count, targets_sum FROM feature_flags WHERE environment = '' AND key = %(key)s",
    read_many="SELECT flag_id, targets_count, targets_sum FROM feature_flags WHERE flag_id = ANY(%(owner_ids)s)",
    write="UPDATE feature_flags SET targets_count = %(count)s, targets_sum = %(state)s WHERE flag_id = %(owner_id)s",
    write_many="""
        UPDATE feature_flags f SET targets_count = made.count, targets_sum = made.state
        FROM unnest(%(owner_ids)s::bigint[], %(counts)s::bigint[], %(states)s::bytea[]) AS made (id, count, state)
        WHERE f.flag_id = made.id
    """,
    elements="SELECT flag_id, uuid_send(subject_id) || convert_to(variant, 'UTF8') FROM targeted_users",
    packed="""
        SELECT flag_id, convert_to(variant, 'UTF8'), string_agg(uuid_send(subject_id), ''::bytea) FROM targeted_users
        WHERE flag_id = ANY(%(owner_ids)s) GROUP BY flag_id, variant
    """,
)
MEMBERS = SetTable(
    resource=ResourceType.MEMBERS,
    read="SELECT segment_id, members_count, members_sum FROM segments WHERE environment = '' AND key = %(key)s",
    read_many="SELECT segment_id, members_count, members_sum FROM segments WHERE segment_id = ANY(%(owner_ids)s)",
    write="UPDATE segments SET members_count = %(count)s, members_sum = %(state)s WHERE segment_id = %(owner_id)s",
    write_many="""
        UPDATE segments s SET members_count = made.count, members_sum = made.state
        FROM unnest(%(owner_ids)s::bigint[], %(counts)s::bigint[], %(states)s::bytea[]) AS made (id, count, state)
        WHERE s.segment_id = made.id
    """,
    elements="SELECT segment_id, uuid_send(subject_id) FROM segment_members",
    packed="""
        SELECT segment_id, ''::bytea, string_agg(uuid_send(subject_id), ''::bytea) FROM segment_members
        WHERE segment_id = ANY(%(owner_ids)s) GROUP BY segment_id
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetChange:
    """A change of one set, by its hash before and after."""

    owner_id: int
    before: SetHash
    after: SetHash

    def document(self) -> dict[str, Any]:
        """Return the change as JSON values, for the audit log."""
        return {"id": self.owner_id, "before": self.before.document(), "after": self.after.document()}


def count_sets(conn: Connection) -> None:
    """Announce that this transaction keeps the hashes of sets in step, or removes the sets with their owners."""
    conn.execute(_COUNT_SETS)


def read_hash(conn: Connection, sets: SetTable, key: str) -> Callable[[], SetHash]:
    """Ask for the hash of the set of an existing flag or segment, before a change.

    Returns:
        A function that waits for it. It reads the whole set only if the hash is unknown, in one round trip more.
    """
    reading = conn.execute(sets.read, {"key": key})

    def read() -> SetHash:
        owner_id, count, state = one(reading)
        return SetHash.from_state(count, state) if state else _compute(conn, sets, [owner_id])()[owner_id]

    return read


def read_hashes(conn: Connection, sets: SetTable, owner_ids: Sequence[int]) -> Mapping[int, SetHash]:
    """Read the hashes of the sets of existing flags or segments, by their ids; whole sets only if they are unknown."""
    rows = conn.execute(sets.read_many, {"owner_ids": list(owner_ids)}).fetchall()
    unknown = [owner_id for owner_id, _, state in rows if not state]
    known = {owner_id: SetHash.from_state(count, state) for owner_id, count, state in rows if state}
    return known | dict(_compute(conn, sets, unknown)() if unknown else {})


def write_hash(
    conn: Connection,
    sets: SetTable,
    owner_id: int,
    before: SetHash,
    *,
    added: Iterable[bytes] = (),
    removed: Iterable[bytes] = (),
) -> SetChange:
    """Store the hash of a set from which elements were removed, or to which elements were added, and return both."""
    after = before.changed(added=added, removed=removed)
    conn.execute(sets.write, {"owner_id": owner_id, "count": after.count, "state": after.state})
    return SetChange(owner_id=owner_id, before=before, after=after)


def _compute(conn: Connection, sets: SetTable, owner_ids: Sequence[int]) -> Callable[[], Mapping[int, SetHash]]:
    """Ask for all elements of some sets, 16 bytes each; return a function that waits for them and hashes the sets."""
    reading = conn.execute(sets.packed, {"owner_ids": owner_ids}, binary=True)

    def compute() -> Mapping[int, SetHash]:
        hashes = dict.fromkeys(owner_ids, EMPTY)
        for owner_id, suffix, packed in reading:
            hashes[owner_id] = hashes[owner_id].changed(added=_unpacked(packed, suffix))
        return hashes

    return compute


def _unpacked(packed: bytes, suffix: bytes) -> Iterator[bytes]:
    return (packed[at : at + _UUID_BYTES] + suffix for at in range(0, len(packed), _UUID_BYTES))


# --- Erasure ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftSets:
    """The sets that a person was removed from: how many of each kind, and each as JSON values, for the audit log."""

    targets: int
    memberships: int
    documents: list[dict[str, Any]]


class JoinedSet(NamedTuple):
    """A set that a person is in, as which element; and its stored hash, None: unknown."""

    kind: str
    key: str
    owner_id: int
    element: bytes
    size: int | None
    state: bytes | None

    @property
    def hash(self) -> SetHash | None:
        """Its hash; None: unknown."""
        return SetHash.from_state(self.size or 0, self.state) if self.state else None


_JOINED = """
    WITH person AS (SELECT subject_id FROM subjects WHERE user_id = %(user_id)s)
    SELECT 'targets', f.key, f.flag_id, uuid_send(t.subject_id) || convert_to(t.variant, 'UTF8'),
           f.targets_count, f.targets_sum
    FROM person JOIN targeted_users t USING (subject_id) JOIN feature_flags f USING (flag_id)
    UNION ALL
    SELECT 'members', s.key, s.segment_id, uuid_send(m.subject_id), s.members_count, s.members_sum
    FROM person JOIN segment_members m USING (subject_id) JOIN segments s USING (segment_id)
    ORDER BY 1, 2
"""

_LEAVE = """
    WITH targets AS (DELETE FROM targeted_users WHERE subject_id = %(subject_id)s)
    DELETE FROM segment_members WHERE subject_id = %(subject_id)s
"""

_KINDS = {sets.resource.value: sets for sets in (TARGETS, MEMBERS)}


def joined_sets(conn: Connection, user_id: str) -> Callable[[], list[JoinedSet]]:
    """Ask for the sets that a person is in; return a function that waits for them."""
    reading = conn.execute(_JOINED, {"user_id": user_id})
    return lambda: [JoinedSet._make(row) for row in reading]


def leave_sets(conn: Connection, subject_id: UUID, joined: Sequence[JoinedSet]) -> LeftSets:
    """Remove a person from all targets and members. Waits only for sets whose hash is unknown, once for all of them."""
    count_sets(conn)
    before = _hashes(conn, joined)
    documents = [_leave(conn, one_set, before[one_set.kind, one_set.owner_id]) for one_set in joined]
    conn.execute(_LEAVE, {"subject_id": subject_id})
    targets = sum(one_set.kind == ResourceType.TARGETS for one_set in joined)
    return LeftSets(targets=targets, memberships=len(joined) - targets, documents=documents)


def _hashes(conn: Connection, joined: Sequence[JoinedSet]) -> Mapping[tuple[str, int], SetHash]:
    """Return the hash of each set, by kind and owner; reads all sets whose hash is unknown, in one round trip."""
    known = {(one_set.kind, one_set.owner_id): one_set.hash for one_set in joined if one_set.hash}
    unknown = {kind: [s.owner_id for s in joined if s.kind == kind and not s.hash] for kind in _KINDS}
    computing = {kind: _compute(conn, _KINDS[kind], owner_ids) for kind, owner_ids in unknown.items() if owner_ids}
    return known | {(kind, owner_id): found for kind in computing for owner_id, found in computing[kind]().items()}


def _leave(conn: Connection, joined: JoinedSet, before: SetHash) -> dict[str, Any]:
    change = write_hash(conn, _KINDS[joined.kind], joined.owner_id, before, removed=[joined.element])
    return {"resource_type": joined.kind, "key": joined.key, **change.document()}
