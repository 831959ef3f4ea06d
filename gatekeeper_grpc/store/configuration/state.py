"""Reads what there is of the resources that a configuration is about: by sets, not one by one."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import LiteralString
from uuid import UUID

from psycopg.rows import kwargs_row

from gatekeeper_grpc.domain.configuration import Configuration, WantedUsers, errors_of
from gatekeeper_grpc.domain.configuration_plan import MAX_OTHERS, SetOwner, SetState, State, too_large
from gatekeeper_grpc.domain.flag import Flag
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.segment import Segment
from gatekeeper_grpc.domain.user import User
from gatekeeper_grpc.store.flags import SELECT_FLAGS, flag_from_row
from gatekeeper_grpc.store.hashed_sets import MEMBERS, TARGETS, SetTable, read_hashes
from gatekeeper_grpc.store.postgres.database import Connection
from gatekeeper_grpc.store.segments import SELECT_SEGMENTS, segment_from_row
from gatekeeper_grpc.store.users import SELECT_USERS, user_from_row

FLAGS_BY_KEY = SELECT_FLAGS + "WHERE f.environment = '' AND f.key = ANY(%(keys)s)"
SEGMENTS_BY_KEY = SELECT_SEGMENTS + "WHERE environment = '' AND key = ANY(%(keys)s)"
USERS_BY_ID = SELECT_USERS + "WHERE s.user_id = ANY(%(user_ids)s)"
SUBJECTS_BY_USER = "SELECT user_id, subject_id FROM subjects WHERE user_id = ANY(%(user_ids)s)"


def read_state(conn: Connection, wanted: Configuration, revision: int) -> State:
    """Read what there is, within a transaction that sees this revision.

    Raises:
        ResourceExhausted: A set is too large to remove from it all that the configuration does not name.
    """
    flag_keys = {flag.config.key for flag in wanted.flags} | {one.key for one in wanted.flag_deletions}
    flags = _flags(conn, flag_keys | {users.key for users in wanted.targets})
    segments = _segments(conn, _segment_keys(wanted))
    stored = {user.profile.user_id for user in wanted.users}
    user_ids = stored.union(user_id for users in (*wanted.targets, *wanted.members) for user_id in users.user_ids)
    found = conn.execute(SUBJECTS_BY_USER, {"user_ids": list(user_ids)}).fetchall() if user_ids else []
    subjects: dict[str, UUID] = dict(found)
    return State(
        revision=revision,
        flags=flags,
        segments=segments,
        subjects=subjects,
        users=_users(conn, stored | {one.key for one in wanted.user_deletions}),
        sets={
            **_sets(conn, _TARGETS, wanted.targets, {key: flag.flag_id for key, flag in flags.items()}, subjects),
            **_sets(conn, _MEMBERS, wanted.members, {key: one.segment_id for key, one in segments.items()}, subjects),
        },
    )


def _segment_keys(wanted: Configuration) -> set[str]:
    targeted = {target.segment_key for flag in wanted.flags for target in flag.config.segment_targets}
    named = {segment.config.key for segment in wanted.segments}
    return targeted | named | {one.key for one in wanted.members} | {one.key for one in wanted.segment_deletions}


def _flags(conn: Connection, keys: Iterable[str]) -> dict[str, Flag]:
    with conn.cursor(row_factory=kwargs_row(flag_from_row)) as cursor:
        return {flag.key: flag for flag in cursor.execute(FLAGS_BY_KEY, {"keys": list(keys)})}


def _segments(conn: Connection, keys: Iterable[str]) -> dict[str, Segment]:
    with conn.cursor(row_factory=kwargs_row(segment_from_row)) as cursor:
        return {segment.key: segment for segment in cursor.execute(SEGMENTS_BY_KEY, {"keys": list(keys)})}


def _users(conn: Connection, user_ids: Iterable[str]) -> dict[str, User]:
    wanted = list(user_ids)
    if not wanted:
        return {}
    with conn.cursor(row_factory=kwargs_row(user_from_row)) as cursor:
        return {user.user_id: user for user in cursor.execute(USERS_BY_ID, {"user_ids": wanted})}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """Queries for entries of a kind of set, as rows of owner id, subject id and variant."""

    table: SetTable
    of_users: LiteralString
    of_sets: LiteralString


_TARGETS = _Entries(
    table=TARGETS,
    of_users="""
        SELECT t.flag_id, t.subject_id, t.variant
        FROM unnest(%(owner_ids)s::bigint[], %(subjects)s::uuid[]) AS wanted (flag_id, subject_id)
        JOIN targeted_users t USING (flag_id, subject_id)
    """,
    of_sets="SELECT flag_id, subject_id, variant FROM targeted_users WHERE flag_id = ANY(%(owner_ids)s)",
)
_MEMBERS = _Entries(
    table=MEMBERS,
    of_users="""
        SELECT m.segment_id, m.subject_id, ''
        FROM unnest(%(owner_ids)s::bigint[], %(subjects)s::uuid[]) AS wanted (segment_id, subject_id)
        JOIN segment_members m USING (segment_id, subject_id)
    """,
    of_sets="SELECT segment_id, subject_id, '' FROM segment_members WHERE segment_id = ANY(%(owner_ids)s)",
)


def _sets(
    conn: Connection,
    entries: _Entries,
    wanted: Iterable[WantedUsers],
    owner_ids: Mapping[str, int],
    subjects: Mapping[str, UUID],
) -> dict[SetOwner, SetState]:
    """Read the sets of existing owners: all entries of those from which others are removed, else those of the users."""
    lists = [users for users in wanted if users.key in owner_ids]
    if not lists:
        return {}
    hashes = read_hashes(conn, entries.table, sorted({owner_ids[users.key] for users in lists}))
    for users in lists:
        if users.removes_others and (count := hashes[owner_ids[users.key]].count) > MAX_OTHERS:
            with errors_of(users.field):
                raise too_large(f"{users.key!r} has {count} users, and {MAX_OTHERS} may be compared", limit=MAX_OTHERS)
    found: defaultdict[int, dict[UUID, str]] = defaultdict(dict)
    for query, parameters in _queries(entries, lists, owner_ids, subjects):
        for owner_id, subject, variant in conn.execute(query, parameters, binary=True):
            found[owner_id][subject] = variant
    return {
        SetOwner(ResourceType(entries.table.resource), key): SetState(hash=hashes[owner_id], variants=found[owner_id])
        for key, owner_id in owner_ids.items()
        if owner_id in hashes
    }


def _queries(
    entries: _Entries, lists: Iterable[WantedUsers], owner_ids: Mapping[str, int], subjects: Mapping[str, UUID]
) -> list[tuple[LiteralString, dict[str, object]]]:
    pairs = [
        (owner_ids[users.key], subjects[user_id])
        for users in lists
        for user_id in users.user_ids
        if user_id in subjects
    ]
    of_users = {"owner_ids": [owner for owner, _ in pairs], "subjects": [subject for _, subject in pairs]}
    closed = {owner_ids[users.key] for users in lists if users.removes_others}
    of_sets = [(entries.of_sets, {"owner_ids": sorted(closed)})] if closed else []
    return [(entries.of_users, of_users), *of_sets]  # type: ignore[list-item]
