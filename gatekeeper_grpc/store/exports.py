"""Export of everything held about a user id, in parts, from one state of the database."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, LiteralString

from psycopg.rows import class_row

from gatekeeper_grpc.domain.audit import DocumentedEntry
from gatekeeper_grpc.domain.erasure import ExportedMembership, ExportedTarget, ExportedUser, ExportPart, Subject
from gatekeeper_grpc.domain.errors import NotFound
from gatekeeper_grpc.domain.mutation import Read
from gatekeeper_grpc.domain.user import User
from gatekeeper_grpc.store.access_trace import AccessEvent, record_access
from gatekeeper_grpc.store.audit.log import documented_entries
from gatekeeper_grpc.store.erasure import documents_about, find_subject, still_named
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision
from gatekeeper_grpc.store.postgres.retries import retry_conflicts
from gatekeeper_grpc.store.users import find_user

_PART = 1_000
_ENTRIES_AT_ONCE = 100


class ExportStore:
    """Reads what is held about people."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def export(self, user_id: str) -> Iterator[Read[ExportPart]]:
        """Yield the user, then all that is held about it; all parts are true at the same revision.

        If nothing is held about the id, the first part says so and is the only one. The export is recorded before
        anything is read.

        Raises:
            Unavailable: The database cannot be reached, or the export cannot be recorded.
        """
        self._database.check_caller()
        self._record(user_id)
        with self._database.read() as conn:
            revision = current_revision(conn)
            for part in _parts(conn, user_id):
                yield Read(result=part, revision=revision)

    @retry_conflicts
    def _record(self, user_id: str) -> None:
        with self._database.write() as conn:
            subject = _subject(conn, user_id)
            record_access(conn, AccessEvent.USER_EXPORTED, [subject.subject_id] if subject else [], is_durable=True)


def _subject(conn: Connection, user_id: str) -> Subject | None:
    try:
        return find_subject(conn, user_id)
    except NotFound:
        return None


def _parts(conn: Connection, user_id: str) -> Iterator[ExportPart]:
    subject = _subject(conn, user_id)
    if subject is None:
        yield ExportedUser(user_id=user_id)
        return
    named = still_named(conn, user_id)()
    yield ExportedUser(
        user_id=user_id, subject_id=subject.subject_id, user=_known(conn, user_id), named_by=named.segment_keys
    )
    yield from _rows(conn, _TARGETS, subject, ExportedTarget)
    yield from _rows(conn, _MEMBERSHIPS, subject, ExportedMembership)
    yield from _entries(conn, subject)


def _known(conn: Connection, user_id: str) -> User | None:
    try:
        return find_user(conn, user_id)
    except NotFound:
        return None


_TARGETS = """
    SELECT f.key AS flag_key, t.variant FROM targeted_users t JOIN feature_flags f USING (flag_id)
    WHERE t.subject_id = %(subject_id)s ORDER BY f.key
"""

_MEMBERSHIPS = """
    SELECT g.key AS segment_key FROM segment_members m JOIN segments g USING (segment_id)
    WHERE m.subject_id = %(subject_id)s ORDER BY g.key
"""


def _rows(conn: Connection, query: LiteralString, subject: Subject, part: type[Any]) -> Iterator[list[Any]]:
    """Yield rows in lists that fit into a message."""
    with conn.cursor(row_factory=class_row(part)) as cursor:
        cursor.execute(query, {"subject_id": subject.subject_id})
        while rows := cursor.fetchmany(_PART):
            yield rows


_ENTRIES_NAMING = """
    SELECT seq FROM audit_documents WHERE position(convert_to(%(subject)s, 'UTF8') in document) > 0
    UNION
    SELECT seq FROM audit_log WHERE resource_type IN ('user', 'subject') AND resource_key = %(subject)s
"""


def _entries(conn: Connection, subject: Subject) -> Iterator[DocumentedEntry]:
    by_subject_id = {seq for (seq,) in conn.execute(_ENTRIES_NAMING, {"subject": str(subject.subject_id)})}
    seqs = sorted(by_subject_id.union(documents_about(conn, subject.user_id)))
    for first in range(0, len(seqs), _ENTRIES_AT_ONCE):
        for entry in documented_entries(conn, seqs[first : first + _ENTRIES_AT_ONCE]):
            yield _without_others(entry, subject)


def _without_others(entry: DocumentedEntry, subject: Subject) -> DocumentedEntry:
    """Leave out the ids of other users, because the export may be handed to its subject."""
    own = str(subject.subject_id)
    return replace(entry, users={own: subject.user_id} if own in entry.users else {})
