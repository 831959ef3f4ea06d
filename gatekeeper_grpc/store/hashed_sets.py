"""Hashes of the targets of flags and the members of segments, kept next to these sets for the audit log.

Each entry that changes a set holds its hash before and after, so that `gatekeeper audit reconcile` finds what was
changed behind the log.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.set_hash import EMPTY, SetHash
from gatekeeper_grpc.store.postgres.database import Connection, one

# Triggers forget the hash of a set that a transaction without this setting changes.
_COUNT_SETS = "SELECT set_config('gatekeeper.counts_sets', 'on', true)"
_FETCH = "FETCH FORWARD 10000 FROM elements"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTable:
    """A kind of set: queries for its hash and for elements, by the id of the flag or segment that owns the set."""

    resource: ResourceType
    read: LiteralString
    write: LiteralString
    elements: LiteralString
    owner: LiteralString


TARGETS = SetTable(
    resource=ResourceType.TARGETS,
    read="SELECT targets_count, targets_sum FROM feature_flags WHERE flag_id = %(owner_id)s",
    write="UPDATE feature_flags SET targets_count = %(count)s, targets_sum = %(state)s WHERE flag_id = %(owner_id)s",
    elements="SELECT flag_id, uuid_send(subject_id) || convert_to(variant, 'UTF8') FROM targeted_users",
    owner=" WHERE flag_id = %(owner_id)s",
)
MEMBERS = SetTable(
    resource=ResourceType.MEMBERS,
    read="SELECT members_count, members_sum FROM segments WHERE segment_id = %(owner_id)s",
    write="UPDATE segments SET members_count = %(count)s, members_sum = %(state)s WHERE segment_id = %(owner_id)s",
    elements="SELECT segment_id, uuid_send(subject_id) FROM segment_members",
    owner=" WHERE segment_id = %(owner_id)s",
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


def read_hash(conn: Connection, sets: SetTable, owner_id: int) -> SetHash:
    """Return the hash of a set before a change; reads the whole set only if the hash is unknown."""
    count, state = one(conn.execute(sets.read, {"owner_id": owner_id}))
    return SetHash.from_state(count, state) if state else _computed(conn, sets, owner_id)


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


def _computed(conn: Connection, sets: SetTable, owner_id: int) -> SetHash:
    conn.execute("DECLARE elements NO SCROLL CURSOR FOR " + sets.elements + sets.owner, {"owner_id": owner_id})
    computed = EMPTY.changed(added=(element for _, element in _fetched(conn)))
    conn.execute("CLOSE elements")
    return computed


def _fetched(conn: Connection) -> Iterator[tuple[int, bytes]]:
    """Yield the rows of the cursor; not by psycopg's, which is no part of a pipeline."""
    while rows := conn.execute(_FETCH, binary=True).fetchall():
        yield from rows


# --- Erasure ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftSets:
    """The sets that a person was removed from: how many of each kind, and each as JSON values, for the audit log."""

    targets: int
    memberships: int
    documents: list[dict[str, Any]]


_JOINED = """
    SELECT 'targets', f.key, f.flag_id, uuid_send(t.subject_id) || convert_to(t.variant, 'UTF8')
    FROM targeted_users t JOIN feature_flags f USING (flag_id) WHERE t.subject_id = %(subject_id)s
    UNION ALL
    SELECT 'members', s.key, s.segment_id, uuid_send(m.subject_id)
    FROM segment_members m JOIN segments s USING (segment_id) WHERE m.subject_id = %(subject_id)s
    ORDER BY 1, 2
"""

_LEAVE = """
    WITH targets AS (DELETE FROM targeted_users WHERE subject_id = %(subject_id)s)
    DELETE FROM segment_members WHERE subject_id = %(subject_id)s
"""

_KINDS = {sets.resource.value: sets for sets in (TARGETS, MEMBERS)}


def leave_sets(conn: Connection, subject_id: UUID) -> LeftSets:
    """Remove a person from all targets and members."""
    count_sets(conn)
    joined = conn.execute(_JOINED, {"subject_id": subject_id}).fetchall()
    documents = [_leave(conn, *one_set) for one_set in joined]
    conn.execute(_LEAVE, {"subject_id": subject_id})
    targets = sum(kind == ResourceType.TARGETS for kind, *_ in joined)
    return LeftSets(targets=targets, memberships=len(joined) - targets, documents=documents)


def _leave(conn: Connection, kind: str, key: str, owner_id: int, element: bytes) -> dict[str, Any]:
    sets = _KINDS[kind]
    change = write_hash(conn, sets, owner_id, read_hash(conn, sets, owner_id), removed=[element])
    return {"resource_type": kind, "key": key, **change.document()}
