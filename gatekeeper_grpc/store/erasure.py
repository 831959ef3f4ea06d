"""Erasure of people: deletes the mapping of their id, all that refers to it, and the audit documents about them.

The long search in texts and documents runs before the head is locked, as of one revision; under the lock, only later
changes are searched.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

import rfc8785
from psycopg.rows import class_row
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.erasure import Erased, Mention, StillNamed, Subject
from gatekeeper_grpc.domain.errors import FailedPrecondition, InvalidArgument, NotFound
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, ResourceType, Written
from gatekeeper_grpc.store.mutations import Effect, Head, MutationRunner
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read

_CODEC = TypeAdapter(Erased)
_NAMED_AT_MOST = 20


class Recorder(Protocol):
    """Records erasures outside the database."""

    def record(self, user_id: str, time: datetime) -> None:
        """Record that a user id was erased; durable when this returns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """The progress of a search for a person, and the audit documents found; it ends where the id is `named`."""

    revision: int = 0
    audit_seq: int = 0
    documents: tuple[int, ...] = ()
    named: StillNamed = field(default_factory=StillNamed)


class ErasureStore:
    """Erases people, each in one mutation."""

    def __init__(self, database: Database, mutations: MutationRunner, recorder: Recorder) -> None:
        self._database = database
        self._mutations = mutations
        self._recorder = recorder

    def erase(self, user_id: str, intent: Intent) -> Written[Erased]:
        """Erase a user id everywhere.

        The erasure is recorded before the commit. If the commit fails, the record names a person who is not erased, and
        the caller gets an error.

        Raises:
            NotFound: Nothing is held about the id.
            FailedPrecondition: Flags, segments or other users name the id literally; an editor must change them first.
            InvalidArgument: The change reason names the id; it would stay in the audit log.
            GatekeeperError: See `MutationRunner.mutate`; and any error of the recorder.
        """
        if Mention(user_id).is_in(intent.change_reason):
            raise InvalidArgument.of("change_reason", "must not name the erased user: it stays in the audit log")
        search = self._search_ahead(user_id)

        def act(conn: Connection, head: Head) -> Effect[Erased]:
            subject = find_subject(conn, user_id)
            found = _search(conn, subject, search)
            if found.named:
                raise _still_named_error(user_id, found.named)
            erased = _erase(conn, subject, found.documents)
            if not intent.validate_only:
                self._recorder.record(user_id, head.create_time)
            return Effect(result=erased, preview=erased, change=_change(subject, erased, found.documents))

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def known_since(self) -> list[tuple[str, datetime]]:
        """Return every user id in the database, with the time of its first use."""
        with self._database.read() as conn:
            return conn.execute("SELECT user_id, create_time FROM subjects").fetchall()

    @retry_lost_read
    def _search_ahead(self, user_id: str) -> _Search:
        """Search without a lock. Raises no error yet, because a retry gets the result of the first request."""
        with self._database.read() as conn:
            try:
                return _search(conn, find_subject(conn, user_id), _Search())
            except NotFound:
                return _Search()


def find_subject(conn: Connection, user_id: str) -> Subject:
    """Read the subject of a user id.

    Raises:
        NotFound: Nothing is held about the id.
    """
    query = "SELECT subject_id, user_id FROM subjects WHERE user_id = %(user_id)s"
    with conn.cursor(row_factory=class_row(Subject)) as cursor:
        subject = cursor.execute(query, {"user_id": user_id}).fetchone()
    if subject is None:
        raise NotFound(
            f"nothing is held about user {user_id!r}", reason="USER_NOT_FOUND", metadata={"user_id": user_id}
        )
    return subject


def _search(conn: Connection, subject: Subject, done: _Search) -> _Search:
    """Search what was written after `done`."""
    named = done.named or still_named(conn, subject, since=done.revision)
    if named:
        return replace(done, named=named)
    (audit_seq,) = one(conn.execute("SELECT audit_seq FROM revision_head"))
    documents = documents_about(conn, subject, after=done.audit_seq)
    return _Search(revision=current_revision(conn), audit_seq=audit_seq, documents=(*done.documents, *documents))


# `needle` is the id as JSON text, without the quotes.
_LIVE_TEXT = """
    SELECT 'flag_keys', key, to_jsonb(tags || ARRAY[description, owner]) FROM feature_flags
    WHERE revision > %(since)s
      AND position(%(user_id)s in concat_ws(' ', description, owner, array_to_string(tags, ' '))) > 0
    UNION ALL
    SELECT 'segment_keys', key, jsonb_build_array(description, conditions) FROM segments
    WHERE revision > %(since)s
      AND (position(%(user_id)s in description) > 0 OR position(%(needle)s in conditions::text) > 0)
    UNION ALL
    SELECT 'user_ids', s.user_id, u.attributes FROM users u JOIN subjects s USING (subject_id)
    WHERE u.revision > %(since)s AND u.subject_id <> %(subject_id)s AND position(%(needle)s in u.attributes::text) > 0
"""


def still_named(conn: Connection, subject: Subject, *, since: int = 0) -> StillNamed:
    """Find flags, segments and users, changed after a revision, that name a person's id literally."""
    mention = Mention(subject.user_id)
    found: dict[str, list[str]] = {}
    for kind, name, text in conn.execute(_LIVE_TEXT, {**_needles(subject), "since": since}):
        if mention.is_in(text):
            found.setdefault(kind, []).append(name)
    return StillNamed(**{kind: tuple(sorted(names)) for kind, names in found.items()})


def _still_named_error(user_id: str, named: StillNamed) -> FailedPrecondition:
    where = {kind: ",".join(names[:_NAMED_AT_MOST]) for kind, names in asdict(named).items() if names}
    listed = "; ".join(f"{kind.replace('_', ' ')} {names}" for kind, names in where.items())
    return FailedPrecondition(
        f"user {user_id!r} is still named by {listed}: edit these first", reason="USER_STILL_NAMED", metadata=where
    )


# The documents of the person as a known user hold their attributes.
_OWN_DOCUMENTS = """
    SELECT d.seq FROM audit_log a JOIN audit_documents d USING (seq)
    WHERE a.resource_type = 'user' AND a.resource_key = %(subject)s AND a.seq > %(after)s
"""

_DOCUMENTS_HOLDING = """
    SELECT seq, document FROM audit_documents
    WHERE seq > %(after)s AND position(convert_to(%(needle)s, 'UTF8') in document) > 0
"""


def documents_about(conn: Connection, subject: Subject, *, after: int = 0) -> list[int]:
    """Find the audit documents, after an entry, that hold a person's attributes or literal id."""
    mention = Mention(subject.user_id)
    parameters = {**_needles(subject), "subject": str(subject.subject_id), "after": after}
    found = {seq for (seq,) in conn.execute(_OWN_DOCUMENTS, parameters)}
    with conn.cursor(name="documents") as cursor:
        for seq, document in cursor.execute(_DOCUMENTS_HOLDING, parameters):
            if mention.is_in(json.loads(document)):
                found.add(seq)
    return sorted(found)


def _needles(subject: Subject) -> dict[str, Any]:
    needle = rfc8785.dumps(subject.user_id)[1:-1].decode()
    return {"subject_id": subject.subject_id, "user_id": subject.user_id, "needle": needle}


# Results stored for retries, of mutations that concern the person or whose documents are about them.
_DELETE_RESULTS = """
    DELETE FROM idempotency_keys
    WHERE subjects @> ARRAY[%(subject_id)s]
       OR revision IN (SELECT revision FROM audit_log WHERE seq = ANY(%(documents)s))
"""

# The attributes are deleted with the subject.
_ERASE = """
    WITH targets AS (DELETE FROM targeted_users WHERE subject_id = %(subject_id)s RETURNING 1),
         memberships AS (DELETE FROM segment_members WHERE subject_id = %(subject_id)s RETURNING 1),
         documents AS (DELETE FROM audit_documents WHERE seq = ANY(%(documents)s) RETURNING 1)
    SELECT (SELECT count(*) FROM targets), (SELECT count(*) FROM memberships), (SELECT count(*) FROM documents)
"""


def _erase(conn: Connection, subject: Subject, documents: Iterable[int]) -> Erased:
    who = {"subject_id": subject.subject_id, "documents": list(documents)}
    conn.execute(_DELETE_RESULTS, who)
    targets, memberships, redacted = one(conn.execute(_ERASE, who))
    conn.execute("DELETE FROM subjects WHERE subject_id = %(subject_id)s", who)
    return Erased(targets_removed=targets, memberships_removed=memberships, documents_redacted=redacted)


def _change(subject: Subject, erased: Erased, documents: Iterable[int]) -> Change:
    # No `subjects`: the stored result of the erasure has only counts, and stays for a retry.
    return Change(
        resource=ResourceType.SUBJECT,
        key=str(subject.subject_id),
        change=ChangeType.DELETED,
        document={"erased": asdict(erased), "redacted": list(documents)},
    )
