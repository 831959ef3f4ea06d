"""The audit entry and its hash. This module alone is enough to verify a log offline."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring as quoted
from typing import Any, Final, NamedTuple

FORMAT = 1
# The format of an entry with evidence. All others are of format 1, which has no `evidence_hash`.
FORMAT_WITH_EVIDENCE = 2
# The length of a document's salt.
SALT_BYTES = 16
# The first entry is chained to this.
GENESIS_HASH = bytes(32)

# Of whole numbers: below, they are integers.
_FIRST_DOUBLE: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One recorded mutation.

    The document is stored separately; the entry has only its hash, see `hash_document`. So is its evidence: the lines
    of `redaction_line` or `subject_line`, see `hash_evidence`; None: it has none.
    """

    seq: int
    revision: int
    create_time: datetime
    actor: str
    action: str
    environment: str
    resource_type: str
    resource_key: str
    document_hash: bytes
    prev_hash: bytes
    evidence_hash: bytes | None = None
    format: int = FORMAT


class Redaction(NamedTuple):
    """A rewriting of a document: the entry of the erasure that did it, and the document's hashes before and after."""

    erasure_seq: int
    old_hash: bytes
    new_hash: bytes


class RecordedEntry(NamedTuple):
    """An entry and what is stored with it, as a log contains them, altered or not; for verification and the archive.

    `create_time` is the text that is hashed, ISO 8601 in UTC: an altered log may contain times that no calendar has. A
    missing document is None, and so is its salt. `evidence` are the lines behind `evidence_hash`; `redactions` are the
    rewritings of the document, oldest first. Of the subjects that the entry met first, `known_subjects` still have the
    user id that it met, and `altered_subjects` have another one. A tuple, because a verifier makes fifty thousand of
    them a second.
    """

    seq: int
    format: int
    revision: int
    create_time: str
    actor: str
    action: str
    environment: str
    resource_type: str
    resource_key: str
    document_hash: bytes
    prev_hash: bytes
    hash: bytes
    salt: bytes | None
    document: bytes | None
    evidence_hash: bytes | None = None
    evidence: tuple[str, ...] = ()
    redactions: tuple[Redaction, ...] = ()
    known_subjects: int = 0
    altered_subjects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentedEntry:
    """An entry with its document and the user ids behind it, for people to read.

    Args:
        entry: What was recorded.
        hash: Its hash, as recorded.
        salt: The salt of the document's hash; empty when the document is missing.
        document: The resource before and after, canonical JSON in UTF-8; None when an erasure of an earlier release
            has dropped it.
        users: The user ids behind the subject ids that the entry names, where the mapping still exists.
        redactions: The rewritings of the document, oldest first.
    """

    entry: AuditEntry
    hash: bytes
    salt: bytes
    document: bytes | None
    users: Mapping[str, str]
    redactions: Sequence[Redaction] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAnchor:
    """A position in the chain: an entry and its hash. Kept outside the database, it proves the log up to there."""

    seq: int
    hash: bytes


GENESIS = AuditAnchor(seq=0, hash=GENESIS_HASH)
"""The position before the first entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """The newest position in the chain, and its revision."""

    anchor: AuditAnchor
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheckpoint:
    """The head of the chain at a time, with an Ed25519 signature of `checkpoint_statement`."""

    head: AuditHead
    create_time: datetime
    signature: bytes
    public_key: bytes


def hash_entry(entry: AuditEntry) -> bytes:
    """Hash an entry, and through `prev_hash` all before it: SHA-256 of its canonical JSON (RFC 8785)."""
    return hash_fields(**{**asdict(entry), "create_time": hashed_time(entry.create_time)})


def hash_fields(  # noqa: PLR0917 - a recorded entry, unpacked: naming each field costs the verifier a third
    seq: int,
    format: int,  # noqa: A002 - the field's name
    revision: int,
    create_time: str,
    actor: str,
    action: str,
    environment: str,
    resource_type: str,
    resource_key: str,
    document_hash: bytes,
    prev_hash: bytes,
    evidence_hash: bytes | None = None,
) -> bytes:
    """Hash the fields of an entry, in the order of `RecordedEntry`; `evidence_hash` is a member only if there is one.

    Integers are below 2**53, hashes are lower-case hex, the time is text, and `json` quotes as RFC 8785 requires. So
    this is the canonical form, several times faster than an encoder; a test compares the two.
    """
    evidence = "" if evidence_hash is None else f',"evidence_hash":"{evidence_hash.hex()}"'
    canonical = (
        f'{{"action":{quoted(action)},"actor":{quoted(actor)},"create_time":{quoted(create_time)}'
        f',"document_hash":"{document_hash.hex()}","environment":{quoted(environment)}{evidence},"format":{format}'
        f',"prev_hash":"{prev_hash.hex()}","resource_key":{quoted(resource_key)}'
        f',"resource_type":{quoted(resource_type)},"revision":{revision},"seq":{seq}}}'
    )
    return hashlib.sha256(canonical.encode()).digest()


def hash_document(salt: bytes, document: bytes) -> bytes:
    """Hash the canonical bytes of a document with its salt; without one, a redacted document could be guessed."""
    return hashlib.sha256(salt + document).digest()


def read_document(document: bytes | str) -> Any:
    """Return what canonical bytes say. Whole numbers from 2**53 on are doubles, which RFC 8785 writes as digits."""
    return json.loads(document, parse_int=_number)


def _number(digits: str) -> int | float:
    return number if abs(number := int(digits)) < _FIRST_DOUBLE else float(number)


def redaction_line(seq: int, redaction: Redaction) -> str:
    """Return the evidence, in the entry of an erasure, that it rewrote the document of an entry."""
    return f"redaction {seq} {redaction.old_hash.hex()} {redaction.new_hash.hex()}\n"


def subject_line(subject_id: str, commitment: bytes) -> str:
    """Return the evidence, in the entry that first met a person, of who is behind a subject id.

    The commitment is the SHA-256 of 16 random bytes and the user id. Erasure deletes the bytes.
    """
    return f"subject {subject_id} {commitment.hex()}\n"


def hash_evidence(lines: Iterable[str]) -> bytes:
    """Hash the evidence of an entry: its redactions by seq, or its subjects by subject id."""
    return hashlib.sha256("".join(lines).encode()).digest()


def hashed_time(time: datetime) -> str:
    """Format an aware time for hashing and signing: ISO 8601 with microseconds, in UTC."""
    utc = time if time.tzinfo is UTC else time.astimezone(UTC)
    return utc.isoformat(timespec="microseconds")


def checkpoint_statement(head: AuditHead, create_time: datetime) -> bytes:
    """Return the bytes that a checkpoint signs."""
    lines = (
        "gatekeeper audit checkpoint v1",
        str(head.anchor.seq),
        head.anchor.hash.hex(),
        str(head.revision),
        hashed_time(create_time),
    )
    return "".join(f"{line}\n" for line in lines).encode()
