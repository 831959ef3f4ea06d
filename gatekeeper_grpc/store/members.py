"""Members of segments in PostgreSQL. They may be a million: edits are recorded as deltas, by subject id."""

from collections.abc import Callable, Iterable
from typing import LiteralString
from uuid import UUID

from psycopg.rows import class_row
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.commands import MemberEdit
from gatekeeper_grpc.domain.erasure import Subject
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, Read, ResourceType, Written
from gatekeeper_grpc.domain.set_hash import member_element
from gatekeeper_grpc.store.access_trace import AccessEvent, Page, recorded_page
from gatekeeper_grpc.store.hashed_sets import MEMBERS, SetChange, count_sets, read_hash, write_hash
from gatekeeper_grpc.store.mutations import Effect, Head, MutationRunner, unchanged
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision
from gatekeeper_grpc.store.postgres.retries import retry_lost_read
from gatekeeper_grpc.store.segments import find_segment
from gatekeeper_grpc.store.subjects import ensure_subjects, no_evidence

_CODEC = TypeAdapter(int)


class MemberStore:
    """The users that are members of segments by name. Edits return how many users they changed."""

    def __init__(self, database: Database, mutations: MutationRunner) -> None:
        self._database = database
        self._mutations = mutations

    def add(self, edit: MemberEdit, intent: Intent) -> Written[int]:
        """Make users members, all or none.

        Raises:
            NotFound: There is no such segment.
            Changed: The segment has another etag.
            GatekeeperError: See `MutationRunner.mutate`.
        """
        return self._edit("added", _ADD, edit, intent)

    def remove(self, edit: MemberEdit, intent: Intent) -> Written[int]:
        """Remove users from the members, all or none.

        Raises:
            NotFound: There is no such segment.
            Changed: The segment has another etag.
            GatekeeperError: See `MutationRunner.mutate`.
        """
        return self._edit("removed", _REMOVE, edit, intent)

    @retry_lost_read
    def list(
        self, segment_key: str, paged: Callable[[Iterable[Subject]], Page], *, after: str, limit: int
    ) -> Read[Page]:
        """Read a segment's members in user-id order, after `after`, and return what `paged` makes of them.

        Raises:
            NotFound: There is no such segment.
        """
        with self._database.read_and_record() as conn, conn.cursor(row_factory=class_row(Subject)) as cursor:
            segment = find_segment(conn, segment_key)
            wanted = {"segment_id": segment.segment_id, "after": after, "limit": limit}
            members = cursor.execute(LIST_MEMBERS, wanted).fetchall()
            page = recorded_page(
                conn, AccessEvent.MEMBERS_LISTED, members, paged, subjects=lambda member: [member.subject_id]
            )
            return Read(result=page, revision=current_revision(conn))

    def _edit(self, what: str, query: LiteralString, edit: MemberEdit, intent: Intent) -> Written[int]:
        def act(conn: Connection, head: Head) -> Effect[int]:
            hash_before = read_hash(conn, MEMBERS, edit.segment_key)
            segment = find_segment(conn, edit.segment_key, etag=edit.etag)
            evidence_hash = ensure_subjects(conn, head, edit.user_ids) if query is _ADD else no_evidence
            count_sets(conn)
            before = hash_before()
            wanted = {"segment_id": segment.segment_id, "user_ids": list(edit.user_ids)}
            subjects = sorted(subject for (subject,) in conn.execute(query, wanted))
            if not subjects:
                return unchanged(0)
            changed = {what: map(member_element, subjects)}
            change = write_hash(conn, MEMBERS, segment.segment_id, before, **changed)
            return _effect(segment.key, {what: subjects}, change, evidence_hash=evidence_hash())

        return self._mutations.mutate(intent, act, codec=_CODEC)


def _effect(
    segment_key: str, done: dict[str, list[UUID]], change: SetChange, *, evidence_hash: bytes | None
) -> Effect[int]:
    changed = {what: [str(subject) for subject in subjects] for what, subjects in done.items()}
    (subjects,) = done.values()
    entry = Change(
        resource=ResourceType.MEMBERS,
        key=segment_key,
        change=ChangeType.UPDATED,
        document={**changed, "set": change.document()},
        subjects=tuple(subjects),
        evidence_hash=evidence_hash,
    )
    return Effect(result=len(subjects), preview=len(subjects), change=entry)


LIST_MEMBERS = """
    SELECT subject_id, s.user_id FROM segment_members m JOIN subjects s USING (subject_id)
    WHERE m.segment_id = %(segment_id)s AND s.user_id > %(after)s
    ORDER BY s.user_id LIMIT %(limit)s
"""

_ADD = """
    INSERT INTO segment_members (segment_id, subject_id)
    SELECT %(segment_id)s, subject_id FROM subjects WHERE user_id = ANY(%(user_ids)s)
    ON CONFLICT ON CONSTRAINT segment_members_pkey DO NOTHING
    RETURNING subject_id
"""

_REMOVE = """
    DELETE FROM segment_members m USING subjects s
    WHERE m.segment_id = %(segment_id)s AND m.subject_id = s.subject_id AND s.user_id = ANY(%(user_ids)s)
    RETURNING m.subject_id
"""
