"""ListAuditEntries, VerifyAuditLog, GetAuditCheckpoint: the record of all changes, and the proof that it is true."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.audit_pb2 import (
    AUDIT_FAULT_ANCHOR_MISMATCH,
    AUDIT_FAULT_DOCUMENT_MISSING,
    AUDIT_FAULT_ENTRY_ALTERED,
    AUDIT_FAULT_TAIL_CUT,
    RESOURCE_TYPE_FLAG,
    RESOURCE_TYPE_TARGETS,
    AuditAnchor,
    AuditEntry,
    ResourceType,
)
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.auth.checkpoints import CheckpointSigner, verify_checkpoint
from gatekeeper_grpc.domain import audit as domain
from gatekeeper_grpc.domain.audit import GENESIS_HASH, hash_document, hash_entry
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.wire.audit import checkpoint_from_proto
from tests.support.clients import TIMEOUT_S, Installation, Refusal, installed, invalid
from tests.support.clients import refusal_of as refusal_of_call
from tests.support.servers import KEYS, connect, settings_for_tests, token_for

ACTOR = "admin:editor"


@pytest.fixture(scope="module")
def written(postgres: str) -> Iterator[Installation]:
    """An installation with a log that no test adds to: eight entries, seven by an editor, one by an admin."""
    with installed(postgres) as installation:
        editor = installation.admin
        for key in ("alpha", "beta"):
            editor.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=key), change_reason=f"new: {key}"))
        editor.UpdateFlag(_described("alpha", "one"))
        editor.AddTargets(pb.AddTargetsRequest(flag_key="alpha", user_ids=["anna", "bob"], value=True))
        editor.RemoveTargets(pb.RemoveTargetsRequest(flag_key="alpha", user_ids=["bob"]))
        AdminServiceStub(installation.channels[Role.ADMIN]).UpdateFlag(_described("beta", "two"))
        editor.DeleteFlag(pb.DeleteFlagRequest(key="beta"))
        editor.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="beta")))
        yield installation


@pytest.fixture
def installation(postgres: str) -> Iterator[Installation]:
    """An installation of this test's own, with three entries."""
    with installed(postgres) as installation:
        for key in ("alpha", "beta", "gamma"):
            installation.admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=key)))
        yield installation


def _described(key: str, description: str) -> pb.UpdateFlagRequest:
    mask = FieldMask(paths=["description"])
    return pb.UpdateFlagRequest(flag=Flag(key=key, description=description), update_mask=mask)


def viewer(installation: Installation) -> AdminServiceStub:
    return AdminServiceStub(installation.channels[Role.VIEWER])


def page(installation: Installation, **filters: Any) -> pb.ListAuditEntriesResponse:
    return viewer(installation).ListAuditEntries(pb.ListAuditEntriesRequest(**filters), timeout=TIMEOUT_S)


def listed(installation: Installation, **filters: Any) -> list[AuditEntry]:
    return list(page(installation, **filters).audit_entries)


def seqs(installation: Installation, **filters: Any) -> list[int]:
    return [entry.seq for entry in listed(installation, **filters)]


def refusal_of(installation: Installation, **filters: Any) -> Refusal:
    return refusal_of_call(lambda: page(installation, **filters))


def verified(installation: Installation, anchor: AuditAnchor | None = None) -> pb.VerifyAuditLogResponse:
    *_, last = viewer(installation).VerifyAuditLog(pb.VerifyAuditLogRequest(anchor=anchor), timeout=TIMEOUT_S)
    return last


def tamper(installation: Installation, text: Any) -> None:
    """Do something to the audit log that only a superuser can, by switching all triggers off."""
    with psycopg.connect(installation.dsn) as conn:
        conn.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
        conn.execute(text)


def head(installation: Installation) -> AuditAnchor:
    ((seq, audit_hash),) = installation.query("SELECT audit_seq, audit_hash FROM revision_head")
    return AuditAnchor(seq=seq, hash=audit_hash)


# --- ListAuditEntries -------------------------------------------------------------------------------------------------


def test_entries_are_listed_newest_first(written: Installation) -> None:
    entries = listed(written)

    assert [entry.seq for entry in entries] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert [(entry.action, entry.resource_type, entry.resource_key) for entry in reversed(entries)] == [
        ("CreateFlag", RESOURCE_TYPE_FLAG, "alpha"),
        ("CreateFlag", RESOURCE_TYPE_FLAG, "beta"),
        ("UpdateFlag", RESOURCE_TYPE_FLAG, "alpha"),
        ("AddTargets", RESOURCE_TYPE_TARGETS, "alpha"),
        ("RemoveTargets", RESOURCE_TYPE_TARGETS, "alpha"),
        ("UpdateFlag", RESOURCE_TYPE_FLAG, "beta"),
        ("DeleteFlag", RESOURCE_TYPE_FLAG, "beta"),
        ("CreateFlag", RESOURCE_TYPE_FLAG, "beta"),
    ]


def test_an_entry_tells_all_that_its_hashes_are_made_of(written: Installation) -> None:
    entries = listed(written)[::-1]

    for entry, before in zip(entries, [GENESIS_HASH, *(entry.hash for entry in entries)], strict=False):
        fields = domain.AuditEntry(
            seq=entry.seq,
            format=entry.format,
            revision=entry.revision,
            create_time=entry.create_time.ToDatetime(tzinfo=UTC),
            actor=entry.actor,
            action=entry.action,
            environment=entry.environment,
            resource_type=ResourceType.Name(entry.resource_type).removeprefix("RESOURCE_TYPE_").lower(),
            resource_key=entry.resource_key,
            document_hash=entry.document_hash,
            prev_hash=entry.prev_hash,
            evidence_hash=entry.evidence_hash or None,
        )
        assert (entry.hash, entry.prev_hash) == (hash_entry(fields), before)
        assert entry.document_hash == hash_document(entry.salt, entry.document.encode())
    assert entries[-1].hash == head(written).hash


def test_an_entry_tells_what_was_what_is_and_why(written: Installation) -> None:
    (entry,) = listed(written, end_revision=1)

    document = json.loads(entry.document)
    assert (document["before"], document["after"]["key"], document["change_reason"]) == (None, "alpha", "new: alpha")
    assert not entry.redacted


def test_documents_name_people_by_subject_id_and_resolve_their_user_ids(written: Installation) -> None:
    (entry,) = listed(written, action="AddTargets")

    assert sorted(entry.users.values()) == ["anna", "bob"]
    assert set(entry.users) == set(json.loads(entry.document)["added"])
    assert "anna" not in entry.document


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"actor": ACTOR}, [8, 7, 5, 4, 3, 2, 1]),
        ({"actor": "admin:admin"}, [6]),
        ({"actor": "admin:admin#3"}, [6]),
        ({"actor": "admin:admin#1"}, []),
        ({"actor": "admin:admi"}, []),
        ({"actor": "admin"}, []),
        ({"action": "CreateFlag"}, [8, 2, 1]),
        ({"resource_type": RESOURCE_TYPE_FLAG}, [8, 7, 6, 3, 2, 1]),
        ({"resource_type": RESOURCE_TYPE_TARGETS}, [5, 4]),
        ({"resource_type": RESOURCE_TYPE_FLAG, "resource_key": "beta"}, [8, 7, 6, 2]),
        ({"resource_type": RESOURCE_TYPE_TARGETS, "resource_key": "beta"}, []),
        ({"start_revision": 6}, [8, 7, 6]),
        ({"end_revision": 2}, [2, 1]),
        ({"start_revision": 3, "end_revision": 5}, [5, 4, 3]),
        ({"start_revision": 5, "end_revision": 3}, []),
        ({"start_revision": 9}, []),
        ({"end_revision": 99}, [8, 7, 6, 5, 4, 3, 2, 1]),
        ({"actor": ACTOR, "action": "UpdateFlag"}, [3]),
        ({"actor": ACTOR, "resource_type": RESOURCE_TYPE_FLAG, "resource_key": "beta", "start_revision": 3}, [8, 7]),
    ],
    ids=str,
)
def test_filters_combine(written: Installation, filters: dict[str, Any], expected: list[int]) -> None:
    assert seqs(written, **filters) == expected


def test_time_filters_include_the_start_and_exclude_the_end(written: Installation) -> None:
    times = {entry.seq: entry.create_time for entry in listed(written)}

    assert seqs(written, start_time=times[6]) == [8, 7, 6]
    assert seqs(written, end_time=times[3]) == [2, 1]
    assert seqs(written, start_time=times[3], end_time=times[6], resource_type=RESOURCE_TYPE_FLAG) == [3]


@pytest.mark.parametrize("page_size", [1, 3, 7, 8])
@pytest.mark.parametrize("filters", [{}, {"resource_type": RESOURCE_TYPE_FLAG}], ids=["all", "flags"])
def test_pages_together_are_the_whole_list(written: Installation, page_size: int, filters: dict[str, Any]) -> None:
    seen, token = [], ""
    while True:
        response = page(written, page_size=page_size, page_token=token, **filters)
        assert len(response.audit_entries) <= page_size
        seen += [entry.seq for entry in response.audit_entries]
        token = response.next_page_token
        if not token:
            break

    assert seen == seqs(written, **filters)


def test_a_page_token_belongs_to_its_filters(written: Installation) -> None:
    token = page(written, page_size=2).next_page_token

    assert refusal_of(written, page_size=2, page_token=token, actor=ACTOR) == invalid("page_token")


def test_a_page_ends_early_where_documents_or_user_ids_are_large(installation: Installation) -> None:
    """Three entries of 1.6 MB, most of it user ids: one page of them is refused by a client with default options."""
    user_ids = [[f"{start + number:240}".replace(" ", "u") for number in range(5_000)] for start in (0, 5_000, 10_000)]
    imports = (pb.ImportTargetsRequest(flag_key="alpha", user_ids=ids, value=True) for ids in user_ids)
    installation.admin.ImportTargets(imports, timeout=TIMEOUT_S)

    pages = [page(installation)]
    while pages[-1].next_page_token:
        pages.append(page(installation, page_token=pages[-1].next_page_token))

    assert [[entry.seq for entry in each.audit_entries] for each in pages] == [[6], [5], [4], [3, 2, 1]]


def test_a_redacted_entry_has_no_document_and_says_so(installation: Installation) -> None:
    installation.execute("DELETE FROM audit_documents WHERE seq = 2")

    redacted = {entry.seq: (entry.redacted, entry.document == "", entry.salt == b"") for entry in listed(installation)}

    assert redacted == {3: (False, False, False), 2: (True, True, True), 1: (False, False, False)}


def test_a_person_whose_mapping_is_gone_is_not_named(installation: Installation) -> None:
    installation.admin.AddTargets(pb.AddTargetsRequest(flag_key="alpha", user_ids=["anna", "bob"], value=True))
    installation.execute("DELETE FROM subjects WHERE user_id = 'anna'")

    (entry,) = listed(installation, action="AddTargets")

    assert list(entry.users.values()) == ["bob"]
    assert len(json.loads(entry.document)["added"]) == 2


BEYOND_TIME = Timestamp(seconds=2**62)


@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ({"page_size": 1_001}, "page_size"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "made up"}, "page_token"),
        ({"actor": "a\0b"}, "actor"),
        ({"action": "x" * 257}, "action"),
        ({"resource_type": 99}, "resource_type"),
        ({"resource_key": "alpha"}, "resource_type"),
        ({"resource_type": RESOURCE_TYPE_FLAG, "resource_key": "\0"}, "resource_key"),
        ({"start_time": BEYOND_TIME}, "start_time"),
        ({"end_time": BEYOND_TIME}, "end_time"),
        ({"start_revision": -1}, "start_revision"),
        ({"end_revision": -1}, "end_revision"),
    ],
    ids=str,
)
def test_a_filter_that_can_never_work_is_refused(written: Installation, filters: dict[str, Any], field: str) -> None:
    assert refusal_of(written, **filters) == invalid(field)


# --- VerifyAuditLog ---------------------------------------------------------------------------------------------------


def test_a_true_log_is_verified_up_to_its_head(written: Installation) -> None:
    assert verified(written) == pb.VerifyAuditLogResponse(
        verified_entries=8, verified=head(written), complete=True, verified_subjects=2
    )


def test_the_anchor_of_every_mutation_is_found_in_the_log(installation: Installation) -> None:
    anchor = installation.admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="delta"))).audit_anchor
    installation.admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="epsilon")))

    assert anchor.seq == 4
    assert verified(installation, anchor).complete


def test_an_altered_entry_is_named(installation: Installation) -> None:
    anchor = head(installation)
    tamper(installation, "UPDATE audit_log SET actor = 'admin:eve' WHERE seq = 2")

    answer = verified(installation, anchor)

    assert (answer.complete, answer.verified_entries, answer.verified.seq) == (False, 1, 1)
    assert (answer.faulty_seq, answer.fault) == (2, AUDIT_FAULT_ENTRY_ALTERED)
    assert answer.message == "entry 2 was altered: its hash is not the hash of its fields"


def test_a_foreign_anchor_is_told_apart_from_one_beyond_the_log(written: Installation) -> None:
    forged = verified(written, AuditAnchor(seq=3, hash=bytes(32)))
    beyond = verified(written, AuditAnchor(seq=11, hash=bytes(32)))

    assert (forged.faulty_seq, forged.fault) == (3, AUDIT_FAULT_ANCHOR_MISMATCH)
    assert (beyond.faulty_seq, beyond.fault) == (9, AUDIT_FAULT_TAIL_CUT)


def test_a_document_that_no_erasure_accounts_for_is_named(installation: Installation) -> None:
    installation.execute("DELETE FROM audit_documents WHERE seq = 2")

    answer = verified(installation)

    assert (answer.complete, answer.faulty_seq, answer.fault) == (False, 2, AUDIT_FAULT_DOCUMENT_MISSING)
    assert answer.message == "the document of entry 2 is missing, and no erasure redacted it"
    assert answer.redacted_documents == 0


@pytest.mark.parametrize(
    ("anchor", "field"),
    [(AuditAnchor(seq=1), "anchor.hash"), (AuditAnchor(seq=-1, hash=bytes(32)), "anchor.seq")],
    ids=["no hash", "negative"],
)
def test_an_anchor_that_cannot_be_one_is_refused(written: Installation, anchor: AuditAnchor, field: str) -> None:
    assert refusal_of_call(lambda: verified(written, anchor)) == invalid(field)


def test_a_few_verifications_run_at_once_and_the_next_is_refused(written: Installation) -> None:
    running = [written.server.stores.audit.verify() for _ in range(2)]
    for reports in running:
        next(reports)  # a report is there, the verification not over

    refusal = refusal_of_call(lambda: verified(written))
    for reports in running:
        list(reports)

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
    assert verified(written).complete


# --- GetAuditCheckpoint -----------------------------------------------------------------------------------------------


def test_a_checkpoint_signs_the_head_with_the_installation_key(dsn: str) -> None:
    signer = CheckpointSigner(bytes(range(32)))
    server = GatekeeperServer(settings_for_tests(), dsn=dsn, keys=replace(KEYS, audit=signer))
    server.start()
    before = datetime.now(UTC)
    try:
        with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
            editor = AdminServiceStub(channel)
            created = editor.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="alpha")))
            checkpoint = editor.GetAuditCheckpoint(pb.GetAuditCheckpointRequest()).checkpoint
    finally:
        server.stop()

    assert (checkpoint.anchor, checkpoint.revision) == (created.audit_anchor, created.revision)
    assert before <= checkpoint.create_time.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)
    verify_checkpoint(checkpoint_from_proto(checkpoint), signer.public_key)


def test_without_a_key_there_is_no_checkpoint(written: Installation) -> None:
    refusal = refusal_of_call(lambda: viewer(written).GetAuditCheckpoint(pb.GetAuditCheckpointRequest()))

    assert refusal == Refusal(grpc.StatusCode.FAILED_PRECONDITION, "AUDIT_SIGNING_KEY_MISSING", {})
