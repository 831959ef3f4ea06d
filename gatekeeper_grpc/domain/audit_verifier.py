"""Verifies that an audit log is unaltered, or names its first bad entry. Pure: entries come from anywhere, in order.

The hash of an entry covers its fields, the hash of its document and the hash of the entry before. An edit therefore
shows at the entry itself or, if that was hashed again, at the next one, and so on up to the head; a log that was
rewritten up to its head shows at an anchor that was kept outside.

Documents and people may go from a log, but only by an erasure, which comes later in it: whether each was accounted for
is known at the end.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Final

from gatekeeper_grpc.domain.audit import (
    GENESIS,
    AuditAnchor,
    RecordedEntry,
    hash_document,
    hash_evidence,
    hash_fields,
    redaction_line,
)

REPORT_EVERY = 10_000

# The fields of a recorded entry up to its hash.
_HASHED_FIELDS: Final = 11
# The kind of resource of an erasure.
_ERASED: Final = "subject"


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
    DOCUMENT_MISSING = "document_missing"
    """Its document is gone, and no erasure accounts for that."""
    EVIDENCE_ALTERED = "evidence_altered"
    """What it proves about documents or people is not what it hashes."""
    SUBJECT_ALTERED = "subject_altered"
    """A person whom it met first has another user id now: people were exchanged."""


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
        redacted_documents: How many of these have a document that an erasure has redacted.
        unaccounted_documents: How many of these have no document, and no erasure up to here accounts for it. At the end
            of a whole log there are none, or the log is faulty.
        verified_subjects: How many people, met first in these entries, still have the user id that they had then.
        incomparable_subjects: How many other people there are, of whom that cannot be told; at the end of a whole log.
        verified: The last verified entry; `GENESIS` before the first one.
        faulty: The first bad entry, if any; this report is then the last.
        complete: All entries are unaltered; this report is then the last.
    """

    verified_entries: int
    redacted_documents: int
    verified: AuditAnchor
    unaccounted_documents: int = 0
    verified_subjects: int = 0
    incomparable_subjects: int = 0
    faulty: FaultyEntry | None = None
    complete: bool = False


def verify_chain(
    entries: Iterable[RecordedEntry],
    *,
    start: AuditAnchor = GENESIS,
    head: AuditAnchor | None = None,
    anchor: AuditAnchor | None = None,
    subjects: int = 0,
    report_every: int = REPORT_EVERY,
) -> Iterator[Verification]:
    """Verify entries up to the first bad one; report every `report_every` entries and at the end.

    Memory grows with the documents that were redacted, by some 200 bytes each, and with nothing else.

    Args:
        entries: In order of `seq`, the first being the one after `start`.
        start: The position to which the first entry is chained.
        head: The end of the log, as the log itself says. None: any end, for a part of a log.
        anchor: An entry as it was kept outside the log. One before `start` is not compared.
        subjects: How many people there are.
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
    end = chain.report()
    incomparable = max(0, subjects - end.verified_subjects)
    yield replace(end, faulty=faulty, complete=faulty is None, incomparable_subjects=incomparable)


class _Chain:
    """The verified part of a log, which grows entry by entry."""

    def __init__(self, *, start: AuditAnchor, anchor: AuditAnchor | None) -> None:
        self._seq, self._hash = start.seq, start.hash
        self._anchor = anchor
        self._absences = _Absences()
        self.verified_entries = 0
        self._changed_documents = 0
        self._subjects = 0

    def report(self) -> Verification:
        """Return the progress."""
        return Verification(
            verified_entries=self.verified_entries,
            redacted_documents=self._changed_documents - len(self._absences.missing),
            verified=AuditAnchor(seq=self._seq, hash=self._hash),
            unaccounted_documents=len(self._absences.missing),
            verified_subjects=self._subjects,
        )

    def follow(self, entries: Iterable[RecordedEntry]) -> FaultyEntry | None:
        """Add entries up to the first bad one, and return that."""
        anchored_seq = self._anchor.seq if self._anchor else sys.maxsize
        for entry in entries:
            fault = self._fault_of(entry) or self._absences.follow(entry)
            if fault is not None:
                return fault
            if entry.seq == anchored_seq:
                faulty = self.check_anchor(AuditAnchor(seq=entry.seq, hash=entry.hash))
                if faulty is not None:
                    return faulty
            self._seq, self._hash = entry.seq, entry.hash
            self.verified_entries += 1
            self._changed_documents += entry.document is None or bool(entry.redactions)
            self._subjects += entry.known_subjects
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
        # Of a part of a log, a later part may hold the erasure.
        return self._absences.unaccounted() if head is not None else None

    def _fault_of(self, entry: RecordedEntry) -> FaultyEntry | None:
        expected = self._seq + 1
        if entry.seq != expected:
            return self._out_of_order(entry, expected)
        if not _matches_hash(entry):
            message = f"entry {expected} was altered: its hash is not the hash of its fields"
            return FaultyEntry(expected, AuditFault.ENTRY_ALTERED, message)
        if entry.prev_hash != self._hash:
            return _broken(expected, f"entry {expected} is not chained to the entry before it")
        return _fault_of_contents(entry)

    @staticmethod
    def _out_of_order(entry: RecordedEntry, expected: int) -> FaultyEntry:
        if entry.seq < expected:
            return _broken(entry.seq, f"entry {entry.seq} is in the position of entry {expected}")
        message = f"entries {expected} to {entry.seq - 1} are missing before entry {entry.seq}"
        return FaultyEntry(entry.seq, AuditFault.ENTRY_MISSING, message)


class _Absences:
    """What is gone from documents, until the erasure is met that accounts for it."""

    def __init__(self) -> None:
        self.missing: set[int] = set()
        """The entries without a document that no erasure has accounted for yet."""
        # Erasures of format 1 whose list of redacted documents is missing.
        self._lost_lists: set[int] = set()
        # By the entry of an erasure: the evidence that it must have, and of which entry's document.
        self._claims: dict[int, dict[str, int]] = {}

    def follow(self, entry: RecordedEntry) -> FaultyEntry | None:
        """Add an entry that is unaltered itself; return the fault of an earlier one that it shows."""
        claimed = self._claims.pop(entry.seq, {})
        for line in claimed.keys() - entry.evidence:
            return _unproven(claimed[line], entry.seq)
        for redaction in entry.redactions:
            claims = self._claims.setdefault(redaction.erasure_seq, {})
            claims[redaction_line(entry.seq, redaction)] = entry.seq
        if entry.document is None:
            self.missing.add(entry.seq)
        if entry.resource_type == _ERASED:
            self._account(entry)
        return None

    def unaccounted(self) -> FaultyEntry | None:
        """Return the first entry whose document is gone without an erasure."""
        for erasure_seq, claims in sorted(self._claims.items()):
            return _unproven(min(claims.values()), erasure_seq)
        # An erasure first: with its list, what it accounted for is missing as well.
        for seq in sorted(self.missing & self._lost_lists) or sorted(self.missing):
            message = f"the document of entry {seq} is missing, and no erasure redacted it"
            return FaultyEntry(seq, AuditFault.DOCUMENT_MISSING, message)
        return None

    def _account(self, erasure: RecordedEntry) -> None:
        """Account for what an erasure of format 1 has dropped whole. Later ones replace, and have evidence instead."""
        if erasure.document is None:
            if erasure.evidence_hash is None:
                self._lost_lists.add(erasure.seq)
            return
        for seq in _dropped_by(erasure.document):
            self.missing.discard(seq)
            # An earlier release could drop the list of an erasure as well: what was in it can no longer be told.
            if seq in self._lost_lists:
                self.missing = {other for other in self.missing if other > seq}


def _dropped_by(document: bytes) -> list[int]:
    try:
        dropped: list[int] = json.loads(document).get("redacted", [])
        return sorted(dropped)
    except (ValueError, AttributeError, TypeError):  # A log that was hashed again may hold anything.
        return []


def _unproven(seq: int, erasure_seq: int) -> FaultyEntry:
    message = f"the document of entry {seq} was altered: entry {erasure_seq} is no erasure that redacted it"
    return FaultyEntry(seq, AuditFault.DOCUMENT_ALTERED, message)


def _fault_of_contents(entry: RecordedEntry) -> FaultyEntry | None:
    """Compare what is stored with an unaltered entry with the hashes in it."""
    seq = entry.seq
    if not _matches_evidence(entry):
        message = f"what entry {seq} proves about documents or people was altered: its hash is not the one in the entry"
        return FaultyEntry(seq, AuditFault.EVIDENCE_ALTERED, message)
    if not _matches_document(entry):
        message = f"the document of entry {seq} was altered: its hash is not the one in the entry"
        return FaultyEntry(seq, AuditFault.DOCUMENT_ALTERED, message)
    if entry.altered_subjects:
        subjects = ", ".join(entry.altered_subjects)
        message = f"people first met in entry {seq} have another user id now: {subjects}"
        return FaultyEntry(seq, AuditFault.SUBJECT_ALTERED, message)
    return None


def _matches_hash(entry: RecordedEntry) -> bool:
    try:
        return hash_fields(*entry[:_HASHED_FIELDS], entry.evidence_hash) == entry.hash
    except (TypeError, AttributeError):  # An altered log may lack the value of a field.
        return False


def _matches_evidence(entry: RecordedEntry) -> bool:
    if entry.evidence_hash is None:
        return not entry.evidence
    return hash_evidence(entry.evidence) == entry.evidence_hash


def _matches_document(entry: RecordedEntry) -> bool:
    """Follow the hash of a document through its redactions, to what it is now. A missing one matches."""
    expected = entry.document_hash
    for redaction in entry.redactions:
        if redaction.old_hash != expected or redaction.erasure_seq <= entry.seq:
            return False
        expected = redaction.new_hash
    return entry.document is None or hash_document(entry.salt or b"", entry.document) == expected


def _broken(seq: int, message: str) -> FaultyEntry:
    return FaultyEntry(seq, AuditFault.CHAIN_BROKEN, message)
