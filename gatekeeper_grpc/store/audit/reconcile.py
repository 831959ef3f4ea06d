"""Reconciles the database with the audit log: flags, segments, users, admin users, credentials, and their sets.

The log must be verified as well: this module believes its documents.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from heapq import merge
from itertools import chain, groupby, takewhile
from operator import itemgetter
from types import MappingProxyType
from typing import Any, LiteralString, NamedTuple, TypeAlias

import psycopg
from psycopg.abc import Buffer
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzBinaryLoader

from gatekeeper_grpc.domain.admin_user import FIRST_ADMIN, admin_user_document
from gatekeeper_grpc.domain.api_token import api_token_document
from gatekeeper_grpc.domain.audit import read_document
from gatekeeper_grpc.domain.client_key import client_key_document
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.flag import flag_document
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.reconciliation import (
    ARCHIVED,
    EARLIER_VERSION,
    REDACTED,
    UNREADABLE,
    Comparison,
    Recorded,
    State,
    Unknown,
    compare,
)
from gatekeeper_grpc.domain.segment import segment_document
from gatekeeper_grpc.domain.set_hash import EMPTY, SetHash
from gatekeeper_grpc.domain.user import user_document
from gatekeeper_grpc.store.admin_users import SELECT_ADMIN_USERS, admin_user_from_row
from gatekeeper_grpc.store.api_tokens import SELECT_API_TOKENS, api_token_from_row
from gatekeeper_grpc.store.audit.log import read_start
from gatekeeper_grpc.store.client_keys import SELECT_CLIENT_KEYS, client_key_from_row
from gatekeeper_grpc.store.flags import SELECT_FLAGS, flag_from_row
from gatekeeper_grpc.store.hashed_sets import MEMBERS, TARGETS, SetTable
from gatekeeper_grpc.store.postgres.database import Connection, one
from gatekeeper_grpc.store.segments import segment_from_row
from gatekeeper_grpc.store.users import SELECT_USERS, user_from_row

_FETCH_ROWS = 1_000
_FETCH_ELEMENTS = 10_000
# A document may have 400 KB.
_FETCH_DOCUMENTS = 100
# What a row that nobody wrote through Gatekeeper may raise.
_INVALID_ROW = (InvalidArgument, ValueError, TypeError, LookupError, AttributeError, RecursionError)
# Newest first: a resource itself comes before the entries about it.
_NOW = -(2**63)
# Under a key, in an order: a row, or a change that the log records.
_Item: TypeAlias = tuple[str, int, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A kind of resource: its rows in order of their keys, and the document of a row."""

    resource: ResourceType
    rows: LiteralString
    key: str
    document: Callable[[dict[str, Any]], dict[str, Any]]


def _segment(row: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a segment, after a check of the columns that are derived from its conditions."""
    names, count = row.pop("attribute_names"), row.pop("scanned_values")
    segment = segment_from_row(**row)
    if names != sorted(segment.attribute_names()) or count != segment.config.scanned_value_count():
        raise InvalidArgument.of("segment.conditions", "must fit attribute_names and scanned_values")
    return segment_document(segment)


# What the document of an admin user leaves out.
_ADMIN_DEFAULTS: Mapping[str, Any] = MappingProxyType({"must_change_password": False})

_TABLES = (
    _Table(
        resource=ResourceType.FLAG,
        rows=SELECT_FLAGS + " WHERE f.environment = '' ORDER BY f.key",
        key="key",
        document=lambda row: flag_document(flag_from_row(**row)),
    ),
    _Table(
        resource=ResourceType.SEGMENT,
        rows="""
            SELECT segment_id, key, description, match, conditions, create_time, update_time, revision,
                   attribute_names, scanned_values
            FROM segments WHERE environment = '' ORDER BY key
        """,
        key="key",
        document=_segment,
    ),
    _Table(
        resource=ResourceType.USER,
        rows=SELECT_USERS + " ORDER BY u.subject_id",
        key="subject_id",
        document=lambda row: user_document(user_from_row(**row)),
    ),
    _Table(
        resource=ResourceType.ADMIN_USER,
        rows=SELECT_ADMIN_USERS + " ORDER BY username",
        key="username",
        document=lambda row: {**_ADMIN_DEFAULTS, **admin_user_document(admin_user_from_row(**row))},
    ),
    _Table(
        resource=ResourceType.CLIENT_KEY,
        rows=SELECT_CLIENT_KEYS + " ORDER BY key_id",
        key="key_id",
        document=lambda row: client_key_document(client_key_from_row(**row)),
    ),
    _Table(
        resource=ResourceType.API_TOKEN,
        rows=SELECT_API_TOKENS + " ORDER BY token_id",
        key="token_id",
        document=lambda row: api_token_document(api_token_from_row(**row)),
    ),
)


def reconcile(conn: Connection, *, trusted_seq: int = 0) -> Iterator[Comparison]:
    """Compare each resource that the database or the log knows with its history, within a transaction.

    Memory is bounded by the number of flags and segments; users, members and entries are streamed.

    Args:
        conn: The transaction; it must see one state of the database.
        trusted_seq: Differences that entries up to this one found are not reported again.
    """
    log = _Log(conn, trusted_seq)
    for table in _TABLES:
        yield from log.compare_rows(table)
    yield from log.compare_sets(TARGETS, ResourceType.FLAG, _FLAG_IDS)
    yield from log.compare_sets(MEMBERS, ResourceType.SEGMENT, _SEGMENT_IDS)
    for resource, key in conn.execute(_ELSEWHERE):
        yield Comparison(resource=ResourceType(resource), key=key, faults=("in an environment that is not in use",))


_ELSEWHERE = """
    SELECT 'flag', key FROM feature_flags WHERE environment <> ''
    UNION ALL SELECT 'segment', key FROM segments WHERE environment <> ''
"""

_FLAG_IDS = "SELECT key, flag_id FROM feature_flags WHERE environment = '' ORDER BY key"
_SEGMENT_IDS = "SELECT key, segment_id FROM segments WHERE environment = '' ORDER BY key"

_FIRST_REVISION = "SELECT coalesce(min(revision), 0) FROM audit_log"


class _Log:
    """The log as one transaction sees it."""

    def __init__(self, conn: Connection, trusted_seq: int) -> None:
        self._conn = conn
        self._trusted_seq = trusted_seq
        self._is_archived = read_start(conn).seq > 0
        (self._first_revision,) = one(conn.execute(_FIRST_REVISION))

    def compare_rows(self, table: _Table) -> Iterator[Comparison]:
        """Compare all resources of a kind."""
        resource = table.resource
        defaults = _ADMIN_DEFAULTS if resource is ResourceType.ADMIN_USER else {}
        sources = [self._rows(table), self._entries(resource, partial(_changes_of_resource, defaults))]
        if resource is ResourceType.USER:
            sources.append(self._erased_users())
        origin = self._origin_of_admin if resource is ResourceType.ADMIN_USER else self._origin
        for key, group in _by_key(sources):
            now, history = _split(group)
            if isinstance(now, _Invalid):
                yield Comparison(resource=resource, key=key, faults=(f"changed behind the log: {now.reason}",))
            else:
                yield compare(resource, key, now=now, history=history, origin=origin, trusted_seq=self._trusted_seq)

    def compare_sets(self, sets: SetTable, owner: ResourceType, owners: LiteralString) -> Iterator[Comparison]:
        """Compare the sets of all flags or segments that exist."""
        hashes = self._hashes(sets)
        uncounted = [seq for (seq,) in self._conn.execute(_UNCOUNTED_ERASURES, {"actions": list(_ERASURES)})]
        sources = [
            self._owners(owner, owners),
            self._entries(sets.resource, _changes_of_set),
            self._left_sets(sets.resource),
        ]
        for key, group in _by_key(sources):
            owner_id, changes = _split(group)
            if owner_id is not None:
                yield compare(
                    sets.resource,
                    key,
                    now=hashes.get(owner_id, EMPTY).document(),
                    history=_history_of_set(changes, owner_id),
                    origin=partial(self._origin_of_set, owner, key),
                    uncounted=uncounted,
                    trusted_seq=self._trusted_seq,
                )

    # --- What a resource was before the log ---

    def _origin(self, later: State) -> State:
        if not isinstance(later, Mapping) or not self._is_archived:
            return None
        return ARCHIVED if later.get("revision", 0) < self._first_revision else None

    def _origin_of_admin(self, later: State) -> State:
        """The log does not know the first admin user, but how the first start creates it is known."""
        if isinstance(later, Mapping) and (later["username"], later["revision"]) == (FIRST_ADMIN, 0):
            return {**later, "role": "admin", "enabled": True, "update_time": later["create_time"]}
        return self._origin(later)

    def _origin_of_set(self, owner: ResourceType, key: str, _later: State) -> State:
        """A set began empty, with its owner."""
        wanted = {"owner": owner, "key": key, "actions": list(_CREATIONS)}
        if self._is_archived and not self._conn.execute(_CREATION, wanted).fetchone():
            return ARCHIVED
        return EMPTY.document()

    # --- What the database has ---

    def _rows(self, table: _Table) -> Iterator[_Item]:
        with self._conn.cursor(name=f"rows_{table.resource}", row_factory=dict_row) as cursor:
            cursor.adapters.register_loader("timestamptz", _AnyTimeLoader)
            cursor.itersize = _FETCH_ROWS
            for row in cursor.execute(table.rows, binary=True):
                yield str(row[table.key]), _NOW, _state(table, row)

    def _owners(self, owner: ResourceType, query: LiteralString) -> Iterator[_Item]:
        with self._conn.cursor(name=f"owners_{owner}") as cursor:
            for key, owner_id in cursor.execute(query):
                yield key, _NOW, owner_id

    def _hashes(self, sets: SetTable) -> Mapping[int, SetHash]:
        """Compute the hash of each set that is not empty."""
        hashes: defaultdict[int, SetHash] = defaultdict(SetHash)
        with self._conn.cursor(name=f"elements_{sets.resource}") as cursor:
            cursor.itersize = _FETCH_ELEMENTS
            for owner_id, rows in groupby(cursor.execute(sets.elements, binary=True), itemgetter(0)):
                hashes[owner_id] = hashes[owner_id].changed(added=(element for _, element in rows))
        return hashes

    # --- What the log has, newest first for each key ---

    def _entries(
        self, resource: ResourceType, changes: Callable[[int, bytes | None], Iterable[Any]]
    ) -> Iterator[_Item]:
        with self._conn.cursor(name=f"entries_{resource}") as cursor:
            cursor.itersize = _FETCH_DOCUMENTS
            for key, seq, document in cursor.execute(_ENTRIES, {"resource": resource}, binary=True):
                for change in changes(seq, document):
                    yield key, -seq, change

    def _erased_users(self) -> Iterator[_Item]:
        with self._conn.cursor(name="erased_users") as cursor:
            for key, seq in cursor.execute(_ERASED_USERS, {"actions": list(_ERASURES)}):
                yield key, -seq, Recorded(seq, REDACTED, None)

    def _left_sets(self, resource: ResourceType) -> Iterator[_Item]:
        with self._conn.cursor(name=f"left_{resource}") as cursor:
            cursor.itersize = _FETCH_ROWS
            for key, seq, change in cursor.execute(_LEFT_SETS, {"resource": resource, "actions": list(_ERASURES)}):
                yield key, -seq, _change_of_set(seq, change)


_CREATIONS = ("CreateFlag", "CreateSegment")
# A configuration creates, updates and deletes.
_CREATION = """
    SELECT 1 FROM audit_log a
    WHERE resource_type = %(owner)s AND resource_key = %(key)s AND (action = ANY(%(actions)s)
        OR action = 'ApplyConfiguration' AND EXISTS (
            SELECT FROM audit_documents d
            WHERE d.seq = a.seq AND convert_from(d.document, 'UTF8')::jsonb -> 'before' = 'null'))
    LIMIT 1
"""

# Each kind of resource has an index of its entries in this order.
_ENTRIES = """
    SELECT a.resource_key, a.seq, d.document FROM audit_log a LEFT JOIN audit_documents d ON d.seq = a.seq
    WHERE a.resource_type = %(resource)s ORDER BY a.resource_key, a.seq DESC
"""

_ERASURES = ("EraseUser", "ReapplyErasure")

_ERASED_USERS = """
    SELECT resource_key, seq FROM audit_log
    WHERE resource_type = 'subject' AND action = ANY(%(actions)s) ORDER BY resource_key, seq DESC
"""

# Erasures by an earlier version, and those whose document is gone, do not say which sets they changed.
_UNCOUNTED_ERASURES = """
    SELECT a.seq FROM audit_log a LEFT JOIN audit_documents d ON d.seq = a.seq
    WHERE a.resource_type = 'subject' AND a.action = ANY(%(actions)s)
      AND (d.document IS NULL OR position('"sets":'::bytea in d.document) = 0)
    ORDER BY a.seq
"""

_LEFT_SETS = """
    SELECT change ->> 'key', a.seq, change FROM audit_log a JOIN audit_documents d ON d.seq = a.seq
    CROSS JOIN LATERAL jsonb_array_elements(convert_from(d.document, 'UTF8')::jsonb -> 'sets') AS change
    WHERE a.resource_type = 'subject' AND a.action = ANY(%(actions)s) AND change ->> 'resource_type' = %(resource)s
      AND position('"sets":'::bytea in d.document) > 0
    ORDER BY (change ->> 'key') COLLATE "C", a.seq DESC
"""


class _Invalid(NamedTuple):
    """A row that is no valid resource, and why."""

    reason: str


def _state(table: _Table, row: dict[str, Any]) -> "State | _Invalid":
    try:
        return table.document(row)
    except InvalidArgument as exc:
        return _Invalid(f"{exc.metadata['field'].partition('.')[2]} is not valid")
    except _INVALID_ROW:
        return _Invalid("it cannot be read")


class _AnyTimeLoader(TimestamptzBinaryLoader):
    """Reads a time as text where Python has no such time, such as infinity: the row is then no valid resource."""

    def load(self, data: Buffer) -> Any:
        try:
            return super().load(data)
        except psycopg.DataError:
            return bytes(data).hex()


def _by_key(sources: Iterable[Iterator[_Item]]) -> Iterator[tuple[str, Iterator[_Item]]]:
    """Merge sources that are each in order, and group them by key."""
    return groupby(merge(*sources, key=itemgetter(0, 1)), key=itemgetter(0))


def _split(group: Iterator[_Item]) -> tuple[Any, Iterator[Any]]:
    """Return what the database has under a key, None for nothing, and what the log has, newest first."""
    _, order, first = next(group)
    rest = (change for *_, change in group)
    return (first, rest) if order == _NOW else (None, chain([first], rest))


def _changes_of_resource(defaults: Mapping[str, Any], seq: int, document: bytes | None) -> list[Recorded]:
    """Read the change in a document. Entries about a resource that record no change of it are passed over."""
    fields = _parsed(document)
    if isinstance(fields, Unknown):
        return [Recorded(seq, fields, fields)]
    if not {"before", "after"} <= fields.keys():
        return []
    return [Recorded(seq, _as_state(fields["before"], defaults), _as_state(fields["after"], defaults))]


def _as_state(value: Any, defaults: Mapping[str, Any] = MappingProxyType({})) -> State:
    if value is None:
        return None
    return {**defaults, **value} if isinstance(value, dict) else REDACTED


class _SetChange(NamedTuple):
    """A change of a set, and the flag or segment that owned it; None: unknown."""

    owner_id: int | None
    recorded: Recorded


def _changes_of_set(seq: int, document: bytes | None) -> list[_SetChange]:
    fields = _parsed(document)
    if isinstance(fields, Unknown):
        return [_SetChange(None, Recorded(seq, fields, fields))]
    return [_change_of_set(seq, fields.get("set"))]


def _change_of_set(seq: int, change: Any) -> _SetChange:
    if not isinstance(change, dict) or not {"id", "before", "after"} <= change.keys():
        return _SetChange(None, Recorded(seq, EARLIER_VERSION, EARLIER_VERSION))
    return _SetChange(change["id"], Recorded(seq, _as_state(change["before"]), _as_state(change["after"])))


def _history_of_set(changes: Iterable[_SetChange], owner_id: int) -> Iterator[Recorded]:
    """Leave out what belongs to a deleted flag or segment of the same key."""
    return (recorded for _, recorded in takewhile(lambda change: change.owner_id in {None, owner_id}, changes))


def _parsed(document: bytes | None) -> dict[str, Any] | Unknown:
    if document is None:
        return REDACTED
    try:
        fields = read_document(document)
    except (ValueError, RecursionError):
        return UNREADABLE
    return fields if isinstance(fields, dict) else REDACTED
