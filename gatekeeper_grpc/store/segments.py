"""Segments in PostgreSQL: create, read, list, update, delete."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from psycopg.rows import kwargs_row
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.commands import SegmentFilter, SegmentUpdate
from gatekeeper_grpc.domain.condition import condition_document, condition_from_document
from gatekeeper_grpc.domain.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted
from gatekeeper_grpc.domain.etag import check_etag
from gatekeeper_grpc.domain.limits import DEFAULT_PAGE_SIZE, MAX_CONDITIONS_IN_ALL, MAX_SCANNED_VALUES
from gatekeeper_grpc.domain.mutation import Change, Intent, Read, ResourceType, Written
from gatekeeper_grpc.domain.segment import (
    CountedSegment,
    Match,
    Segment,
    SegmentConfig,
    segment_document,
)
from gatekeeper_grpc.domain.set_hash import EMPTY
from gatekeeper_grpc.store.attribute_cap import check_attribute_cap, count_stored_values
from gatekeeper_grpc.store.hashed_sets import count_sets
from gatekeeper_grpc.store.mutations import NOTHING, Effect, Head, MutationRunner, change_of, unchanged
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read
from gatekeeper_grpc.store.quotas import DEFAULT_QUOTAS, Quotas

# How many of the flags that use a segment an error names.
_NAMED_FLAGS = 10
# A default page takes one fetch. A segment may have 256 KB of values: so many rows are some 25 MB.
_FETCH_ROWS = DEFAULT_PAGE_SIZE + 1
Page = TypeVar("Page")

_CODEC = TypeAdapter(CountedSegment)

# Every query for segments starts with this.
SELECT_SEGMENTS = """
    SELECT segment_id, key, description, match, conditions, create_time, update_time, revision FROM segments
"""


def segment_from_row(
    *, key: str, description: str, match: str, conditions: list[dict[str, Any]], **columns: Any
) -> Segment:
    """Build the segment of a row of `SELECT_SEGMENTS`."""
    config = SegmentConfig(
        key=key,
        description=description,
        match=Match(match),
        conditions=tuple(condition_from_document(condition) for condition in conditions),
    )
    return Segment(config=config, **columns)


def _counted_from_row(*, member_count: int, **columns: Any) -> CountedSegment:
    return CountedSegment(segment=segment_from_row(**columns), member_count=member_count)


class SegmentStore:
    """Segments, read and changed. Writes go through `MutationRunner`; reads say at which revision they are true."""

    def __init__(self, database: Database, mutations: MutationRunner, *, quotas: Quotas = DEFAULT_QUOTAS) -> None:
        self._database = database
        self._mutations = mutations
        self._quotas = quotas

    def create(self, config: SegmentConfig, intent: Intent) -> Written[CountedSegment]:
        """Create a segment.

        Raises:
            AlreadyExists: The key is taken.
            ResourceExhausted: A cap is reached.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[CountedSegment]:
            segment = _insert(conn, head, config)
            self._quotas.check(conn, "segments")
            return Effect(
                result=CountedSegment(segment=segment, member_count=0),
                preview=CountedSegment(segment=replace(segment, revision=0), member_count=0),
                change=segment_change(None, segment),
            )

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def get(self, key: str) -> Read[CountedSegment]:
        """Read a segment.

        Raises:
            NotFound: There is none with this key.
        """
        with self._database.read() as conn:
            segment = find_segment(conn, key)
            counted = CountedSegment(segment=segment, member_count=_count_members(conn, segment))
            return Read(result=counted, revision=current_revision(conn))

    @retry_lost_read
    def list(self, wanted: SegmentFilter, paged: Callable[[Iterable[CountedSegment]], Page]) -> Read[Page]:
        """Read segments in key order, and return what `paged` makes of those that it takes; few others are read."""
        parameters = {"after": wanted.after, "key_prefix": wanted.key_prefix or None, "limit": wanted.limit}
        with self._database.read() as conn:
            revision = current_revision(conn)
            with conn.cursor(name="segments", row_factory=kwargs_row(_counted_from_row)) as cursor:
                cursor.itersize = _FETCH_ROWS
                return Read(result=paged(cursor.execute(LIST_SEGMENTS, parameters)), revision=revision)

    def update(self, update: SegmentUpdate, intent: Intent) -> Written[CountedSegment]:
        """Change fields of a segment.

        Raises:
            NotFound: There is no such segment.
            Changed: The segment has another etag than the update names.
            ResourceExhausted: A cap is reached.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[CountedSegment]:
            before = find_segment(conn, update.key, etag=update.etag)
            member_count = _count_members(conn, before)
            config = replace(before.config, **update.changes)
            if config == before.config:
                return unchanged(CountedSegment(segment=before, member_count=member_count))
            after = _replace(conn, head, before, config)
            unwritten = replace(after, revision=before.revision, update_time=before.update_time)
            return Effect(
                result=CountedSegment(segment=after, member_count=member_count),
                preview=CountedSegment(segment=unwritten, member_count=member_count),
                change=segment_change(before, after),
            )

        return self._mutations.mutate(intent, act, codec=_CODEC)

    def delete(self, key: str, etag: str, intent: Intent) -> Written[None]:
        """Delete a segment and its members.

        Raises:
            NotFound: There is no such segment.
            Changed: The segment has another etag; an empty etag accepts any state.
            FailedPrecondition: Flags use it.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, _head: Head) -> Effect[None]:
            before = find_segment(conn, key, etag=etag)
            check_unused(conn, before)
            count_sets(conn)
            conn.execute("DELETE FROM segments WHERE segment_id = %(segment_id)s", {"segment_id": before.segment_id})
            return Effect(result=None, preview=None, change=segment_change(before, None))

        return self._mutations.mutate(intent, act, codec=NOTHING)


FIND_SEGMENT = SELECT_SEGMENTS + "WHERE environment = '' AND key = %(key)s"


def find_segment(conn: Connection, key: str, *, etag: str = "") -> Segment:
    """Read a segment within a transaction.

    Raises:
        NotFound: There is none with this key.
        Changed: `etag` is not empty and not the segment's.
    """
    with conn.cursor(row_factory=kwargs_row(segment_from_row)) as cursor:
        segment = cursor.execute(FIND_SEGMENT, {"key": key}).fetchone()
    if segment is None:
        raise NotFound.segment(key)
    check_etag(f"segment {key!r}", etag, current=segment.etag)
    return segment


COUNT_MEMBERS = "SELECT count(*) FROM segment_members WHERE segment_id = %(segment_id)s"


def _count_members(conn: Connection, segment: Segment) -> int:
    (count,) = one(conn.execute(COUNT_MEMBERS, {"segment_id": segment.segment_id}))
    return int(count)


# The columns of `SELECT_SEGMENTS` and the count, which PostgreSQL computes for the page's segments only.
LIST_SEGMENTS = """
    SELECT segment_id, key, description, match, conditions, create_time, update_time, revision,
           (SELECT count(*) FROM segment_members m WHERE m.segment_id = s.segment_id) AS member_count
    FROM segments s
    WHERE environment = '' AND key > %(after)s
      AND (%(key_prefix)s::text IS NULL OR starts_with(key, %(key_prefix)s) AND key >= %(key_prefix)s)
    ORDER BY key LIMIT %(limit)s
"""


_INSERT = """
    INSERT INTO segments (key, description, match, conditions, attribute_names, scanned_values,
                          create_time, update_time, revision, members_count, members_sum)
    VALUES (%(key)s, %(description)s, %(match)s, %(conditions)s, %(attribute_names)s, %(scanned_values)s,
            %(update_time)s, %(update_time)s, %(revision)s, 0, %(no_members)s)
    ON CONFLICT ON CONSTRAINT segments_key_key DO NOTHING
    RETURNING segment_id, key, description, match, conditions, create_time, update_time, revision
"""


def _insert(conn: Connection, head: Head, config: SegmentConfig) -> Segment:
    with conn.cursor(row_factory=kwargs_row(segment_from_row)) as cursor:
        segment = cursor.execute(_INSERT, {**_columns(config, head), "no_members": EMPTY.state}).fetchone()
    if segment is None:
        raise AlreadyExists(f"segment {config.key!r} exists already", metadata={"segment_key": config.key})
    check_caps(conn, [config])
    return segment


_UPDATE = """
    UPDATE segments
    SET description = %(description)s, match = %(match)s, conditions = %(conditions)s,
        attribute_names = %(attribute_names)s, scanned_values = %(scanned_values)s,
        update_time = %(update_time)s, revision = %(revision)s
    WHERE segment_id = %(segment_id)s
"""


def _replace(conn: Connection, head: Head, before: Segment, config: SegmentConfig) -> Segment:
    conn.execute(_UPDATE, {**_columns(config, head), "segment_id": before.segment_id})
    if config.conditions != before.config.conditions:
        check_caps(conn, [config])
    return replace(before, config=config, update_time=head.create_time, revision=head.revision)


def segment_columns(config: SegmentConfig) -> dict[str, Any]:
    """Return the columns of what an editor decides, as JSON values."""
    return {
        "key": config.key,
        "description": config.description,
        "match": config.match.value,
        "conditions": [condition_document(condition) for condition in config.conditions],
        "attribute_names": sorted(config.attribute_names()),
        "scanned_values": config.scanned_value_count(),
    }


def _columns(config: SegmentConfig, head: Head) -> dict[str, object]:
    columns = segment_columns(config)
    conditions = Jsonb(columns["conditions"])
    return {**columns, "conditions": conditions, "update_time": head.create_time, "revision": head.revision}


_COUNT = """
    SELECT coalesce(sum(scanned_values), 0), coalesce(sum(jsonb_array_length(conditions)), 0) FROM segments
"""


def check_caps(conn: Connection, configs: Sequence[SegmentConfig]) -> None:
    """Check what is capped over all segments, after some of them were written with these conditions.

    Raises:
        ResourceExhausted: A cap is exceeded.
    """
    counted, stored_values = conn.execute(_COUNT), count_stored_values(conn)
    scanned, conditions = one(counted)
    wanted = sum(config.scanned_value_count() for config in configs)
    if wanted and scanned > MAX_SCANNED_VALUES:
        used = scanned - wanted
        raise ResourceExhausted(
            f"all segments together may have {MAX_SCANNED_VALUES} values of CONTAINS, STARTS_WITH and ENDS_WITH: "
            f"{used} are in use and this change wants {wanted}",
            metadata={"limit": str(MAX_SCANNED_VALUES), "used": str(used), "wanted": str(wanted)},
        )
    if any(config.conditions for config in configs):
        _check_condition_cap(conditions)
        check_attribute_cap(stored_values)


def _check_condition_cap(count: int) -> None:
    if count > MAX_CONDITIONS_IN_ALL:
        raise ResourceExhausted(
            f"all segments together may have {MAX_CONDITIONS_IN_ALL} conditions, and with this one would have {count}:"
            " use IN for values that are compared one by one, or delete segments that no flag uses",
            reason="QUOTA_EXCEEDED",
            metadata={"quota": "conditions", "limit": str(MAX_CONDITIONS_IN_ALL)},
        )


USED_BY = """
    SELECT f.key, count(*) OVER () FROM flag_segments JOIN feature_flags f USING (flag_id)
    WHERE segment_id = %(segment_id)s ORDER BY f.key LIMIT %(limit)s
"""


def check_unused(conn: Connection, segment: Segment) -> None:
    """Check that no flag uses a segment.

    Raises:
        FailedPrecondition: Flags do; names them.
    """
    rows = conn.execute(USED_BY, {"segment_id": segment.segment_id, "limit": _NAMED_FLAGS}).fetchall()
    if not rows:
        return
    flag_keys, count = ",".join(key for key, _ in rows), rows[0][1]
    raise FailedPrecondition(
        f"flags use segment {segment.key!r}: take it out of their segment targets first ({count} in all: {flag_keys})",
        reason="SEGMENT_IN_USE",
        metadata={"segment_key": segment.key, "flag_keys": flag_keys, "flag_count": str(count)},
    )


def segment_change(before: Segment | None, after: Segment | None, **more: object) -> Change:
    """Return the change of a segment, see `change_of`."""
    return change_of(ResourceType.SEGMENT, before, after, key=lambda one: one.key, document=segment_document, **more)
