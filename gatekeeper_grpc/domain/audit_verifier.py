"""Verifies that an audit log is unaltered, or names its first bad entry. Pure: entries come from anywhere, in order.

The hash of an entry covers its fields, the hash of its document and the hash of the entry before. An edit therefore
shows at the entry itself or, if that was hashed again, at the next one, and so on up to the head; a log that was
rewritten up to its head shows at an anchor that was kept outside.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Final

from gatekeeper_grpc.domain.audit import GENESIS, AuditAnchor, RecordedEntry, hash_document, hash_fields

REPORT_EVERY = 10_000

# The fields of a recorded entry up to its hash.
_HASHED_FIELDS: Final = 11


class AuditFault(StrEnum):
    """The fault of the first bad entry."""

    ENTRY_ALTERED = "entry_altered"
    """Its hash is not the hash of its fields."""
    CHAIN_BROKEN = "chain_broken"
    """It is not chained to the entry before, or the head is not chained to it: entries were altered or inserted."""
    ENTRY_MISSING = "entry_missing"
    """Entries before it are missing."""
    DOCUMENT_ALTERED = "document_altered"
    """Its document was replaced or altered."""
    TAIL_CUT = "tail_cut"
    """It and all after it are missing, although the head or an anchor names them."""
    ANCHOR_MISMATCH = "anchor_mismatch"
    """It is not the entry that the anchor names: the log was rewritten."""


@dataclass(frozen=True, slots=True)
class FaultyEntry:
    """The first bad entry, by its position in the log, with its fault and a message for people."""

    seq: int
    fault: AuditFault
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The progress of a verification.

    Args:
        verified_entries: How many entries are unaltered.
        redacted_documents: How many of these have a redacted document.
        verified: The last verified entry; `GENESIS` before the first one.
        faulty: The first bad entry, if any; this report is then the last.
        complete: All entries are unaltered; this report is then the last.
    """

    verified_entries: int
    redacted_documents: int
    verified: AuditAnchor
    faulty: FaultyEntry | None = None
    complete: bool = False


def verify_chain(
    entries: Iterable[RecordedEntry],
    *,
    start: AuditAnchor = GENESIS,
    head: AuditAnchor | None = None,
    anchor: AuditAnchor | None = None,
    report_every: int = REPORT_EVERY,
) -> Iterator[Verification]:
    """Verify entries up to the first bad one; report every `report_every` entries and at the end. Memory is constant.

    Args:
        entries: In order of `seq`, the first being the one after `start`.
        start: The position to which the first entry is chained.
        head: The end of the log, as the log itself says. None: any end, for a part of a log.
        anchor: An entry as it was kept outside the log. One before `start` is not compared.
        report_every: How many entries to verify between two reports.
    """
    chain = _Chain(start=start, anchor=anchor)
    unread = iter(entries)
    faulty = chain.check_anchor(start)
    while faulty is None:
        before = chain.verified_entries
        faulty = chain.follow(islice(unread, report_every))
        if faulty is None and chain.verified_entries - before < report_every:
            faulty = chain.check_end(head)
            break
        if faulty is None:
            yield chain.report()
    yield replace(chain.report(), faulty=faulty, complete=faulty is None)


class _Chain:
    """The verified part of a log, which grows entry by entry."""

    def __init__(self, *, start: AuditAnchor, anchor: AuditAnchor | None) -> None:
        self._seq, self._hash = start.seq, start.hash
        self._anchor = anchor
        self.verified_entries = 0
        self._redacted = 0

    def report(self) -> Verification:
        """Return the progress."""
        return Verification(
            verified_entries=self.verified_entries,
            redacted_documents=self._redacted,
            verified=AuditAnchor(seq=self._seq, hash=self._hash),
        )

    def follow(self, entries: Iterable[RecordedEntry]) -> FaultyEntry | None:
        """Add entries up to the first bad one, and return that."""
        anchored_seq = self._anchor.seq if self._anchor else sys.maxsize
        for entry in entries:
            fault = self._fault_of(entry)
            if fault is not None:
                return fault
            if entry.seq == anchored_seq:
                faulty = self.check_anchor(AuditAnchor(seq=entry.seq, hash=entry.hash))
                if faulty is not None:
                    return faulty
            self._seq, self._hash = entry.seq, entry.hash
            self.verified_entries += 1
            self._redacted += entry.document is None
        return None

    def check_anchor(self, entry: AuditAnchor) -> FaultyEntry | None:
        """Compare an entry with the anchor, if the anchor names this entry."""
        if self._anchor is None or self._anchor.seq != entry.seq or self._anchor.hash == entry.hash:
            return None
        message = f"entry {entry.seq} is not the one that the anchor names: the log was rewritten"
        return FaultyEntry(entry.seq, AuditFault.ANCHOR_MISMATCH, message)

    def check_end(self, head: AuditAnchor | None) -> FaultyEntry | None:
        """Compare the last entry with the head and the anchor."""
        if head is not None and self._seq > head.seq:
            return _broken(head.seq + 1, f"entry {head.seq + 1} comes after the head: it was inserted")
        for name, known in (("head", head), ("anchor", self._anchor)):
            if known is not None and self._seq < known.seq:
                message = f"the log ends with entry {self._seq}, but the {name} names entry {known.seq}"
                return FaultyEntry(self._seq + 1, AuditFault.TAIL_CUT, message)
        if head is not None and self._hash != head.hash:
            return _broken(head.seq, f"entry {head.seq} has another hash than the head")
        return None

    def _fault_of(self, entry: RecordedEntry) -> FaultyEntry | None:
        expected = self._seq + 1
        if entry.seq != expected:
            return self._out_of_order(entry, expected)
        if not _matches_hash(entry):
            message = f"entry {expected} was altered: its hash is not the hash of its fields"
            return FaultyEntry(expected, AuditFault.ENTRY_ALTERED, message)
        if entry.prev_hash != self._hash:
            return _broken(expected, f"entry {expected} is not chained to the entry before it")
        if entry.document is not None and not _matches_document(entry, entry.document):
            message = f"the document of entry {expected} was altered: its hash is not the one in the entry"
            return FaultyEntry(expected, AuditFault.DOCUMENT_ALTERED, message)
        return None

    @staticmethod
    def _out_of_order(entry: RecordedEntry, expected: int) -> FaultyEntry:
        if entry.seq < expected:
            return _broken(entry.seq, f"entry {entry.seq} is in the position of entry {expected}")
        message = f"entries {expected} to {entry.seq - 1} are missing before entry {entry.seq}"
        return FaultyEntry(entry.seq, AuditFault.ENTRY_MISSING, message)


def _matches_hash(entry: RecordedEntry) -> bool:
    try:
        return hash_fields(*entry[:_HASHED_FIELDS]) == entry.hash
    except (TypeError, AttributeError):  # An altered log may lack the value of a field.
        return False


def _matches_document(entry: RecordedEntry, document: bytes) -> bool:
    return hash_document(entry.salt or b"", document) == entry.document_hash


def _broken(seq: int, message: str) -> FaultyEntry:
    return FaultyEntry(seq, AuditFault.CHAIN_BROKEN, message)
