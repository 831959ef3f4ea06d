"""Erasure of people: deletes the mapping of their id and all that refers to it, and removes them from audit documents.

In documents only what names the person is replaced, see `domain.redaction`; in those about the person as a known user,
all that people wrote. The entry of the erasure hashes what each document was and has become.

The long search in texts and documents runs before the head is locked, as of one revision; under the lock, only later
changes are searched.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple, Protocol

import rfc8785
from psycopg.rows import class_row
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.audit import SALT_BYTES
from gatekeeper_grpc.domain.erasure import PLACEHOLDER, Erased, Mention, StillNamed, Subject
from gatekeeper_grpc.domain.errors import FailedPrecondition, InvalidArgument, NotFound
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, ResourceType, Written
from gatekeeper_grpc.domain.redaction import emptied_document, redacted_document
from gatekeeper_grpc.store.hashed_sets import LeftSets, leave_sets
from gatekeeper_grpc.store.logins import recordable
from gatekeeper_grpc.store.mutations import Effect, Head, MutationRunner
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read

_CODEC = TypeAdapter(Erased)
_NAMED_AT_MOST = 20
# A document may have 400 KB.
_REDACTED_AT_ONCE = 50


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
            FailedPrecondition: Texts or values of flags, segments or other users name the id; an editor must change
                them first.
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
            left = leave_sets(conn, subject.subject_id)
            erased, evidence_hash = _erase(conn, head, subject, found.documents, left)
            if not intent.validate_only:
                self._recorder.record(user_id, head.create_time)
            return Effect(result=erased, preview=erased, change=_change(subject, erased, evidence_hash, left))

        # It reads with a named cursor.
        return self._mutations.mutate(intent, act, codec=_CODEC, pipelined=False)

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


# What people wrote. `needle` is the id as JSON text, without the quotes. Found in a name, it does not count.
_LIVE_TEXT = """
    SELECT 'flag_keys', key, to_jsonb(tags || ARRAY[description, owner]) FROM feature_flags
    WHERE revision > %(since)s
      AND position(%(user_id)s in concat_ws(' ', description, owner, array_to_string(tags, ' '))) > 0
    UNION ALL
    SELECT 'segment_keys', key, jsonb_build_array(description, jsonb_path_query_array(conditions, '$[*].values'))
    FROM segments
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


class _Document(NamedTuple):
    """A document of the audit log; `is_own`: it is about the person as a known user, and holds their attributes."""

    seq: int
    resource_type: str
    is_own: bool
    document: bytes

    def without(self, mention: Mention) -> bytes:
        """Return the document as it will be without the person; unchanged if it does not name them."""
        if self.is_own:
            return emptied_document(self.resource_type, self.document)
        return redacted_document(self.resource_type, self.document, mention)


_DOCUMENTS = """
    SELECT d.seq, a.resource_type, a.resource_type = 'user' AND a.resource_key = %(subject)s, d.document
    FROM audit_documents d JOIN audit_log a USING (seq)
"""

# Two queries, because an index finds the first.
_OWN_DOCUMENTS = _DOCUMENTS + "WHERE a.resource_type = 'user' AND a.resource_key = %(subject)s AND a.seq > %(after)s"
_DOCUMENTS_HOLDING = (
    _DOCUMENTS + "WHERE d.seq > %(after)s AND position(convert_to(%(needle)s, 'UTF8') in d.document) > 0"
)


def documents_about(conn: Connection, subject: Subject, *, after: int = 0) -> list[int]:
    """Find the audit documents, after an entry, that hold a person's attributes or literal id."""
    mention = Mention(subject.user_id)
    parameters = {**_needles(subject), "subject": str(subject.subject_id), "after": after}
    found = {seq for seq, *_ in conn.execute(_OWN_DOCUMENTS, parameters)}
    with conn.cursor(name="documents", row_factory=lambda _: _Document._make) as cursor:
        for document in cursor.execute(_DOCUMENTS_HOLDING, parameters):
            if document.without(mention) != document.document:
                found.add(document.seq)
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


def _erase(
    conn: Connection, head: Head, subject: Subject, documents: Sequence[int], left: LeftSets
) -> tuple[Erased, bytes | None]:
    """Erase a subject; return what was erased, and the hash of the evidence about documents."""
    who = {"subject_id": subject.subject_id, "documents": list(documents)}
    conn.execute(_DELETE_RESULTS, who)
    evidence_hash = _redact(conn, head, subject, documents)
    _clear_auth_events(conn, subject.user_id)
    # The attributes and the salt of its commitment are deleted with the subject.
    conn.execute("DELETE FROM subjects WHERE subject_id = %(subject_id)s", who)
    erased = Erased(
        targets_removed=left.targets, memberships_removed=left.memberships, documents_redacted=len(documents)
    )
    return erased, evidence_hash


_REDACT = """
    SELECT redact_audit_documents(%(erasure_seq)s, %(seqs)s::bigint[], %(salts)s::bytea[], %(documents)s::bytea[])
"""


def _redact(conn: Connection, head: Head, subject: Subject, seqs: Sequence[int]) -> bytes | None:
    """Replace what names a person in documents; return the hash of the evidence, None if there are no documents."""
    evidence_hash = None
    unredacted = iter(seqs)
    while batch := list(islice(unredacted, _REDACTED_AT_ONCE)):
        redacted = list(_without(conn, subject, batch))
        row = {
            "erasure_seq": head.audit_seq,
            "seqs": [seq for seq, _ in redacted],
            # Not the old salts: with one, the erased id could be guessed from the old hash.
            "salts": [secrets.token_bytes(SALT_BYTES) for _ in redacted],
            "documents": [document for _, document in redacted],
        }
        (evidence_hash,) = one(conn.execute(_REDACT, row))
    return evidence_hash


def _without(conn: Connection, subject: Subject, seqs: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Read documents as they are under the lock, and yield them without the person."""
    mention = Mention(subject.user_id)
    parameters = {"subject": str(subject.subject_id), "seqs": list(seqs)}
    with conn.cursor(row_factory=lambda _: _Document._make) as cursor:
        for document in cursor.execute(_DOCUMENTS + "WHERE d.seq = ANY(%(seqs)s)", parameters):
            yield document.seq, document.without(mention)


# The name of an account, even a deleted one, is a key, and its events are evidence. A username is recorded as it was
# typed, up to a bound: `typed` is the id as it is recorded.
_AUTH_EVENTS_NAMING = """
    SELECT event_id, username FROM auth_events e
    WHERE (position(%(user_id)s in username) > 0 OR username = %(typed)s)
      AND NOT EXISTS (SELECT FROM admin_user a WHERE a.username = e.username)
      AND NOT EXISTS (SELECT FROM audit_log a WHERE a.resource_type = 'admin_user' AND a.resource_key = e.username)
"""

_SET_USERNAME = """
    UPDATE auth_events SET username = %(username)s WHERE event_id = %(event_id)s
"""


def _clear_auth_events(conn: Connection, user_id: str) -> None:
    """Replace an id that somebody typed as the username of a login."""
    mention, typed = Mention(user_id), recordable(user_id)
    found = conn.execute(_AUTH_EVENTS_NAMING, {"user_id": user_id, "typed": typed}).fetchall()
    rows = [
        {"event_id": event_id, "username": PLACEHOLDER if username == typed else mention.replaced_in(username)}
        for event_id, username in found
    ]
    if rows:
        conn.cursor().executemany(_SET_USERNAME, rows)


def _change(subject: Subject, erased: Erased, evidence_hash: bytes | None, left: LeftSets) -> Change:
    # No `subjects`: the stored result of the erasure has only counts, and stays for a retry.
    return Change(
        resource=ResourceType.SUBJECT,
        key=str(subject.subject_id),
        change=ChangeType.DELETED,
        document={"erased": asdict(erased), "sets": left.documents},
        evidence_hash=evidence_hash,
    )
