"""Racing editors: no update is lost, versions form one chain, and so does the audit log."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from psycopg.rows import dict_row

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.audit import GENESIS_HASH, AuditEntry, hash_document, hash_entry
from tests.support.clients import (
    Installation,
    Refusal,
    changed_since_read,
    created,
    outcome_of,
    race,
)
from tests.support.mutations import flag_to_mutate

pytestmark = pytest.mark.promise("A3")

EDITORS = 16
ATTEMPTS_EACH = 25


def read(admin: AdminServiceStub, key: str) -> Flag:
    return admin.GetFlag(pb.GetFlagRequest(key=key)).flag


def count_up(admin: AdminServiceStub, flag: Flag, *, etag: str) -> object:
    """Write one more than the number that `flag` shows, as its description, and return the outcome."""
    counted = Flag(key=flag.key, description=str(int(flag.description) + 1), etag=etag)
    request = pb.UpdateFlagRequest(flag=counted, update_mask=FieldMask(paths=["description"]))
    return outcome_of(lambda: admin.UpdateFlag(request))


def read_and_count_up(admin: AdminServiceStub, key: str) -> list[object]:
    """Do as an editor does, again and again: read, then write what follows from it."""
    outcomes = []
    for _ in range(ATTEMPTS_EACH):
        flag = read(admin, key)
        outcomes.append(count_up(admin, flag, etag=flag.etag))
    return outcomes


def test_racing_updates_with_etags_lose_nothing_and_form_one_chain(installation: Installation) -> None:
    flag = created(installation.admin, description="0")

    outcomes = race([partial(read_and_count_up, installation.admin, flag.key)] * EDITORS)

    answers = [outcome for editor in outcomes for outcome in editor if isinstance(outcome, pb.UpdateFlagResponse)]
    refusals = [outcome for editor in outcomes for outcome in editor if isinstance(outcome, Refusal)]
    assert len(answers) + len(refusals) == EDITORS * ATTEMPTS_EACH
    assert {refusal.reason for refusal in refusals} == {"ETAG_MISMATCH"}
    assert read(installation.admin, flag.key).description == str(len(answers))
    assert versions(installation, flag) == sorted(answer.revision for answer in answers)


def versions(installation: Installation, flag: Flag) -> list[int]:
    """Return the revisions that a flag went through after its creation; each must follow from the one before."""
    documents = [json.loads(document) for (document,) in installation.query(UPDATES, flag.key)]
    steps = [(document["before"]["revision"], document["after"]["revision"]) for document in documents]
    assert all(after == before for (_, after), (before, _) in pairwise([(0, flag.revision), *steps]))
    return [after for _, after in steps]


UPDATES = """
    SELECT document FROM audit_log JOIN audit_documents USING (seq)
    WHERE resource_type = 'flag' AND resource_key = %s AND action = 'UpdateFlag' ORDER BY seq
"""


def test_of_two_who_saw_the_same_state_one_is_told_that_it_has_changed(installation: Installation) -> None:
    flag = created(installation.admin, description="0")

    outcomes = race([partial(count_up, installation.admin, flag, etag=flag.etag)] * 2)

    after = read(installation.admin, flag.key)
    assert after.description == "1"
    assert changed_since_read(current_etag=after.etag) in outcomes
    current = pb.UpdateFlagResponse(flag=after, revision=after.revision, audit_anchor=installation.audit_anchor())
    assert current in outcomes


def test_without_etags_an_update_is_lost(installation: Installation) -> None:
    """The twin: both who saw the same state succeed, and one did so for nothing."""
    flag = created(installation.admin, description="0")

    outcomes = race([partial(count_up, installation.admin, flag, etag="")] * 2)

    assert [type(outcome) for outcome in outcomes] == [pb.UpdateFlagResponse] * 2
    assert read(installation.admin, flag.key).description == "1"


# --- The audit chain -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An audit entry as it is stored: with the hash that it claims, and its document."""

    entry: AuditEntry
    hash: bytes
    salt: bytes
    document: bytes

    def is_sound(self) -> bool:
        hashes = (hash_entry(self.entry), hash_document(self.salt, self.document))
        return hashes == (self.hash, self.entry.document_hash)


def audit_log(dsn: str) -> list[Stored]:
    rows = "SELECT * FROM audit_log JOIN audit_documents USING (seq) ORDER BY seq"
    with psycopg.connect(dsn, row_factory=dict_row, options="-c timezone=UTC") as conn:
        return [stored_entry(row) for row in conn.execute(rows)]


def stored_entry(row: dict[str, Any]) -> Stored:
    rest = {name: row.pop(name) for name in ("hash", "salt", "document")}
    return Stored(entry=AuditEntry(**row), **rest)


def broken_links(log: list[Stored]) -> list[int]:
    """Return the places, from 1, of entries that are not what their hashes say or do not follow from the one before."""
    before = [GENESIS_HASH, *(stored.hash for stored in log)]
    return [
        position
        for position, stored in enumerate(log, start=1)
        if (stored.entry.seq, stored.entry.prev_hash, stored.is_sound()) != (position, before[position - 1], True)
    ]


@pytest.fixture(scope="module")
def log(installation: Installation) -> list[Stored]:
    """The audit log after a race of 16 editors, each with a flag of its own."""
    race([partial(flag_to_mutate, installation.admin)] * EDITORS)
    return audit_log(installation.dsn)


def test_the_audit_log_of_a_race_is_one_unbroken_chain_up_to_the_head(
    installation: Installation, log: list[Stored]
) -> None:
    assert len(log) >= 2 * EDITORS
    assert broken_links(log) == []
    assert installation.query("SELECT audit_seq, audit_hash FROM revision_head") == [(len(log), log[-1].hash)]


def swapped(log: list[Stored]) -> list[Stored]:
    return [*log[:3], log[4], log[3], *log[5:]]


def without_fourth(log: list[Stored]) -> list[Stored]:
    return [*log[:3], *log[4:]]


def with_another_actor(log: list[Stored]) -> list[Stored]:
    return [*log[:3], replace(log[3], entry=replace(log[3].entry, actor="admin:mallory")), *log[4:]]


def with_another_document(log: list[Stored]) -> list[Stored]:
    return [*log[:3], replace(log[3], document=b"{}"), *log[4:]]


@pytest.mark.parametrize("tamper", [swapped, without_fourth, with_another_actor, with_another_document])
def test_a_chain_that_was_tampered_with_is_found_broken_where_it_was(
    log: list[Stored], tamper: Callable[[list[Stored]], list[Stored]]
) -> None:
    """The twin: this is how we would see it."""
    assert broken_links(tamper(log))[0] == 4
