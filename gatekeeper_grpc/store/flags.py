"""Flags in PostgreSQL: create, read, list, update, delete."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, LiteralString

from psycopg.rows import kwargs_row
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.commands import FlagFilter, FlagUpdate
from gatekeeper_grpc.domain.errors import AlreadyExists, FailedPrecondition, NotFound
from gatekeeper_grpc.domain.etag import check_etag
from gatekeeper_grpc.domain.flag import Flag, FlagConfig, SegmentTarget, flag_document
from gatekeeper_grpc.domain.mutation import Change, Intent, Read, ResourceType, Written
from gatekeeper_grpc.domain.set_hash import EMPTY
from gatekeeper_grpc.store.access_trace import AccessEvent, record_access
from gatekeeper_grpc.store.hashed_sets import count_sets
from gatekeeper_grpc.store.mutations import NOTHING, Effect, Head, MutationRunner, change_of, unchanged
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read
from gatekeeper_grpc.store.quotas import DEFAULT_QUOTAS, Quotas, check_segment_targets

_CODEC = TypeAdapter(Flag)

# The columns of `FlagConfig`, by the names of its fields. A new field is added here, and nowhere else in this module
# unless it has rows of its own, as segment targets have.
_FIELDS: tuple[LiteralString, ...] = (
    "key",
    "description",
    "enabled",
    "default_variant",
    "rollout_percentage",
    "tags",
    "owner",
)
FLAG_COLUMNS = _FIELDS
_COLUMNS: LiteralString = ", ".join(_FIELDS)
_VALUES: LiteralString = ", ".join(["%(" + field + ")s" for field in _FIELDS])

# Every query for flags starts with this. The segment targets are two aligned arrays.
SELECT_FLAGS: LiteralString = """
    SELECT {columns}, flag_id, create_time, update_time, revision, segment_keys, segment_variants
    FROM feature_flags f
    CROSS JOIN LATERAL (
        SELECT array_agg(s.key ORDER BY fs.position) AS segment_keys,
               array_agg(fs.variant ORDER BY fs.position) AS segment_variants
        FROM flag_segments fs JOIN segments s USING (segment_id) WHERE fs.flag_id = f.flag_id
    ) t
""".replace("{columns}", _COLUMNS)


def flag_from_row(
    *, segment_keys: list[str] | None, segment_variants: list[str] | None, tags: list[str], **columns: Any
) -> Flag:
    """Build the flag of a row of `SELECT_FLAGS`."""
    targets = zip(segment_keys or (), segment_variants or (), strict=True)
    config = FlagConfig(
        **{field: columns.pop(field) for field in _FIELDS if field != "tags"},
        tags=tuple(tags),
        segment_targets=tuple(SegmentTarget(segment_key=key, variant=variant) for key, variant in targets),
    )
    return Flag(config=config, **columns)


class FlagStore:
    """Flags, read and changed. Writes go through `MutationRunner`; reads say at which revision they are true."""

    def __init__(self, database: Database, mutations: MutationRunner, *, quotas: Quotas = DEFAULT_QUOTAS) -> None:
        self._database = database
        self._mutations = mutations
        self._quotas = quotas

    def create(self, config: FlagConfig, intent: Intent) -> Written[Flag]:
        """Create a flag.

        Raises:
            AlreadyExists: The key is taken.
            NotFound: A segment target names no segment.
            ResourceExhausted: There are as many flags as there may be.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[Flag]:
            flag = _insert(conn, head, config)
            self._quotas.check(conn, "flags")
            return Effect(result=flag, preview=replace(flag, revision=0), change=flag_change(None, flag))

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def get(self, key: str) -> Read[Flag]:
        """Read a flag.

        Raises:
            NotFound: There is none with this key.
        """
        with self._database.read() as conn:
            return Read(result=find_flag(conn, key), revision=current_revision(conn))

    @retry_lost_read
    def list(self, wanted: FlagFilter) -> Read[list[Flag]]:
        """Read a page of flags in key order.

        Raises:
            FailedPrecondition: Usage is counted for a shorter time than the filter is about.
        """
        with self._database.read() as conn, conn.cursor(row_factory=kwargs_row(flag_from_row)) as cursor:
            if wanted.stale_for is not None:
                _check_coverage(conn, wanted.stale_for)
            flags = cursor.execute(LIST_FLAGS, _list_parameters(wanted)).fetchall()
            return Read(result=flags, revision=current_revision(conn))

    def update(self, update: FlagUpdate, intent: Intent) -> Written[Flag]:
        """Change fields of a flag.

        Raises:
            NotFound: There is no such flag, or a segment target names no segment.
            Changed: The flag has another etag than the update names.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[Flag]:
            before = find_flag(conn, update.key, etag=update.etag)
            config = update.applied_to(before.config)
            if config == before.config:
                return unchanged(before)
            after = _replace(conn, head, before, config)
            return Effect(
                result=after,
                preview=replace(after, revision=before.revision, update_time=before.update_time),
                change=flag_change(before, after),
            )

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def record_preview(self, user_ids: Sequence[str]) -> None:
        """Record that the caller is shown that these users would be targeted; of those of whom something is stored.

        Raises:
            ResourceExhausted: The caller has read too much today.
            Unavailable: It cannot be recorded.
        """
        with self._database.read_and_record() as conn:
            subjects = [subject for (subject,) in conn.execute(_FIND_SUBJECTS, {"user_ids": list(user_ids)})]
            if subjects:
                record_access(conn, AccessEvent.FLAG_PREVIEWED, subjects)

    def delete(self, key: str, etag: str, intent: Intent) -> Written[None]:
        """Delete a flag and its targets; an empty etag accepts any state.

        Raises:
            NotFound: There is no such flag.
            Changed: The flag has another etag.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, _head: Head) -> Effect[None]:
            before = find_flag(conn, key, etag=etag)
            count_sets(conn)
            conn.execute("DELETE FROM feature_flags WHERE flag_id = %(flag_id)s", {"flag_id": before.flag_id})
            return Effect(result=None, preview=None, change=flag_change(before, None))

        return self._mutations.mutate(intent, act, codec=NOTHING)


_FIND_SUBJECTS = "SELECT subject_id FROM subjects WHERE user_id = ANY(%(user_ids)s)"

FIND_FLAG = SELECT_FLAGS + "WHERE f.environment = '' AND f.key = %(key)s"


def find_flag(conn: Connection, key: str, *, etag: str = "") -> Flag:
    """Read a flag within a transaction.

    Raises:
        NotFound: There is none with this key.
        Changed: `etag` is not empty and not the flag's.
    """
    with conn.cursor(row_factory=kwargs_row(flag_from_row)) as cursor:
        flag = cursor.execute(FIND_FLAG, {"key": key}).fetchone()
    if flag is None:
        raise NotFound.flag(key)
    check_etag(f"flag {key!r}", etag, current=flag.etag)
    return flag


# Filters that are not given are NULL; the planner folds them away.
LIST_FLAGS = (
    SELECT_FLAGS
    + """
    WHERE f.environment = '' AND f.key > %(after)s
      AND (%(key_prefix)s::text IS NULL OR starts_with(f.key, %(key_prefix)s) AND f.key >= %(key_prefix)s)
      AND (%(tags)s::text[] IS NULL OR f.tags @> %(tags)s)
      AND (%(owner)s::text IS NULL OR f.owner = %(owner)s)
      AND (%(enabled)s::boolean IS NULL OR f.enabled = %(enabled)s)
      AND (%(stale_for)s::interval IS NULL OR f.create_time < now() - %(stale_for)s AND NOT EXISTS (
          SELECT FROM flag_last_named l
          WHERE l.flag_id = f.flag_id
            AND l.named_time > now() - %(stale_for)s - interval '1 minute'))
    ORDER BY f.key LIMIT %(limit)s
"""
)


def _list_parameters(wanted: FlagFilter) -> dict[str, object]:
    return {
        "after": wanted.after,
        "key_prefix": wanted.key_prefix or None,
        "tags": list(wanted.tags) or None,
        "owner": wanted.owner or None,
        "enabled": wanted.enabled,
        "stale_for": wanted.stale_for,
        "limit": wanted.limit,
    }


_COVERAGE = """
    SELECT since, since <= now() - %(stale_for)s::interval FROM usage_coverage
"""


def _check_coverage(conn: Connection, stale_for: timedelta) -> None:
    since, is_covered = one(conn.execute(_COVERAGE, {"stale_for": stale_for}))
    if not is_covered:
        raise FailedPrecondition.usage_not_covered(since)


_INSERT: LiteralString = """
    INSERT INTO feature_flags ({columns}, create_time, update_time, revision, targets_count, targets_sum)
    VALUES ({values}, %(update_time)s, %(update_time)s, %(revision)s, 0, %(no_targets)s)
    ON CONFLICT ON CONSTRAINT idx_flags_key DO NOTHING
    RETURNING flag_id
""".replace("{columns}", _COLUMNS).replace("{values}", _VALUES)


def _insert(conn: Connection, head: Head, config: FlagConfig) -> Flag:
    row = conn.execute(_INSERT, {**_columns(config, head), "no_targets": EMPTY.state}).fetchone()
    if row is None:
        raise AlreadyExists(f"flag {config.key!r} exists already", metadata={"flag_key": config.key})
    _insert_segment_targets(conn, row[0], config.segment_targets)
    return Flag(
        flag_id=row[0],
        config=config,
        create_time=head.create_time,
        update_time=head.create_time,
        revision=head.revision,
    )


_UPDATE: LiteralString = """
    UPDATE feature_flags SET ({columns}, update_time, revision) = ({values}, %(update_time)s, %(revision)s)
    WHERE flag_id = %(flag_id)s
""".replace("{columns}", _COLUMNS).replace("{values}", _VALUES)


def _replace(conn: Connection, head: Head, before: Flag, config: FlagConfig) -> Flag:
    conn.execute(_UPDATE, {**_columns(config, head), "flag_id": before.flag_id})
    if config.segment_targets != before.config.segment_targets:
        conn.execute("DELETE FROM flag_segments WHERE flag_id = %(flag_id)s", {"flag_id": before.flag_id})
        _insert_segment_targets(conn, before.flag_id, config.segment_targets)
    return replace(before, config=config, update_time=head.create_time, revision=head.revision)


def flag_columns(config: FlagConfig) -> dict[str, Any]:
    """Return the columns of what an editor decides."""
    return {field: getattr(config, field) for field in _FIELDS} | {"tags": list(config.tags)}


def _columns(config: FlagConfig, head: Head) -> dict[str, object]:
    return {**flag_columns(config), "update_time": head.create_time, "revision": head.revision}


_INSERT_SEGMENT_TARGETS = """
    INSERT INTO flag_segments (flag_id, position, segment_id, variant)
    SELECT %(flag_id)s, position - 1, segment_id, variant
    FROM unnest(%(keys)s::text[], %(variants)s::text[]) WITH ORDINALITY AS target (key, variant, position)
    JOIN segments s ON s.environment = '' AND s.key = target.key
    RETURNING position
"""


def _insert_segment_targets(conn: Connection, flag_id: int, targets: tuple[SegmentTarget, ...]) -> None:
    if not targets:
        return
    keys, variants = [target.segment_key for target in targets], [target.variant for target in targets]
    inserted = conn.execute(_INSERT_SEGMENT_TARGETS, {"flag_id": flag_id, "keys": keys, "variants": variants})
    check_segment_targets(conn)  # Before the result is fetched: in a pipeline, both take one round trip.
    found = {position for (position,) in inserted}
    for position, key in enumerate(keys):
        if position not in found:
            raise NotFound.segment(key)


def flag_change(before: Flag | None, after: Flag | None, **more: object) -> Change:
    """Return the change of a flag, see `change_of`."""
    return change_of(ResourceType.FLAG, before, after, key=lambda flag: flag.key, document=flag_document, **more)
