"""Erases people: the mapping of their id, all that hangs on it, and the audit documents that literally hold the id.

What takes long is done before the head is locked: the tables and documents are searched as of one revision, and under the lock
only what came after it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import rfc8785
from psycopg.rows import class_row

from gatekeeper_grpc.domain.erasure import Erased, Mention, StillNamed, Subject
from gatekeeper_grpc.domain.errors import FailedPrecondition, NotFound
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, ResourceType, Written
from gatekeeper_grpc.store.database import Connection, Database, current_revision, one
from gatekeeper_grpc.store.ledger import Codec, Effect, Head, Ledger

_RESULT = Codec(to_document=asdict, from_document=lambda document: Erased(**document))
_NAMED_AT_MOST = 20


class Recorder(Protocol):
    """Remembers erasures outside the database."""

    def record(self, user_id: str, time: datetime) -> None:
        """Remember that a user id was erased; durable when this returns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """How far the search for a user id has come: what it found up to a revision and an audit entry."""

    revision: int = 0
    audit_seq: int = 0
    documents: tuple[int, ...] = ()


class ErasureStore:
    """Erases people, each in one mutation."""

    def __init__(self, database: Database, ledger: Ledger, recorder: Recorder) -> None:
        self._database = database
        self._ledger = ledger
        self._recorder = recorder

    def erase(self, user_id: str, intent: Intent) -> Written[Erased]:
        """Erase a user id everywhere.

        Errors: `NotFound` when nothing is held about it; `FailedPrecondition` when flags, segments or other users name it
        literally, for these an editor must change first.
        """
        with self._database.read() as conn:
            subject = _find(conn, user_id)
            search = _search(conn, subject, _Search())

        def act(conn: Connection, head: Head) -> Effect[Erased]:
            subject = _find(conn, user_id)
            found = _search(conn, subject, search)
            erased = _erase(conn, subject, found.documents)
            if not intent.validate_only:
                self._recorder.record(user_id, head.create_time)
            return Effect(result=erased, preview=erased, change=_change(subject, erased, found.documents))

        return self._ledger.mutate(intent, act, codec=_RESULT)

    def known_since(self) -> Iterator[tuple[str, datetime]]:
        """Yield every user id and when Gatekeeper first met it, as the database has it now."""
        with self._database.read() as conn, conn.cursor(name="subjects") as cursor:
            yield from cursor.execute("SELECT user_id, create_time FROM subjects")


def _find(conn: Connection, user_id: str) -> Subject:
    query = "SELECT subject_id, user_id FROM subjects WHERE user_id = %(user_id)s"
    with conn.cursor(row_factory=class_row(Subject)) as cursor:
        subject = cursor.execute(query, {"user_id": user_id}).fetchone()
    if subject is None:
        raise NotFound(
            f"nothing is held about user {user_id!r}", reason="USER_NOT_FOUND", metadata={"user_id": user_id}
        )
    return subject


def _search(conn: Connection, subject: Subject, done: _Search) -> _Search:
    """Search what came after `done`; `FailedPrecondition` when something alive names the user id."""
    mention = Mention(subject.user_id)
    named = _still_named(conn, subject, mention, since=done.revision)
    if named:
        raise _still_named_error(subject.user_id, named)
    (audit_seq,) = one(conn.execute("SELECT audit_seq FROM revision_head"))
    documents = _documents_naming(conn, subject, mention, after=done.audit_seq)
    return _Search(revision=current_revision(conn), audit_seq=audit_seq, documents=(*done.documents, *documents))


# `needle` is the id as JSON text writes it, less the quotes.
_LIVE_TEXT = """
    SELECT 'flag_keys', key, to_jsonb(tags || ARRAY[description, owner]) FROM feature_flags
    WHERE revision > %(since)s AND position(%(user_id)s in concat_ws(' ', description, owner, array_to_string(tags, ' '))) > 0
    UNION ALL
    SELECT 'segment_keys', key, jsonb_build_array(description, conditions) FROM segments
    WHERE revision > %(since)s
      AND (position(%(user_id)s in description) > 0 OR position(%(needle)s in conditions::text) > 0)
    UNION ALL
    SELECT 'user_ids', s.user_id, u.attributes FROM users u JOIN subjects s USING (subject_id)
    WHERE u.revision > %(since)s AND u.subject_id <> %(subject_id)s AND position(%(needle)s in u.attributes::text) > 0
"""


def _still_named(conn: Connection, subject: Subject, mention: Mention, *, since: int) -> StillNamed:
    found: dict[str, list[str]] = {}
    for kind, name, text in conn.execute(_LIVE_TEXT, {**_needles(subject), "since": since}):
        if mention.is_in(text) and len(found.setdefault(kind, [])) < _NAMED_AT_MOST:
            found[kind].append(name)
    return StillNamed(**{kind: tuple(sorted(names)) for kind, names in found.items()})


def _still_named_error(user_id: str, named: StillNamed) -> FailedPrecondition:
    where = {kind: ",".join(names) for kind, names in asdict(named).items() if names}
    listed = "; ".join(f"{kind.replace('_', ' ')} {names}" for kind, names in where.items())
    return FailedPrecondition(
        f"user {user_id!r} is still named by {listed}: edit these first", reason="USER_STILL_NAMED", metadata=where
    )


_DOCUMENTS_HOLDING = """
    SELECT seq, document FROM audit_documents
    WHERE seq > %(after)s AND position(convert_to(%(needle)s, 'UTF8') in document) > 0
"""


def _documents_naming(conn: Connection, subject: Subject, mention: Mention, *, after: int) -> list[int]:
    with conn.cursor(name="documents") as cursor:
        rows = cursor.execute(_DOCUMENTS_HOLDING, {**_needles(subject), "after": after})
        return [seq for seq, document in rows if mention.is_in(json.loads(document))]


def _needles(subject: Subject) -> dict[str, Any]:
    needle = rfc8785.dumps(subject.user_id)[1:-1].decode()
    return {"subject_id": subject.subject_id, "user_id": subject.user_id, "needle": needle}


# Answers kept for retries, of mutations that concern the person or whose documents name the id.
_FORGET_ANSWERS = """
    DELETE FROM idempotency_keys
    WHERE subjects @> ARRAY[%(subject_id)s]
       OR revision IN (SELECT revision FROM audit_log WHERE seq = ANY(%(documents)s))
"""


def _erase(conn: Connection, subject: Subject, documents: Iterable[int]) -> Erased:
    who = {"subject_id": subject.subject_id, "documents": list(documents)}
    conn.execute(_FORGET_ANSWERS, who)
    targets = conn.execute("DELETE FROM targeted_users WHERE subject_id = %(subject_id)s", who).rowcount
    memberships = conn.execute("DELETE FROM segment_members WHERE subject_id = %(subject_id)s", who).rowcount
    redacted = conn.execute("DELETE FROM audit_documents WHERE seq = ANY(%(documents)s)", who).rowcount
    forget_user(conn, subject.subject_id)
    conn.execute("DELETE FROM subjects WHERE subject_id = %(subject_id)s", who)
    return Erased(targets_removed=targets, memberships_removed=memberships, documents_redacted=redacted)


def _change(subject: Subject, erased: Erased, documents: Iterable[int]) -> Change:
    return Change(
        resource=ResourceType.SUBJECT,
        key=str(subject.subject_id),
        change=ChangeType.DELETED,
        document={"erased": asdict(erased), "redacted": list(documents)},
        subjects=(subject.subject_id,),
    )
