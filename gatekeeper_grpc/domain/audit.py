"""The audit entry and its hash. This module alone is enough to verify a log offline."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring as quoted
from typing import NamedTuple

FORMAT = 1
# The first entry is chained to this.
GENESIS_HASH = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One recorded mutation.

    The document is stored separately; the entry has only its hash, see `hash_document`.
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
    format: int = FORMAT


class RecordedEntry(NamedTuple):
    """An entry and its document as a log contains them, altered or not; for verification and the archive.

    `create_time` is the text that is hashed, ISO 8601 in UTC: an altered log may contain times that no calendar has. A
    redacted document is None, and so is its salt. A tuple, because a verifier makes fifty thousand of them a second.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentedEntry:
    """An entry with its document and the user ids behind it, for people to read.

    Args:
        entry: What was recorded.
        hash: Its hash, as recorded.
        salt: The salt of `document_hash`; empty when redacted.
        document: The resource before and after, canonical JSON in UTF-8; None when redacted.
        users: The user ids behind the subject ids that the entry names, where the mapping still exists.
    """

    entry: AuditEntry
    hash: bytes
    salt: bytes
    document: bytes | None
    users: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """Entries, newest first, and whether there are older ones."""

    entries: Sequence[DocumentedEntry]
    has_more: bool


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
) -> bytes:
    """Hash the fields of an entry, in the order of `RecordedEntry`.

    Integers are below 2**53, hashes are lower-case hex, the time is text, and `json` quotes as RFC 8785 requires. So
    this is the canonical form, several times faster than an encoder; a test compares the two.
    """
    canonical = (
        f'{{"action":{quoted(action)},"actor":{quoted(actor)},"create_time":{quoted(create_time)}'
        f',"document_hash":"{document_hash.hex()}","environment":{quoted(environment)},"format":{format}'
        f',"prev_hash":"{prev_hash.hex()}","resource_key":{quoted(resource_key)}'
        f',"resource_type":{quoted(resource_type)},"revision":{revision},"seq":{seq}}}'
    )
    return hashlib.sha256(canonical.encode()).digest()


def hash_document(salt: bytes, document: bytes) -> bytes:
    """Hash the canonical bytes of a document with its salt; without one, a redacted document could be guessed."""
    return hashlib.sha256(salt + document).digest()


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
