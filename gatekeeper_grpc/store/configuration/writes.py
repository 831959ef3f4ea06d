"""Writes the steps of a plan: one statement for all resources of a kind, however many there are."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, LiteralString, TypeVar
from uuid import UUID

from gatekeeper_grpc.domain.configuration import errors_of
from gatekeeper_grpc.domain.configuration_plan import FlagStep, SegmentStep, SetStep, Step, UserStep
from gatekeeper_grpc.domain.flag import Flag
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.segment import Segment
from gatekeeper_grpc.domain.set_hash import EMPTY
from gatekeeper_grpc.domain.user import User
from gatekeeper_grpc.store.attribute_cap import check_attribute_cap, count_stored_values
from gatekeeper_grpc.store.flags import FLAG_COLUMNS, flag_columns
from gatekeeper_grpc.store.hashed_sets import MEMBERS, TARGETS, count_sets
from gatekeeper_grpc.store.mutations import Head
from gatekeeper_grpc.store.postgres.database import Connection
from gatekeeper_grpc.store.quotas import Quotas, check_segment_targets
from gatekeeper_grpc.store.segments import check_caps, check_unused, segment_columns

Resource = TypeVar("Resource", Flag, Segment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """A step with what its revision and audit entry will be."""

    step: Step
    head: Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What there is afterwards, of what was created or updated: by key, users by subject id."""

    flags: Mapping[str, Flag]
    segments: Mapping[str, Segment]
    users: Mapping[UUID, User]


def write_steps(
    conn: Connection,
    steps: Sequence[Numbered],
    *,
    known: Mapping[str, Segment],
    owners: Mapping[str, Flag],
    quotas: Quotas,
) -> Written:
    """Write all steps, within a transaction that holds the head.

    Args:
        conn: The transaction.
        steps: What to change, numbered in the order of revisions.
        known: The segments that steps name, as they were.
        owners: The flags that steps name, as they were.
        quotas: How much an installation may have.

    Raises:
        FailedPrecondition: A flag uses a segment that is deleted.
        ResourceExhausted: A quota or a cap is reached.
    """
    count_sets(conn)
    segments = _write_segments(conn, steps, quotas)
    segment_ids = {key: segment.segment_id for key, segment in {**known, **segments}.items()}
    flags = _write_flags(conn, steps, segment_ids, quotas)
    flag_ids = {key: flag.flag_id for key, flag in {**owners, **flags}.items()}
    sets = [(one, one.step) for one in steps if isinstance(one.step, SetStep)]
    _write_people(conn, [(one, one.step) for one in steps if isinstance(one.step, SetStep | UserStep)])
    _write_targets(conn, [step for _, step in sets if step.owner.resource is ResourceType.TARGETS], flag_ids)
    _write_members(conn, [step for _, step in sets if step.owner.resource is ResourceType.MEMBERS], segment_ids)
    users = _write_users(conn, steps, quotas)
    _delete(conn, steps)
    return Written(flags=flags, segments=segments, users=users)


# --- Segments and flags -----------------------------------------------------------------------------------------------

_INSERT_SEGMENTS = """
    INSERT INTO segments (key, description, match, conditions, attribute_names, scanned_values,
                          create_time, update_time, revision, members_count, members_sum)
    SELECT key, description, match, conditions, attribute_names, scanned_values,
           %(time)s, %(time)s, revision, 0, %(empty)s
    FROM jsonb_populate_recordset(NULL::segments, %(rows)s::jsonb)
    RETURNING key, segment_id
"""
_UPDATE_SEGMENTS = """
    UPDATE segments s
    SET description = made.description, match = made.match, conditions = made.conditions,
        attribute_names = made.attribute_names, scanned_values = made.scanned_values,
        update_time = %(time)s, revision = made.revision
    FROM jsonb_populate_recordset(NULL::segments, %(rows)s::jsonb) AS made
    WHERE s.segment_id = made.segment_id
"""
_MADE_COLUMNS: LiteralString = ", ".join(["made." + column for column in FLAG_COLUMNS])
_COLUMNS: LiteralString = ", ".join(FLAG_COLUMNS)
_INSERT_FLAGS: LiteralString = """
    INSERT INTO feature_flags ({columns}, create_time, update_time, revision, targets_count, targets_sum)
    SELECT {made}, %(time)s, %(time)s, revision, 0, %(empty)s
    FROM jsonb_populate_recordset(NULL::feature_flags, %(rows)s::jsonb) AS made
    RETURNING key, flag_id
""".replace("{columns}", _COLUMNS).replace("{made}", _MADE_COLUMNS)
_UPDATE_FLAGS: LiteralString = """
    UPDATE feature_flags f SET ({columns}, update_time, revision) = ({made}, %(time)s, made.revision)
    FROM jsonb_populate_recordset(NULL::feature_flags, %(rows)s::jsonb) AS made
    WHERE f.flag_id = made.flag_id
""".replace("{columns}", _COLUMNS).replace("{made}", _MADE_COLUMNS)
_FORGET_SEGMENT_TARGETS = "DELETE FROM flag_segments WHERE flag_id = ANY(%(flag_ids)s)"
_INSERT_SEGMENT_TARGETS = """
    INSERT INTO flag_segments (flag_id, position, segment_id, variant)
    SELECT * FROM unnest(%(flag_ids)s::bigint[], %(positions)s::smallint[], %(segment_ids)s::bigint[],
                         %(variants)s::text[])
"""


def _write_segments(conn: Connection, steps: Iterable[Numbered], quotas: Quotas) -> dict[str, Segment]:
    made = [(one.head, one.step) for one in steps if isinstance(one.step, SegmentStep) and one.step.config]
    if not made:
        return {}
    rows = [
        {
            **segment_columns(step.config),
            "revision": head.revision,
            "segment_id": step.before and step.before.segment_id,
        }
        for head, step in made
        if step.config
    ]
    ids = _write(conn, rows, "segment_id", made[0][0], insert=_INSERT_SEGMENTS, update=_UPDATE_SEGMENTS)
    if any(step.before is None for _, step in made):
        quotas.check(conn, "segments")
    check_caps(conn, [step.config for _, step in made if step.config])
    return {
        step.config.key: Segment(segment_id=ids[step.config.key], config=step.config, **_version(head, step.before))
        for head, step in made
        if step.config
    }


def _write_flags(
    conn: Connection, steps: Iterable[Numbered], segment_ids: Mapping[str, int], quotas: Quotas
) -> dict[str, Flag]:
    made = [(one.head, one.step) for one in steps if isinstance(one.step, FlagStep) and one.step.config]
    if not made:
        return {}
    rows = [
        {**flag_columns(step.config), "revision": head.revision, "flag_id": step.before and step.before.flag_id}
        for head, step in made
        if step.config
    ]
    ids = _write(conn, rows, "flag_id", made[0][0], insert=_INSERT_FLAGS, update=_UPDATE_FLAGS)
    _write_segment_targets(conn, [step for _, step in made], ids, segment_ids)
    if any(step.before is None for _, step in made):
        quotas.check(conn, "flags")
    return {
        step.config.key: Flag(flag_id=ids[step.config.key], config=step.config, **_version(head, step.before))
        for head, step in made
        if step.config
    }


def _write(
    conn: Connection,
    rows: Sequence[Mapping[str, Any]],
    identity: str,
    head: Head,
    *,
    insert: LiteralString,
    update: LiteralString,
) -> dict[str, int]:
    """Insert the rows without an identity, update the others, and return the identities by key."""
    ids = {row["key"]: row[identity] for row in rows if row[identity] is not None}
    new, old = [row for row in rows if row[identity] is None], [row for row in rows if row[identity] is not None]
    if old:
        conn.execute(update, {"rows": json.dumps(old), "time": head.create_time})
    if new:
        parameters = {"rows": json.dumps(new), "time": head.create_time, "empty": EMPTY.state}
        ids |= dict(conn.execute(insert, parameters).fetchall())
    return ids


def _version(head: Head, before: Flag | Segment | User | None) -> dict[str, Any]:
    create_time = before.create_time if before else head.create_time
    return {"create_time": create_time, "update_time": head.create_time, "revision": head.revision}


def _write_segment_targets(
    conn: Connection, steps: Iterable[FlagStep], flag_ids: Mapping[str, int], segment_ids: Mapping[str, int]
) -> None:
    changed = [
        step.config
        for step in steps
        if step.config and step.config.segment_targets != (step.before.config.segment_targets if step.before else ())
    ]
    if not changed:
        return
    rows = [
        (flag_ids[config.key], position, segment_ids[target.segment_key], target.variant)
        for config in changed
        for position, target in enumerate(config.segment_targets)
    ]
    conn.execute(_FORGET_SEGMENT_TARGETS, {"flag_ids": [flag_ids[config.key] for config in changed]})
    ids, positions, targeted, variants = _columns(rows, 4)
    columns = {"flag_ids": ids, "positions": positions, "segment_ids": targeted, "variants": variants}
    conn.execute(_INSERT_SEGMENT_TARGETS, columns)
    check_segment_targets(conn)


# --- Targets and members ----------------------------------------------------------------------------------------------

_INSERT_SUBJECTS = """
    INSERT INTO subjects (subject_id, user_id, salt)
    SELECT subject_id, user_id, decode(salt, 'hex')
    FROM unnest(%(subjects)s::uuid[], %(user_ids)s::text[], %(salts)s::text[]) AS new (subject_id, user_id, salt)
"""
_INSERT_COMMITMENTS = """
    INSERT INTO subject_commitments (seq, subject_id, commitment)
    SELECT seq, subject_id, decode(commitment, 'hex')
    FROM unnest(%(seqs)s::bigint[], %(subjects)s::uuid[], %(commitments)s::text[]) AS new (seq, subject_id, commitment)
"""
_SET_TARGETS = """
    INSERT INTO targeted_users (flag_id, subject_id, variant)
    SELECT * FROM unnest(%(owner_ids)s::bigint[], %(subjects)s::uuid[], %(variants)s::text[])
    ON CONFLICT ON CONSTRAINT idx_targeted_users_lookup DO UPDATE SET variant = excluded.variant
"""
_UNSET_TARGETS = """
    DELETE FROM targeted_users t
    USING unnest(%(owner_ids)s::bigint[], %(subjects)s::uuid[]) AS gone (flag_id, subject_id)
    WHERE t.flag_id = gone.flag_id AND t.subject_id = gone.subject_id
"""
_ADD_MEMBERS = """
    INSERT INTO segment_members (segment_id, subject_id)
    SELECT * FROM unnest(%(owner_ids)s::bigint[], %(subjects)s::uuid[])
"""
_REMOVE_MEMBERS = """
    DELETE FROM segment_members m
    USING unnest(%(owner_ids)s::bigint[], %(subjects)s::uuid[]) AS gone (segment_id, subject_id)
    WHERE m.segment_id = gone.segment_id AND m.subject_id = gone.subject_id
"""


def _write_people(conn: Connection, steps: Sequence[tuple[Numbered, SetStep | UserStep]]) -> None:
    new = [(numbered.head.audit_seq, *person) for numbered, step in steps for person in step.new]
    if new:
        seqs, ids, user_ids, salts, commitments = _columns(new, 5)
        subjects = _array(ids)
        conn.execute(_INSERT_SUBJECTS, {"subjects": subjects, "user_ids": user_ids, "salts": _hex_array(salts)})
        hashes = _hex_array(commitments)
        conn.execute(_INSERT_COMMITMENTS, {"seqs": _array(seqs), "subjects": subjects, "commitments": hashes})


def _write_targets(conn: Connection, steps: Sequence[SetStep], flag_ids: Mapping[str, int]) -> None:
    rows = [
        (flag_ids[step.owner.key], subject, variant)
        for step in steps
        for groups in (step.added, step.moved)
        for variant, subjects in groups.items()
        for subject in subjects
    ]
    if rows:
        owner_ids, subjects, variants = _columns(rows, 3)
        columns = {"owner_ids": _array(owner_ids), "subjects": _array(subjects), "variants": variants}
        conn.execute(_SET_TARGETS, columns)
    _remove(conn, _UNSET_TARGETS, steps, flag_ids)
    _write_hashes(conn, TARGETS.write_many, steps, flag_ids)


def _write_members(conn: Connection, steps: Sequence[SetStep], segment_ids: Mapping[str, int]) -> None:
    rows = [
        (segment_ids[step.owner.key], subject)
        for step in steps
        for subjects in step.added.values()
        for subject in subjects
    ]
    if rows:
        owner_ids, subjects = _columns(rows, 2)
        conn.execute(_ADD_MEMBERS, {"owner_ids": _array(owner_ids), "subjects": _array(subjects)})
    _remove(conn, _REMOVE_MEMBERS, steps, segment_ids)
    _write_hashes(conn, MEMBERS.write_many, steps, segment_ids)


def _remove(conn: Connection, query: LiteralString, steps: Iterable[SetStep], ids: Mapping[str, int]) -> None:
    rows = [(ids[step.owner.key], subject) for step in steps for subject in step.removed]
    if rows:
        owner_ids, subjects = _columns(rows, 2)
        conn.execute(query, {"owner_ids": _array(owner_ids), "subjects": _array(subjects)})


def _write_hashes(conn: Connection, query: LiteralString, steps: Sequence[SetStep], ids: Mapping[str, int]) -> None:
    if steps:
        rows = [(ids[step.owner.key], step.after.count, step.after.state) for step in steps]
        owner_ids, counts, states = _columns(rows, 3)
        conn.execute(query, {"owner_ids": owner_ids, "counts": counts, "states": states})


# --- Users ------------------------------------------------------------------------------------------------------------

_SET_USERS = """
    INSERT INTO users (subject_id, attributes, create_time, update_time, revision)
    SELECT subject_id, attributes::jsonb, %(time)s, %(time)s, revision
    FROM unnest(%(subjects)s::uuid[], %(attributes)s::text[], %(revisions)s::bigint[])
        AS made (subject_id, attributes, revision)
    ON CONFLICT ON CONSTRAINT users_pkey DO UPDATE
    SET attributes = excluded.attributes, update_time = excluded.update_time, revision = excluded.revision
"""


def _write_users(conn: Connection, steps: Iterable[Numbered], quotas: Quotas) -> dict[UUID, User]:
    made = [(one.head, one.step) for one in steps if isinstance(one.step, UserStep)]
    users = [
        User(subject_id=step.subject_id, profile=step.config, **_version(head, step.before))
        for head, step in made
        if step.config
    ]
    if not users:
        return {}
    rows = [(user.subject_id, json.dumps(dict(user.attributes)), user.revision) for user in users]
    subjects, attributes, revisions = _columns(rows, 3)
    columns = {"subjects": subjects, "attributes": attributes, "revisions": revisions}
    conn.execute(_SET_USERS, {**columns, "time": made[0][0].create_time})
    _check_users(conn, [step for _, step in made if step.config], quotas)
    return {user.subject_id: user for user in users}


def _check_users(conn: Connection, steps: Sequence[UserStep], quotas: Quotas) -> None:
    """Check what is bounded over all users, if one was created or has another attribute than before."""
    if any(step.before is None for step in steps):
        quotas.check(conn, "users")
    known = [(step.config, step.before.attributes if step.before else {}) for step in steps]
    if any(config and config.attributes.keys() - before.keys() for config, before in known):
        check_attribute_cap(count_stored_values(conn))


# --- Deletions --------------------------------------------------------------------------------------------------------


def _delete(conn: Connection, steps: Iterable[Numbered]) -> None:
    gone = [one.step for one in steps if not isinstance(one.step, SetStep) and one.step.config is None]
    flag_ids = [step.before.flag_id for step in gone if isinstance(step, FlagStep) and step.before]
    if flag_ids:
        conn.execute("DELETE FROM feature_flags WHERE flag_id = ANY(%(ids)s)", {"ids": flag_ids})
    segments = {step.before.segment_id: step for step in gone if isinstance(step, SegmentStep) and step.before}
    if segments:
        ids = {"ids": list(segments)}
        used = conn.execute(_USED, ids).fetchone()
        if used:
            _refuse_used(conn, segments[used[0]])
        conn.execute("DELETE FROM segments WHERE segment_id = ANY(%(ids)s)", ids)
    subjects = [step.subject_id for step in gone if isinstance(step, UserStep)]
    if subjects:
        conn.execute("DELETE FROM users WHERE subject_id = ANY(%(subjects)s)", {"subjects": subjects})


_USED = "SELECT segment_id FROM flag_segments WHERE segment_id = ANY(%(ids)s) LIMIT 1"


def _refuse_used(conn: Connection, step: SegmentStep) -> None:
    with errors_of(step.field):
        if step.before:
            check_unused(conn, step.before)


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Return rows as columns; without rows, empty columns."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _array(values: Iterable[object]) -> str:
    """Return an array as PostgreSQL reads it, of values without quotes: psycopg takes ten times as long for a list."""
    return f"{{{','.join(map(str, values))}}}"


def _hex_array(values: Iterable[bytes]) -> str:
    return _array(value.hex() for value in values)


def numbered(steps: Sequence[Step], head: Head) -> list[Numbered]:
    """Give the steps consecutive revisions and audit entries, beginning with those of the head."""
    return [
        Numbered(step=step, head=replace(head, revision=head.revision + at, audit_seq=head.audit_seq + at))
        for at, step in enumerate(steps)
    ]
