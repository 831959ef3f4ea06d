"""The verifier of the audit log: finds the first bad entry of any log, and says what is wrong with it."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from gatekeeper_grpc.domain.audit import (
    GENESIS,
    AuditAnchor,
    RecordedEntry,
    Redaction,
    hash_document,
    hash_evidence,
    hash_fields,
    redaction_line,
    subject_line,
)
from gatekeeper_grpc.domain.audit_verifier import AuditFault, FaultyEntry, Verification, verify_chain

pytestmark = pytest.mark.promise("D8")

Log = list[RecordedEntry]


def chained(count: int, *, after: AuditAnchor = GENESIS) -> Log:
    """Make a true log."""
    log, prev_hash = [], after.hash
    for seq in range(after.seq + 1, after.seq + count + 1):
        log.append(entry(seq, prev_hash))
        prev_hash = log[-1].hash
    return log


def entry(seq: int, prev_hash: bytes, *, actor: str = "admin:bob") -> RecordedEntry:
    salt, document = b"s" * 16, f'{{"seq":{seq}}}'.encode()
    time = "2026-11-23T07:46:16.000000+00:00"
    document_hash = hash_document(salt, document)
    fields = (seq, 1, seq, time, actor, "UpdateFlag", "", "flag", f"flag-{seq}", document_hash, prev_hash)
    return RecordedEntry(*fields, hash_fields(*fields), salt, document)


def altered(entry: RecordedEntry, **fields: Any) -> RecordedEntry:
    """Alter an entry as one can in a table, with values of any kind."""
    return entry._replace(**fields)


def anchor_of(entry: RecordedEntry) -> AuditAnchor:
    return AuditAnchor(seq=entry.seq, hash=entry.hash)


def concluded(reports: Iterator[Verification]) -> Verification:
    *_, last = reports
    return last


def fault_in(log: Sequence[RecordedEntry], *, anchor: AuditAnchor | None = None, head: AuditAnchor) -> object:
    last = concluded(verify_chain(log, head=head, anchor=anchor))
    assert last.complete == (last.faulty is None)
    return last.faulty and (last.faulty.fault, last.faulty.seq)


def test_a_true_log_is_verified_to_its_end() -> None:
    log = chained(5)

    (report,) = verify_chain(log, head=anchor_of(log[-1]), anchor=anchor_of(log[2]))

    assert report == Verification(
        verified_entries=5, redacted_documents=0, verified=anchor_of(log[-1]), faulty=None, complete=True
    )


def test_an_empty_log_is_true() -> None:
    (report,) = verify_chain([], head=GENESIS, anchor=GENESIS)

    assert report == Verification(verified_entries=0, redacted_documents=0, verified=GENESIS, complete=True)


# --- What erasures account for ----------------------------------------------------------------------------------------


def hashed(log: Log) -> Log:
    """Chain a log again, as those who wrote it would have."""
    prev_hash = GENESIS.hash
    for index, entry in enumerate(log):
        fields = (*entry[:10], prev_hash)
        prev_hash = hash_fields(*fields, entry.evidence_hash)
        log[index] = RecordedEntry(*fields, prev_hash, *entry[12:])
    return log


def redacted(log: Log, seq: int, *, by: int) -> None:
    """Let an erasure rewrite the document of an entry."""
    old = log[seq - 1]
    assert old.document
    document = old.document + b" "
    redaction = Redaction(
        erasure_seq=by,
        old_hash=hash_document(old.salt or b"", old.document),
        new_hash=hash_document(b"n" * 16, document),
    )
    log[seq - 1] = old._replace(salt=b"n" * 16, document=document, redactions=(*old.redactions, redaction))
    erasure = log[by - 1]
    evidence = (*erasure.evidence, redaction_line(seq, redaction))
    log[by - 1] = erasure._replace(
        format=2, resource_type="subject", evidence=evidence, evidence_hash=hash_evidence(evidence)
    )


def dropped(log: Log, *seqs: int, by: int) -> None:
    """Let an erasure of an earlier release drop documents: it lists them in its own."""
    for seq in seqs:
        log[seq - 1] = log[seq - 1]._replace(salt=None, document=None)
    document = json.dumps({"erased": {}, "redacted": seqs}).encode()
    document_hash = hash_document(b"s" * 16, document)
    log[by - 1] = log[by - 1]._replace(
        resource_type="subject", document=document, salt=b"s" * 16, document_hash=document_hash
    )


def missing(log: Log, seq: int) -> None:
    log[seq - 1] = log[seq - 1]._replace(salt=None, document=None)


def report_of(log: Log) -> Verification:
    return concluded(verify_chain(log, head=anchor_of(log[-1])))


def test_documents_that_erasures_rewrote_are_counted_and_are_no_fault() -> None:
    log = chained(7)
    redacted(log, 2, by=5)
    redacted(log, 3, by=5)
    redacted(log, 2, by=7)

    report = report_of(hashed(log))

    assert (report.complete, report.redacted_documents, report.unaccounted_documents) == (True, 2, 0)


def test_a_missing_document_is_a_fault() -> None:
    log = chained(5)
    redacted(log, 2, by=5)
    hashed(log)
    missing(log, 3)

    report = report_of(log)

    message = "the document of entry 3 is missing, and no erasure redacted it"
    assert report.faulty == FaultyEntry(seq=3, fault=AuditFault.DOCUMENT_MISSING, message=message)
    assert (report.complete, report.redacted_documents, report.unaccounted_documents) == (False, 1, 1)


def test_a_redacted_document_that_is_missing_is_a_fault() -> None:
    log = chained(5)
    redacted(log, 2, by=5)
    hashed(log)
    missing(log, 2)

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.DOCUMENT_MISSING, 2)


def test_an_erasure_whose_own_document_is_missing_is_a_fault() -> None:
    log = chained(5)
    redacted(log, 2, by=4)
    hashed(log)
    missing(log, 4)

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.DOCUMENT_MISSING, 4)


@pytest.mark.parametrize("erasure_seq", [2, 3, 4, 6], ids=["itself", "an earlier one", "no erasure", "none yet"])
def test_a_redaction_that_is_not_of_a_later_erasure_is_a_fault(erasure_seq: int) -> None:
    log = chained(5)
    redacted(log, 3, by=5)
    hashed(log)
    log[2] = log[2]._replace(redactions=(log[2].redactions[0]._replace(erasure_seq=erasure_seq),))

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.DOCUMENT_ALTERED, 3)


@pytest.mark.parametrize("evidence", [(), ("redaction 2\n",)], ids=["gone", "another"])
def test_an_erasure_with_other_evidence_is_a_fault(evidence: tuple[str, ...]) -> None:
    log = chained(5)
    redacted(log, 2, by=5)
    hashed(log)
    log[4] = log[4]._replace(evidence=evidence)

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.EVIDENCE_ALTERED, 5)


def test_a_redaction_that_does_not_follow_from_the_one_before_is_a_fault() -> None:
    log = chained(5)
    redacted(log, 2, by=4)
    redacted(log, 2, by=5)
    hashed(log)
    log[1] = log[1]._replace(redactions=log[1].redactions[1:])

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.DOCUMENT_ALTERED, 2)


def test_documents_that_an_earlier_release_dropped_are_no_fault() -> None:
    log = chained(5)
    dropped(log, 2, 3, by=4)

    report = report_of(hashed(log))

    assert (report.complete, report.redacted_documents) == (True, 2)


def test_a_list_that_an_earlier_release_dropped_hides_what_was_in_it() -> None:
    """Its own list is gone, and may have named any earlier entry; later ones are still accounted for one by one."""
    log = chained(8)
    dropped(log, 2, 3, by=4)
    dropped(log, 4, by=6)
    assert report_of(hashed(log)).redacted_documents == 3
    missing(log, 5)

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.DOCUMENT_MISSING, 5)


def test_the_erasure_is_named_whose_list_somebody_deleted() -> None:
    log = chained(5)
    dropped(log, 2, 3, by=4)
    hashed(log)
    missing(log, 4)

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.DOCUMENT_MISSING, 4)


def test_of_a_part_of_a_log_a_later_part_may_account_for_what_is_missing() -> None:
    log = chained(5)
    dropped(log, 2, by=5)

    report = concluded(verify_chain(hashed(log)[:3]))

    assert (report.complete, report.redacted_documents, report.unaccounted_documents) == (True, 0, 1)


def test_a_person_with_another_user_id_is_a_fault() -> None:
    log = chained(5)
    evidence = (subject_line("id-1", bytes(32)), subject_line("id-2", bytes(32)))
    log[2] = log[2]._replace(format=2, evidence=evidence, evidence_hash=hash_evidence(evidence), known_subjects=2)
    report = concluded(verify_chain(hashed(log), head=anchor_of(log[-1]), subjects=3))
    assert (report.complete, report.verified_subjects, report.incomparable_subjects) == (True, 2, 1)
    log[2] = log[2]._replace(known_subjects=1, altered_subjects=("id-2",))

    faulty = report_of(log).faulty

    assert faulty
    assert (faulty.seq, faulty.fault) == (3, AuditFault.SUBJECT_ALTERED)
    assert faulty.message.endswith("have another user id now: id-2")


# --- Progress ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entries", "reported_at"), [(3, [3]), (4, [4, 4]), (9, [4, 8, 9])])
def test_progress_is_reported_on_the_way_and_at_the_end(entries: int, reported_at: list[int]) -> None:
    log = chained(entries)

    reports = list(verify_chain(log, head=anchor_of(log[-1]), report_every=4))

    assert [report.verified_entries for report in reports] == reported_at
    assert [report.complete for report in reports] == [False] * (len(reported_at) - 1) + [True]


def test_memory_does_not_grow_with_the_log() -> None:
    taken = 0

    def log() -> Iterator[RecordedEntry]:
        nonlocal taken
        for entry in chained(100):
            taken += 1
            yield entry

    reports = verify_chain(log(), report_every=10)
    next(reports)

    assert taken == 10


def test_a_part_of_a_log_is_verified_from_where_it_begins() -> None:
    whole = chained(9)

    report = concluded(verify_chain(whole[4:], start=anchor_of(whole[3]), head=anchor_of(whole[-1])))

    assert (report.complete, report.verified_entries) == (True, 5)


def test_a_part_of_a_log_that_is_not_chained_to_its_beginning_is_found() -> None:
    whole = chained(9)

    report = concluded(verify_chain(whole[4:], start=AuditAnchor(seq=4, hash=bytes(32))))

    assert report.faulty == FaultyEntry(
        seq=5, fault=AuditFault.CHAIN_BROKEN, message="entry 5 is not chained to the entry before it"
    )


ALTERED_FIELDS = {
    "format": 2,
    "revision": 99,
    "create_time": "2026-11-23T07:46:16.000001+00:00",
    "actor": "admin:eve",
    "action": "DeleteFlag",
    "environment": "prod",
    "resource_type": "segment",
    "resource_key": "other",
    "document_hash": bytes(32),
    "prev_hash": bytes(32),
    "hash": bytes(32),
}


@pytest.mark.parametrize("field", ALTERED_FIELDS)
def test_every_altered_field_is_found_at_its_entry(field: str) -> None:
    log, whole = chained(5), chained(5)
    log[2] = altered(log[2], **{field: ALTERED_FIELDS[field]})

    assert fault_in(log, head=anchor_of(whole[-1])) == (AuditFault.ENTRY_ALTERED, 3)


@pytest.mark.parametrize("field", RecordedEntry._fields[1:12])
def test_a_field_without_a_value_is_an_altered_entry(field: str) -> None:
    log = chained(5)
    log[2] = altered(log[2], **{field: None})

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.ENTRY_ALTERED, 3)


@pytest.mark.parametrize("changes", [{"salt": b"t" * 16}, {"document": b"{}"}, {"salt": None}])
def test_an_altered_document_is_found_at_its_entry(changes: dict[str, bytes | None]) -> None:
    log = chained(5)
    log[2] = altered(log[2], **changes)

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.DOCUMENT_ALTERED, 3)


def test_an_entry_that_was_hashed_again_is_found_at_the_next_one() -> None:
    log = chained(5)
    log[2] = entry(3, log[1].hash, actor="admin:eve")

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.CHAIN_BROKEN, 4)


def test_a_last_entry_that_was_hashed_again_is_found_by_the_head() -> None:
    log = chained(5)
    head = anchor_of(log[-1])
    log[4] = entry(5, log[3].hash, actor="admin:eve")

    assert fault_in(log, head=head) == (AuditFault.CHAIN_BROKEN, 5)


def test_a_log_hashed_again_up_to_its_head_is_found_by_the_anchor() -> None:
    true = chained(5)
    eve = entry(3, true[1].hash, actor="admin:eve")
    log = [*true[:2], eve, *chained(2, after=anchor_of(eve))]

    assert fault_in(log, head=anchor_of(log[-1])) is None
    assert fault_in(log, head=anchor_of(log[-1]), anchor=anchor_of(true[3])) == (AuditFault.ANCHOR_MISMATCH, 4)


def test_an_anchor_of_the_entry_before_the_first_one_is_compared() -> None:
    log = chained(5)

    found = concluded(verify_chain(log[3:], start=anchor_of(log[2]), anchor=AuditAnchor(seq=3, hash=bytes(32))))

    assert found.faulty
    assert (found.faulty.fault, found.faulty.seq, found.verified_entries) == (AuditFault.ANCHOR_MISMATCH, 3, 0)


@pytest.mark.parametrize(("missing", "found_at"), [(slice(0, 1), 2), (slice(0, 3), 4), (slice(2, 3), 4)])
def test_missing_entries_are_found_at_the_next_one(missing: slice, found_at: int) -> None:
    log = chained(5)
    head = anchor_of(log[-1])
    del log[missing]

    assert fault_in(log, head=head) == (AuditFault.ENTRY_MISSING, found_at)


def test_a_tail_that_was_cut_is_found_by_the_head() -> None:
    log = chained(5)

    assert fault_in(log[:3], head=anchor_of(log[-1])) == (AuditFault.TAIL_CUT, 4)
    assert fault_in([], head=anchor_of(log[-1])) == (AuditFault.TAIL_CUT, 1)


def test_a_tail_that_was_cut_with_its_head_is_found_by_the_anchor() -> None:
    log = chained(5)

    assert fault_in(log[:3], head=anchor_of(log[2])) is None
    assert fault_in(log[:3], head=anchor_of(log[2]), anchor=anchor_of(log[-1])) == (AuditFault.TAIL_CUT, 4)


def test_an_entry_beyond_the_head_was_put_in() -> None:
    log = chained(5)

    assert fault_in(log, head=anchor_of(log[3])) == (AuditFault.CHAIN_BROKEN, 5)


def test_a_repeated_entry_is_found() -> None:
    log = chained(5)
    log.insert(3, log[2])

    assert fault_in(log, head=anchor_of(log[-1])) == (AuditFault.CHAIN_BROKEN, 3)


@pytest.mark.parametrize(
    "swap",
    [
        lambda one, other: (other, one),
        lambda one, other: (other._replace(seq=one.seq), one._replace(seq=other.seq)),
        lambda one, other: (one._replace(actor="admin:eve"), other),
    ],
    ids=["rows", "all but their places", "a field"],
)
def test_exchanged_entries_are_found_at_the_first_of_them(
    swap: Callable[[RecordedEntry, RecordedEntry], tuple[RecordedEntry, RecordedEntry]],
) -> None:
    log = chained(5)
    head = anchor_of(log[-1])
    log[1], log[3] = swap(log[1], log[3])

    found = concluded(verify_chain(log, head=head))

    assert found.faulty
    assert (found.verified_entries, found.verified) == (1, anchor_of(log[0]))


def test_verification_ends_with_the_first_bad_entry() -> None:
    log = chained(9)
    log[4] = log[4]._replace(actor="admin:eve")
    log[6] = log[6]._replace(actor="admin:eve")

    reports = list(verify_chain(log, report_every=2))

    assert [report.verified_entries for report in reports] == [2, 4, 4]
    assert [report.faulty and report.faulty.seq for report in reports] == [None, None, 5]
