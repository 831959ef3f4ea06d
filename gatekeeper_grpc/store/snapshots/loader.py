"""Loads snapshots from PostgreSQL: whole, or what changed since one, each from a single state of the database."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, LiteralString, TypeVar
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import BaseRowFactory, class_row, kwargs_row

from gatekeeper_grpc.domain.attribute_index import AttributeEntry, AttributeIndex
from gatekeeper_grpc.domain.change_log import LoggedChange, flag_changes
from gatekeeper_grpc.domain.errors import HistoryLost
from gatekeeper_grpc.domain.flag import VARIANTS, Flag
from gatekeeper_grpc.domain.flag_change import FlagChanges
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH, epoch_of
from gatekeeper_grpc.domain.segment import Segment
from gatekeeper_grpc.domain.snapshot import Commit, Snapshot, SnapshotDelta, named_by
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from gatekeeper_grpc.store.flags import SELECT_FLAGS, flag_from_row
from gatekeeper_grpc.store.mutations import is_other_history, select_hash
from gatekeeper_grpc.store.postgres.database import Connection, Database, one, together
from gatekeeper_grpc.store.postgres.retries import retry_lost_read
from gatekeeper_grpc.store.segments import SELECT_SEGMENTS, segment_from_row

# Beyond this many revisions a full load is faster.
_MAX_DELTA_REVISIONS = 10_000
# The driver converts this many rows in about a millisecond, during which no other thread runs.
_STREAM_ROWS = 1_000
_STREAM_FLAGS = 100
_STREAM_LOGGED = 500
_SLICE_S = 0.001
_REST_S = 0.0005
# No delta describes these: the subject of an erased person has no user id any more, and an installation is everything.
_NEED_RELOAD = frozenset({ResourceType.SUBJECT, ResourceType.INSTALLATION})
Row = TypeVar("Row")
_TAG_OF_VARIANT = {variant: tag for tag, variant in enumerate(VARIANTS)}


class SnapshotStore:
    """Loads snapshots from the primary, each with the flag changes that the change log still holds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_lost_read
    def head(self) -> int:
        """Read the newest revision, and nothing else."""
        with self._database.read() as conn:
            return _head(conn).revision

    @retry_lost_read
    def newest_of(self, epoch: int) -> int | None:
        """Read the newest revision of an epoch; None if its audit entries are archived or lost."""
        within = {"first": epoch * REVISIONS_PER_EPOCH, "end": (epoch + 1) * REVISIONS_PER_EPOCH}
        with self._database.read() as conn:
            (revision,) = one(conn.execute(NEWEST_OF_EPOCH, within))
        return None if revision is None else int(revision)

    @retry_lost_read
    def load(self, *, sharing: Snapshot | None = None, paced: bool = True) -> Snapshot:
        """Load everything; unchanged objects are taken from `sharing`.

        Without it, or if not `paced`, nothing but a stored snapshot can be served until this returns, so it loads as
        fast as it can.
        """
        rest_s = _REST_S if sharing and paced else 0.0
        with self._database.read() as conn:
            head = _head(conn)
            segments = _all_segments(conn)
            snapshot = Snapshot.build(
                installation_id=head.installation_id,
                revision=head.revision,
                audit_hash=head.audit_hash,
                flags=_all_flags(conn, sharing.flags if sharing else {}, rest_s=rest_s),
                segments=segments,
                targets=self._copied(conn, _COPY_TARGETS, rest_s=rest_s),
                members=self._copied(conn, _COPY_MEMBERS, rest_s=rest_s),
                attributes=_attributes(conn, named_by(segments), rest_s=rest_s),
                sharing=sharing,
            )
            return replace(snapshot, changes=_latest_flag_changes(conn, snapshot, rest_s=rest_s))

    def _copied(self, conn: Connection, statement: LiteralString, *, rest_s: float) -> UserIndex:
        """Read entries of users: a million of them are never in memory as rows."""
        with self._database.copying(conn, statement, types=_ENTRY_TYPES) as rows:
            return UserIndex.build(
                UserEntry(user_id, owner_id, _TAG_OF_VARIANT[variant])
                for user_id, owner_id, variant in _throttled(rows, rest_s)
            )

    def load_since(self, base: Snapshot, *, paced: bool = True) -> Snapshot:
        """Load the changes since `base`, see `load_delta`; everything if the change log is not sufficient."""
        changed = self.load_delta(base)
        return self.load(sharing=base, paced=paced) if changed is None else changed

    @retry_lost_read
    def load_delta(self, base: Snapshot) -> Snapshot | None:
        """Load the changes since `base`, in time proportional to them; `base` itself if there are none.

        An attribute that no segment named before is read for all users.

        Returns:
            None if the change log is not sufficient, or `base` is of another installation.

        Raises:
            HistoryLost: `base` belongs to a history that the database has lost.
            Unavailable: The database cannot be reached.
        """
        with self._database.read() as conn:
            asked_at = time.monotonic()
            with together(conn):
                heads, hashes = _select_head(conn), select_hash(conn, base.revision)
                logged = _select_logged(conn, base.revision)
            head = one(heads)
            if head.installation_id != base.installation_id:
                return None
            _check_history(base, head, hashes.fetchone())
            if head.revision == base.revision:
                return base
            log = _complete(logged.fetchall(), base.revision, head.revision)
            if log is None:
                return None
            commits = [Commit(change.revision, change.resource_type, asked_at - change.age_s) for change in log]
            return replace(_brought_up(conn, base, head, log), commits=commits)


NEWEST_OF_EPOCH = """
    SELECT max(revision) FROM audit_log WHERE revision >= %(first)s AND revision < %(end)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    installation_id: UUID
    revision: int
    audit_hash: bytes


def _head(conn: Connection) -> _Head:
    return one(_select_head(conn))


def _select_head(conn: Connection) -> Cursor[_Head]:
    cursor = conn.cursor(row_factory=class_row(_Head))
    return cursor.execute("SELECT installation_id, revision, audit_hash FROM revision_head")


def _check_history(base: Snapshot, head: _Head, kept: tuple[bytes] | None) -> None:
    """Raise `HistoryLost` if, within one epoch, the database has another revision of the number of `base`.

    Args:
        base: What was served.
        head: The database's.
        kept: The hash that the database has for the revision of `base`; None if there is none.
    """
    if epoch_of(head.revision) != epoch_of(base.revision):
        return
    if head.revision == base.revision:
        kept = (head.audit_hash,)
    if head.revision >= base.revision and is_other_history(base.audit_hash, kept):
        raise HistoryLost(f"revision {base.revision} of the database is not the one that was served")


LOGGED_SINCE = """
    SELECT revision, resource_type, change_type, key, subjects,
           extract(epoch FROM clock_timestamp() - create_time)::float8 AS age_s
    FROM change_log
    WHERE revision > %(revision)s ORDER BY revision LIMIT %(limit)s
"""


def _select_logged(conn: Connection, revision: int) -> Cursor[LoggedChange]:
    cursor = conn.cursor(row_factory=class_row(LoggedChange))
    return cursor.execute(LOGGED_SINCE, {"revision": revision, "limit": _MAX_DELTA_REVISIONS})


def _complete(log: list[LoggedChange], revision: int, head: int) -> list[LoggedChange] | None:
    """Return the change log from `revision` to `head`.

    None if it is pruned, of another epoch or too long, or if a change needs a reload.
    """
    expected = head - revision
    if epoch_of(revision) != epoch_of(head) or not 0 <= expected <= _MAX_DELTA_REVISIONS:
        return None
    # Every revision leaves exactly one row: fewer rows than revisions means that some are pruned.
    is_complete = len(log) == expected and _NEED_RELOAD.isdisjoint(change.resource_type for change in log)
    return log if is_complete else None


LATEST_LOGGED = """
    SELECT revision, resource_type, change_type, key FROM change_log ORDER BY revision DESC LIMIT %(limit)s
"""


def _latest_flag_changes(conn: Connection, snapshot: Snapshot, *, rest_s: float) -> FlagChanges:
    """Read the latest flag changes from the change log, as far back as it is complete."""
    with conn.cursor(name="latest_changes", row_factory=class_row(LoggedChange)) as cursor:
        cursor.itersize = _STREAM_LOGGED
        rows = _throttled(cursor.execute(LATEST_LOGGED, {"limit": _MAX_DELTA_REVISIONS}), rest_s)
        log = [*_unbroken(rows, snapshot.revision)]
    log.reverse()
    # The earlier attributes of users are unknown: any may have changed.
    changes = flag_changes(log, snapshot, lambda _change: snapshot.attributes.names)
    return FlagChanges(since=snapshot.revision - len(log), changes=changes)


def _unbroken(latest_first: Iterable[LoggedChange], revision: int) -> Iterator[LoggedChange]:
    """Yield changes back to a missing one (pruned, or the start of the epoch) or one that needs a reload."""
    for expected, change in zip(count(revision, -1), latest_first, strict=False):
        if change.revision != expected or change.resource_type in _NEED_RELOAD:
            return
        yield change


def _brought_up(conn: Connection, base: Snapshot, head: _Head, log: Sequence[LoggedChange]) -> Snapshot:
    """Return the snapshot after the changes of the log, with its flag changes."""
    delta, stored = _delta(conn, base, head, log)
    snapshot = base.after(delta)
    changes = flag_changes(log, snapshot, _changed_attributes(base, snapshot, log, stored))
    return replace(snapshot, changes=FlagChanges(since=base.revision, changes=changes))


def _changed_attributes(
    base: Snapshot, snapshot: Snapshot, log: Iterable[LoggedChange], stored: Mapping[UUID, Sequence[AttributeEntry]]
) -> Callable[[LoggedChange], Iterable[str]]:
    """Return a function from a change of a user to the attributes that it may have changed."""
    times_changed = Counter(subject for change in log for subject in change.subjects if _is_of_user(change))
    names = snapshot.attributes.names
    newly_named = names - base.attributes.names

    def changed(change: LoggedChange) -> Iterable[str]:
        # A user that changed twice may be the same as before, but another instance may have served the state between.
        if any(times_changed[subject] > 1 for subject in change.subjects):
            return names
        entries = chain.from_iterable(stored.get(subject, ()) for subject in change.subjects)
        return base.attributes.changed_by(entries) | newly_named

    return changed


def _is_of_user(change: LoggedChange) -> bool:
    return change.resource_type == ResourceType.USER


def _delta(
    conn: Connection, base: Snapshot, head: _Head, log: Iterable[LoggedChange]
) -> tuple[SnapshotDelta, Mapping[UUID, Sequence[AttributeEntry]]]:
    """Read what changed, and the attributes of the users in the log, by subject."""
    keys: defaultdict[str, set[str]] = defaultdict(set)
    pairs: defaultdict[str, set[tuple[str, UUID]]] = defaultdict(set)
    for change in log:
        keys[change.resource_type].add(change.key)
        pairs[change.resource_type].update((change.key, subject) for subject in change.subjects)
    with together(conn):
        flags = _select_of_keys(conn, _FLAGS_OF_KEYS, keys[ResourceType.FLAG], kwargs_row(flag_from_row))
        segments = _select_of_keys(conn, _SEGMENTS_OF_KEYS, keys[ResourceType.SEGMENT], kwargs_row(segment_from_row))
        targets = _select_of_pairs(conn, TARGETS_OF_PAIRS, pairs[ResourceType.TARGETS])
        members = _select_of_pairs(conn, MEMBERS_OF_PAIRS, pairs[ResourceType.MEMBERS])
        attributes = _select_attributes(conn, base.attributes.names, pairs[ResourceType.USER])
    stored = _by_subject(attributes)
    changed = {segment.key: segment for segment in segments}
    delta = SnapshotDelta(
        revision=head.revision,
        audit_hash=head.audit_hash,
        flags=dict.fromkeys(keys[ResourceType.FLAG]) | {flag.key: flag for flag in flags},
        segments=dict.fromkeys(keys[ResourceType.SEGMENT]) | changed,
        targets=[*_entries(targets)],
        members=[*_entries(members)],
        named_attributes=_attributes(conn, named_by(changed.values()) - base.attributes.names, rest_s=_REST_S),
        attributes=tuple(chain.from_iterable(stored.values())),
    )
    return delta, stored


_FLAGS_OF_KEYS: LiteralString = SELECT_FLAGS + "WHERE f.environment = '' AND f.key = ANY(%(keys)s)"


def _select_of_keys(
    conn: Connection, query: LiteralString, keys: set[str], row_factory: BaseRowFactory[Row]
) -> Iterable[Row]:
    return conn.cursor(row_factory=row_factory).execute(query, {"keys": list(keys)}) if keys else ()


_ALL_FLAGS: LiteralString = SELECT_FLAGS + "WHERE f.environment = '' ORDER BY f.key"


def _all_flags(conn: Connection, known: Mapping[str, Flag], *, rest_s: float) -> Iterator[Flag]:
    """Stream all flags; yield the known object of each unchanged flag."""
    with conn.cursor(name="flags", row_factory=kwargs_row(flag_from_row)) as cursor:
        cursor.itersize = _STREAM_FLAGS
        for flag in _throttled(cursor.execute(_ALL_FLAGS), rest_s):
            before = known.get(flag.key, flag)
            yield before if before == flag else flag


_SEGMENTS_OF_KEYS: LiteralString = SELECT_SEGMENTS + "WHERE environment = '' AND key = ANY(%(keys)s)"


def _all_segments(conn: Connection) -> list[Segment]:
    with conn.cursor(row_factory=kwargs_row(segment_from_row)) as cursor:
        return cursor.execute(SELECT_SEGMENTS).fetchall()


# A server that knows that all rows are wanted plans for them, and sends while this process computes (decision 0051).
_COPY_TARGETS = """
    COPY (
        SELECT s.user_id, t.flag_id, t.variant FROM targeted_users t JOIN subjects s USING (subject_id)
    ) TO STDOUT
"""

_COPY_MEMBERS = """
    COPY (
        SELECT s.user_id, m.segment_id, 'off' FROM segment_members m JOIN subjects s USING (subject_id)
    ) TO STDOUT
"""
_ENTRY_TYPES: Sequence[LiteralString] = ("text", "int8", "text")


def _throttled(rows: Iterable[Row], rest_s: float) -> Iterator[Row]:
    """Yield rows, and sleep for `rest_s` after each millisecond, unless it is 0.

    The interpreter lets a computing thread run for 5 ms: several times as long as an evaluation, which would wait for
    it more than once.
    """
    began = time.perf_counter()
    for row in rows:
        yield row
        if rest_s and time.perf_counter() - began > _SLICE_S:
            time.sleep(rest_s)
            began = time.perf_counter()


# Each pair is looked up by itself. Of plain joins, PostgreSQL makes loops over all rows for each pair if its statistics
# are of a moment in which a table was empty: 10,000 new members of a segment took 5 s.
TARGETS_OF_PAIRS = """
    SELECT s.user_id, f.flag_id,
           (SELECT variant FROM targeted_users t WHERE t.flag_id = f.flag_id AND t.subject_id = pair.subject_id)
    FROM unnest(%(keys)s::text[], %(subjects)s::uuid[]) AS pair (key, subject_id)
    JOIN LATERAL (SELECT flag_id FROM feature_flags WHERE environment = '' AND key = pair.key LIMIT 1) f ON true
    JOIN LATERAL (SELECT user_id FROM subjects WHERE subject_id = pair.subject_id LIMIT 1) s ON true
"""

MEMBERS_OF_PAIRS = """
    SELECT s.user_id, g.segment_id,
           (SELECT 'off' FROM segment_members m WHERE m.segment_id = g.segment_id AND m.subject_id = pair.subject_id)
    FROM unnest(%(keys)s::text[], %(subjects)s::uuid[]) AS pair (key, subject_id)
    JOIN LATERAL (SELECT segment_id FROM segments WHERE environment = '' AND key = pair.key LIMIT 1) g ON true
    JOIN LATERAL (SELECT user_id FROM subjects WHERE subject_id = pair.subject_id LIMIT 1) s ON true
"""


def _select_of_pairs(conn: Connection, query: LiteralString, pairs: set[tuple[str, UUID]]) -> Iterable[tuple[Any, ...]]:
    if not pairs:
        return ()
    keys, subjects = zip(*pairs, strict=True)
    return conn.execute(query, {"keys": list(keys), "subjects": list(subjects)})


def _entries(rows: Iterable[tuple[Any, ...]]) -> Iterator[UserEntry]:
    """Yield the entries of users in flags (or segments); a variant that is NULL means no entry."""
    return (UserEntry(user_id, owner_id, _TAG_OF_VARIANT.get(variant)) for user_id, owner_id, variant in rows)


# A stored null counts as missing.
_ALL_ATTRIBUTES = """
    SELECT s.user_id, a.key, a.value::text
    FROM users u JOIN subjects s USING (subject_id) CROSS JOIN LATERAL jsonb_each(u.attributes) AS a
    WHERE a.key = ANY(%(names)s) AND a.value <> 'null'
"""


def _attributes(conn: Connection, names: frozenset[str], *, rest_s: float) -> AttributeIndex:
    """Stream the values of these attributes, for all users."""
    if not names:
        return AttributeIndex()
    with conn.cursor(name="attributes") as cursor:
        cursor.itersize = _STREAM_ROWS
        rows = _throttled(cursor.execute(_ALL_ATTRIBUTES, {"names": list(names)}), rest_s)
        return AttributeIndex.build(names, (AttributeEntry(*row) for row in rows))


ATTRIBUTES_OF_SUBJECTS = """
    SELECT subject_id, s.user_id, name, nullif(u.attributes -> name, 'null')::text
    FROM subjects s LEFT JOIN users u USING (subject_id) CROSS JOIN unnest(%(names)s::text[]) AS name
    WHERE subject_id = ANY(%(subjects)s)
"""


def _select_attributes(
    conn: Connection, names: frozenset[str], users: set[tuple[str, UUID]]
) -> Iterable[tuple[Any, ...]]:
    if not (names and users):
        return ()
    subjects = {subject for _key, subject in users}
    return conn.execute(ATTRIBUTES_OF_SUBJECTS, {"names": list(names), "subjects": list(subjects)})


def _by_subject(rows: Iterable[tuple[Any, ...]]) -> Mapping[UUID, Sequence[AttributeEntry]]:
    stored: defaultdict[UUID, list[AttributeEntry]] = defaultdict(list)
    for subject, *entry in rows:
        stored[subject].append(AttributeEntry(*entry))
    return stored
