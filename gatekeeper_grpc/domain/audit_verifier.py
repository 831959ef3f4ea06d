"""Proves that an audit log is unaltered, or names its first bad entry. Pure: entries come from anywhere, in order.

Each entry's hash covers its fields, its document's hash and the hash of the entry before. So an edit shows at the entry
itself, or, once that was hashed anew, at the next one; and so on up to the head, and beyond it at an anchor that was
kept outside.
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
    """What is wrong with the first bad entry."""

    ENTRY_ALTERED = "entry_altered"
    """Its hash is not the hash of its fields."""
    CHAIN_BROKEN = "chain_broken"
    """It is not chained to the entry before, or the head not to it: entries were altered, exchanged or put in."""
    ENTRY_MISSING = "entry_missing"
    """Entries before it are missing."""
    DOCUMENT_ALTERED = "document_altered"
    """Its document is another one."""
    TAIL_CUT = "tail_cut"
    """It and all after it are missing, although the head or an anchor tells of them."""
    ANCHOR_MISMATCH = "anchor_mismatch"
    """It is not the entry that the anchor tells of: the log was rewritten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultyEntry:
    """The first bad entry, by its place in the log, and what is wrong with it, also in words."""

    seq: int
    fault: AuditFault
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How far a verification has come.

    Args:
        verified_entries: How many entries were found good.
        redacted_documents: How many of these have no document any more.
        verified: The last good entry; before the first one, where the chain begins.
        faulty: The first bad entry, if there is one; then this is the last report.
        complete: Everything was found good; then this is the last report.
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
        start: What the first entry is chained to.
        head: Where the log itself says that it ends. None: wherever it ends, as a part of a log does.
        anchor: An entry as it was known outside of the log. One before `start` is not looked at.
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
    """The good part of a log, which grows entry by entry."""

    def __init__(self, *, start: AuditAnchor, anchor: AuditAnchor | None) -> None:
        self._seq, self._hash = start.seq, start.hash
        self._anchor = anchor
        self.verified_entries = 0
        self._redacted = 0

    def report(self) -> Verification:
        """Tell how far it has come."""
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
        """Compare an entry with the anchor, when the anchor is of this entry."""
        if self._anchor is None or self._anchor.seq != entry.seq or self._anchor.hash == entry.hash:
            return None
        return FaultyEntry(
            seq=entry.seq,
            fault=AuditFault.ANCHOR_MISMATCH,
            message=f"entry {entry.seq} is not the one that the anchor tells of: the log was rewritten",
        )

    def check_end(self, head: AuditAnchor | None) -> FaultyEntry | None:
        """Compare where the entries end with where the head and the anchor say that they do."""
        if head is not None and self._seq > head.seq:
            return _broken(head.seq + 1, f"entry {head.seq + 1} stands beyond the head: it was put in")
        for name, known in (("head", head), ("anchor", self._anchor)):
            if known is not None and self._seq < known.seq:
                return FaultyEntry(
                    seq=self._seq + 1,
                    fault=AuditFault.TAIL_CUT,
                    message=f"the log ends with entry {self._seq}, but the {name} tells of entry {known.seq}",
                )
        if head is not None and self._hash != head.hash:
            return _broken(head.seq, f"entry {head.seq} has another hash than the head tells of")
        return None

    def _fault_of(self, entry: RecordedEntry) -> FaultyEntry | None:
        expected = self._seq + 1
        if entry.seq != expected:
            return self._out_of_order(entry, expected)
        if not _is_hashed_truly(entry):
            message = f"entry {expected} was altered: its hash is not the hash of its fields"
            return FaultyEntry(seq=expected, fault=AuditFault.ENTRY_ALTERED, message=message)
        if entry.prev_hash != self._hash:
            return _broken(expected, f"entry {expected} is not chained to the entry before it")
        if entry.document is not None and not _is_documented_truly(entry, entry.document):
            message = f"the document of entry {expected} is not the one that the entry was made with"
            return FaultyEntry(seq=expected, fault=AuditFault.DOCUMENT_ALTERED, message=message)
        return None

    @staticmethod
    def _out_of_order(entry: RecordedEntry, expected: int) -> FaultyEntry:
        if entry.seq < expected:
            return _broken(entry.seq, f"entry {entry.seq} stands where entry {expected} should")
        return FaultyEntry(
            seq=entry.seq,
            fault=AuditFault.ENTRY_MISSING,
            message=f"entries {expected} to {entry.seq - 1} are missing before entry {entry.seq}",
        )


def _is_hashed_truly(entry: RecordedEntry) -> bool:
    try:
        return hash_fields(*entry[:_HASHED_FIELDS]) == entry.hash
    except (TypeError, AttributeError):  # Whoever alters a log may leave a field without any value.
        return False


def _is_documented_truly(entry: RecordedEntry, document: bytes) -> bool:
    return hash_document(entry.salt or b"", document) == entry.document_hash


def _broken(seq: int, message: str) -> FaultyEntry:
    return FaultyEntry(seq=seq, fault=AuditFault.CHAIN_BROKEN, message=message)
