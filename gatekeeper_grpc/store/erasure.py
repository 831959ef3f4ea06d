"""Erasure of people: deletes the mapping of their id and all that refers to it, and removes them from audit documents.

In documents only what names the person is replaced, see `domain.redaction`; in those about the person as a known user,
all that people wrote. The entry of the erasure hashes what each document was and has become.

The long search in texts and documents runs before the head is locked, as of one revision; under the lock, only later
changes are searched, and all that the erasure needs to know is asked for in one round trip.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import rfc8785
from psycopg import Cursor
from psycopg.rows import class_row
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.audit import SALT_BYTES
from gatekeeper_grpc.domain.erasure import PLACEHOLDER, Erased, Mention, StillNamed, Subject
from gatekeeper_grpc.domain.errors import FailedPrecondition, InvalidArgument, NotFound
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, ResourceType, Written
from gatekeeper_grpc.domain.redaction import emptied_document, redacted_document
from gatekeeper_grpc.store.hashed_sets import LeftSets, joined_sets, leave_sets
from gatekeeper_grpc.store.logins import recordable
from gatekeeper_grpc.store.mutations import Effect, Head, MutationRunner
from gatekeeper_grpc.store.postgres.database import Connection, Database, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read
from gatekeeper_grpc.store.subjects import no_evidence

_CODEC = TypeAdapter(Erased)
_NAMED_AT_MOST = 20
# A document may have 400 KB.
_READ_AT_ONCE = 50


class Recorder(Protocol):
    """Records erasures outside the database."""

    def record(self, user_id: str, time: datetime) -> None:
        """Record that a user id was erased; durable when this returns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """What a search for a person found: audit documents, or where the id is `named`; and how far it came."""

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
        ahead = self._search_ahead(user_id)

        def act(conn: Connection, head: Head) -> Effect[Erased]:
            named, joined = still_named(conn, user_id, since=ahead.revision), joined_sets(conn, user_id)
            typed, documents = _events_naming(conn, user_id), _documents_about(conn, user_id, ahead)
            subject = find_subject(conn, user_id)  # In the pipeline, all of them take one round trip.
            if still := ahead.named or named():
                raise _still_named_error(user_id, still)
            left = leave_sets(conn, subject.subject_id, joined())
            _clear_events(conn, user_id, typed())
            erased, evidence_hash = _erase(conn, head, subject, documents, left)
            if not intent.validate_only:
                self._recorder.record(user_id, head.create_time)
            return Effect(result=erased, preview=erased, change=_change(subject, erased, evidence_hash, left))

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
                find_subject(conn, user_id)
            except NotFound:
                return _Search()
            if named := still_named(conn, user_id)():
                return _Search(named=named)
            revision, audit_seq = one(conn.execute("SELECT revision, audit_seq FROM revision_head"))
            return _Search(revision=revision, audit_seq=audit_seq, documents=documents_about(conn, user_id))


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
    WHERE u.revision > %(since)s AND s.user_id <> %(user_id)s AND position(%(needle)s in u.attributes::text) > 0
"""


def still_named(conn: Connection, user_id: str, *, since: int = 0) -> Callable[[], StillNamed]:
    """Search flags, segments and users, changed after a revision, for a person's literal id.

    Returns:
        A function that waits for those that name it.
    """
    searching = conn.execute(_LIVE_TEXT, {"user_id": user_id, "needle": _needle(user_id), "since": since})

    def named() -> StillNamed:
        mention, found = Mention(user_id), dict[str, list[str]]()
        for kind, name, text in searching:
            if mention.is_in(text):
                found.setdefault(kind, []).append(name)
        return StillNamed(**{kind: tuple(sorted(names)) for kind, names in found.items()})

    return named


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

    def is_about(self, mention: Mention) -> bool:
        """Return whether it holds the person's attributes or literal id."""
        return self.is_own or self.without(mention) != self.document


# Those found ahead, and of the later ones: those about the person, which an index finds, and those that hold the id.
_DECLARE_DOCUMENTS = """
    DECLARE documents NO SCROLL CURSOR FOR
    WITH person AS (
        SELECT subject_id::text AS key FROM subjects WHERE user_id = %(user_id)s
    ), found AS (
        SELECT unnest(%(ahead)s::bigint[]) AS seq
        UNION
        SELECT seq FROM audit_log
        WHERE resource_type = 'user' AND resource_key = (SELECT key FROM person) AND seq > %(after)s
        UNION
        SELECT seq FROM audit_documents
        WHERE seq > %(after)s AND position(convert_to(%(needle)s, 'UTF8') in document) > 0
    )
    SELECT seq, a.resource_type, a.resource_type = 'user' AND a.resource_key = (SELECT key FROM person), d.document
    FROM found JOIN audit_log a USING (seq) JOIN audit_documents d USING (seq)
"""
_FETCH_DOCUMENTS = "FETCH FORWARD 50 FROM documents"


def documents_about(conn: Connection, user_id: str) -> tuple[int, ...]:
    """Find the audit documents that hold a person's attributes or literal id."""
    mention = Mention(user_id)
    read = _documents_about(conn, user_id, _Search())
    return tuple(sorted(document.seq for batch in read for document in batch if document.is_about(mention)))


def _documents_about(conn: Connection, user_id: str, ahead: _Search) -> Iterator[list[_Document]]:
    """Read the documents found ahead, as they are now, and later ones that may be about a person; waits when iterated.

    Not with psycopg's cursor, which is no part of a pipeline.
    """
    wanted = {"ahead": list(ahead.documents), "after": ahead.audit_seq, "user_id": user_id, "needle": _needle(user_id)}
    conn.execute(_DECLARE_DOCUMENTS, wanted)
    return _batches(conn, conn.execute(_FETCH_DOCUMENTS, binary=True))


def _batches(conn: Connection, fetching: Cursor[tuple[Any, ...]]) -> Iterator[list[_Document]]:
    while batch := [_Document(*row) for row in fetching]:
        yield batch
        if len(batch) < _READ_AT_ONCE:
            break
        fetching = conn.execute(_FETCH_DOCUMENTS, binary=True)
    conn.execute("CLOSE documents")


def _needle(user_id: str) -> str:
    return rfc8785.dumps(user_id)[1:-1].decode()


# Results stored for retries, of mutations that concern the person or whose documents are about them.
_DELETE_RESULTS = """
    DELETE FROM idempotency_keys
    WHERE subjects @> ARRAY[%(subject_id)s]
       OR revision IN (SELECT revision FROM audit_log WHERE seq = ANY(%(documents)s))
"""


# The attributes and the salt of its commitment are deleted with the subject.
_DELETE_SUBJECT = """
    DELETE FROM subjects WHERE subject_id = %(subject_id)s RETURNING subject_id
"""


def _erase(
    conn: Connection, head: Head, subject: Subject, documents: Iterable[list[_Document]], left: LeftSets
) -> tuple[Erased, bytes | None]:
    """Erase a subject; return what was erased, and the hash of the evidence about documents."""
    redacted, evidence = _redact(conn, head, subject, documents)
    who = {"subject_id": subject.subject_id, "documents": redacted}
    conn.execute(_DELETE_RESULTS, who)
    one(conn.execute(_DELETE_SUBJECT, who))  # Waits for all of it, before anybody records that it is done.
    erased = Erased(
        targets_removed=left.targets, memberships_removed=left.memberships, documents_redacted=len(redacted)
    )
    return erased, evidence()


_REDACT = """
    SELECT redact_audit_documents(%(erasure_seq)s, %(seqs)s::bigint[], %(salts)s::bytea[], %(documents)s::bytea[])
"""


def _redact(
    conn: Connection, head: Head, subject: Subject, batches: Iterable[list[_Document]]
) -> tuple[list[int], Callable[[], bytes | None]]:
    """Replace what names a person in documents, as they are under the lock.

    Returns:
        The documents; and a function that waits for the hash of the evidence, None if there are no documents.
    """
    mention, seqs = Mention(subject.user_id), list[int]()
    evidence: Callable[[], bytes | None] = no_evidence
    for batch in batches:
        redacted = [(document.seq, document.without(mention)) for document in batch if document.is_about(mention)]
        if redacted:
            seqs += [seq for seq, _ in redacted]
            evidence = _replace(conn, head, redacted)
    return seqs, evidence


def _replace(conn: Connection, head: Head, redacted: Sequence[tuple[int, bytes]]) -> Callable[[], bytes | None]:
    row = {
        "erasure_seq": head.audit_seq,
        "seqs": [seq for seq, _ in redacted],
        # Not the old salts: with one, the erased id could be guessed from the old hash.
        "salts": [secrets.token_bytes(SALT_BYTES) for _ in redacted],
        "documents": [document for _, document in redacted],
    }
    replacing = conn.execute(_REDACT, row)
    return lambda: one(replacing)[0]


# The name of an account, even a deleted one, is a key, and its events are evidence. A username is recorded as it was
# typed, up to a bound: `typed` is the id as it is recorded.
_AUTH_EVENTS_NAMING = """
    SELECT event_id, username FROM auth_events e
    WHERE (position(%(user_id)s in username) > 0 OR username = %(typed)s)
      AND NOT EXISTS (SELECT FROM admin_user a WHERE a.username = e.username)
      AND NOT EXISTS (SELECT FROM audit_log a WHERE a.resource_type = 'admin_user' AND a.resource_key = e.username)
"""

_SET_USERNAMES = """
    UPDATE auth_events e SET username = made.username
    FROM unnest(%(event_ids)s::bigint[], %(usernames)s::text[]) AS made (event_id, username)
    WHERE e.event_id = made.event_id
"""


def _events_naming(conn: Connection, user_id: str) -> Callable[[], list[tuple[int, str]]]:
    """Ask for the events in which somebody typed an id as the username of a login; return a function that waits."""
    return conn.execute(_AUTH_EVENTS_NAMING, {"user_id": user_id, "typed": recordable(user_id)}).fetchall


def _clear_events(conn: Connection, user_id: str, found: Sequence[tuple[int, str]]) -> None:
    """Replace an id in these events."""
    mention, typed = Mention(user_id), recordable(user_id)
    usernames = [PLACEHOLDER if username == typed else mention.replaced_in(username) for _, username in found]
    if found:
        conn.execute(_SET_USERNAMES, {"event_ids": [event_id for event_id, _ in found], "usernames": usernames})


def _change(subject: Subject, erased: Erased, evidence_hash: bytes | None, left: LeftSets) -> Change:
    # No `subjects`: the stored result of the erasure has only counts, and stays for a retry.
    return Change(
        resource=ResourceType.SUBJECT,
        key=str(subject.subject_id),
        change=ChangeType.DELETED,
        document={"erased": asdict(erased), "sets": left.documents},
        evidence_hash=evidence_hash,
    )
