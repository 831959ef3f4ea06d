"""The audit entry and its hash: what makes the log provable. Needs nothing but this module to verify a log offline."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

FORMAT = 1
# What the first entry is chained to.
GENESIS_HASH = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One recorded mutation.

    The document itself stands apart; the entry holds only `document_hash`, see `hash_document`.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAnchor:
    """Where the chain stood: the newest entry and its hash.

    Kept outside the database, it proves the log up to there.
    """

    seq: int
    hash: bytes


def hash_entry(entry: AuditEntry) -> bytes:
    """Hash an entry, and through `prev_hash` all before it: SHA-256 over its canonical JSON (RFC 8785).

    Integers are below 2**53, hashes are lower-case hex, the time is ISO 8601 with microseconds in UTC, so that the
    canonical form is the one that `json` writes with sorted keys and no spaces.
    """
    fields = {
        "action": entry.action,
        "actor": entry.actor,
        "create_time": entry.create_time.isoformat(timespec="microseconds"),
        "document_hash": entry.document_hash.hex(),
        "environment": entry.environment,
        "format": entry.format,
        "prev_hash": entry.prev_hash.hex(),
        "resource_key": entry.resource_key,
        "resource_type": entry.resource_type,
        "revision": entry.revision,
        "seq": entry.seq,
    }
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).digest()


def hash_document(salt: bytes, document: bytes) -> bytes:
    """Hash a document's canonical bytes with its salt; without one, a redacted document could be guessed."""
    return hashlib.sha256(salt + document).digest()
