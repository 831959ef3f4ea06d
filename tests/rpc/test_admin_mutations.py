"""What holds for every mutation alike: one revision and one record each, rehearsals, reasons, etags."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper.v1.flag_pb2 import Flag
from gatekeeper_grpc.store import flags as flag_store
from gatekeeper_grpc.store import targets as target_store
from tests.rpc.asking import (
    EACH_MUTATION,
    MUTATIONS,
    SERVICE,
    Installation,
    Mutation,
    Refusal,
    changed_since_read,
    created,
    flag_exists,
    flag_to_mutate,
    installed,
    no_flag,
    outcome_of,
    refusal_of,
)

# Those that change a flag that is there, and take its etag.
ON_A_FLAG = pytest.mark.parametrize("rpc", [rpc for rpc in MUTATIONS if rpc != "CreateFlag"])


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    with installed(postgres) as installation:
        yield installation


@pytest.fixture
def admin(installation: Installation) -> AdminServiceStub:
    return installation.admin


@pytest.fixture
def flag(admin: AdminServiceStub) -> Flag:
    return flag_to_mutate(admin)


def test_every_rpc_that_can_be_retried_is_in_the_table_of_mutations() -> None:
    mutating = {rpc.name for rpc in SERVICE.methods if "request_id" in rpc.input_type.fields_by_name}

    assert mutating == MUTATIONS.keys()


@pytest.mark.parametrize("field", ["change_reason", "validate_only", "request_id"])
@EACH_MUTATION
def test_every_mutation_has_the_fields_that_all_share(mutation: Mutation, field: str) -> None:
    assert field in mutation.request("a").DESCRIPTOR.fields_by_name


# --- One revision, one record ----------------------------------------------------------------------------------------

# A second row of either kind for one revision would give a second row here.
RECORDED = """
    SELECT revision, actor, action, a.resource_type, resource_key, c.resource_type, c.change_type, c.key
    FROM audit_log a FULL JOIN change_log c USING (revision) WHERE revision > %s ORDER BY seq
"""


@EACH_MUTATION
def test_a_mutation_is_the_next_revision_with_one_audit_entry_and_one_change(
    installation: Installation, flag: Flag, mutation: Mutation
) -> None:
    before = installation.revision()

    response = mutation.ask(installation.admin, flag.key)

    key = f"{flag.key}new" if mutation.rpc == "CreateFlag" else flag.key
    audited = ("admin:editor", mutation.rpc, mutation.resource, key)
    changed = (mutation.resource, mutation.change, key)
    assert installation.query(RECORDED, before) == [(before + 1, *audited, *changed)]
    assert response.revision == installation.revision() == before + 1


@EACH_MUTATION
def test_a_mutation_that_fails_writes_nothing(
    installation: Installation, flag: Flag, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation has done all its own writing when the fault strikes: recording it."""

    def fault(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("gatekeeper_grpc.store.ledger._record", fault)
    before = installation.contents()

    refusal = refusal_of(lambda: mutation.ask(installation.admin, flag.key))

    assert (refusal.reason, installation.contents()) == ("INTERNAL", before)


# --- change_reason ---------------------------------------------------------------------------------------------------

DOCUMENT = "SELECT document FROM audit_documents JOIN audit_log USING (seq) WHERE revision = %s"


@EACH_MUTATION
def test_the_audit_entry_tells_the_change_reason(installation: Installation, flag: Flag, mutation: Mutation) -> None:
    reason = 'Because "they" said so — 因為 🎉'

    response = mutation.ask(installation.admin, flag.key, change_reason=reason)

    ((document,),) = installation.query(DOCUMENT, response.revision)
    assert json.loads(document)["change_reason"] == reason


# --- validate_only ---------------------------------------------------------------------------------------------------


def would_be(response: Any) -> Any:
    """Return an answer less what only a write can decide."""
    decided = type(response)()
    decided.CopyFrom(response)
    decided.ClearField("revision")
    if hasattr(decided, "flag"):
        for field in ("etag", "revision", "create_time", "update_time"):
            decided.flag.ClearField(field)
    return decided


@EACH_MUTATION
def test_validate_only_answers_what_would_be_and_writes_nothing(
    installation: Installation, flag: Flag, mutation: Mutation
) -> None:
    before = installation.contents()

    rehearsed = mutation.ask(installation.admin, flag.key, validate_only=True)

    assert installation.contents() == before
    assert rehearsed.revision == installation.revision()
    assert would_be(rehearsed) == would_be(mutation.ask(installation.admin, flag.key))


@EACH_MUTATION
def test_without_validate_only_the_same_request_does_write(
    installation: Installation, flag: Flag, mutation: Mutation
) -> None:
    """The twin: `contents` would have shown it."""
    before = installation.contents()

    mutation.ask(installation.admin, flag.key)

    differing = {table for table, rows in installation.contents().items() if rows != before.get(table)}
    assert differing >= {"revision_head", "audit_log", "audit_documents", "change_log"}


def test_validate_only_of_an_update_answers_the_current_etag_revision_and_times(
    installation: Installation, flag: Flag
) -> None:
    expected = Flag()
    expected.CopyFrom(flag)
    expected.description = "changed"

    response = MUTATIONS["UpdateFlag"].ask(installation.admin, flag.key, validate_only=True)

    assert response == pb.UpdateFlagResponse(flag=expected, revision=installation.revision())


def test_validate_only_of_a_creation_answers_no_etag_and_no_revision(installation: Installation, flag: Flag) -> None:
    response = MUTATIONS["CreateFlag"].ask(installation.admin, flag.key, validate_only=True)

    assert (response.flag.etag, response.flag.revision) == ("", 0)


@pytest.mark.parametrize("validate_only", [True, False])
@ON_A_FLAG
def test_an_unknown_flag_is_refused_validated_or_not(admin: AdminServiceStub, rpc: str, validate_only: bool) -> None:
    mutation = MUTATIONS[rpc]

    refusal = refusal_of(lambda: mutation.ask(admin, "nobody", validate_only=validate_only))

    assert refusal == mutation.refused(no_flag("nobody"))


def test_a_taken_key_is_refused_when_only_validated(admin: AdminServiceStub, flag: Flag) -> None:
    create = pb.CreateFlagRequest(flag=Flag(key=flag.key), validate_only=True)

    assert refusal_of(lambda: admin.CreateFlag(create)) == flag_exists(flag.key)


# --- etag ------------------------------------------------------------------------------------------------------------


def stale(rpc: str, flag: Flag) -> Refusal:
    return MUTATIONS[rpc].refused(changed_since_read(current_etag=flag.etag))


@ON_A_FLAG
def test_a_mutation_with_the_current_etag_succeeds(installation: Installation, flag: Flag, rpc: str) -> None:
    response = MUTATIONS[rpc].ask(installation.admin, flag.key, etag=flag.etag)

    assert response.revision == installation.revision()


@pytest.mark.parametrize("validate_only", [True, False])
@ON_A_FLAG
def test_a_mutation_with_a_stale_etag_is_refused_naming_the_current_one_and_writes_nothing(
    installation: Installation, flag: Flag, rpc: str, validate_only: bool
) -> None:
    current = MUTATIONS["UpdateFlag"].ask(installation.admin, flag.key).flag
    before = installation.contents()

    def act() -> object:
        return MUTATIONS[rpc].ask(installation.admin, flag.key, etag=flag.etag, validate_only=validate_only)

    assert (refusal_of(act), installation.contents()) == (stale(rpc, current), before)


@ON_A_FLAG
def test_without_the_check_a_stale_etag_overwrites_what_its_sender_never_saw(
    installation: Installation, flag: Flag, rpc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test before."""

    def unchecked(conn: Any, key: str, _etag: str) -> Any:
        return flag_store.find_flag(conn, key)

    for store in (flag_store, target_store):
        monkeypatch.setattr(store, "checked_flag", unchecked)
    MUTATIONS["UpdateFlag"].ask(installation.admin, flag.key)

    outcome = outcome_of(lambda: MUTATIONS[rpc].ask(installation.admin, flag.key, etag=flag.etag))

    assert not isinstance(outcome, Refusal)


@pytest.mark.parametrize("etag", ["x", "\0", "é" * 100, 'W/"1"'])
@ON_A_FLAG
def test_an_etag_that_never_was_is_stale(admin: AdminServiceStub, flag: Flag, rpc: str, etag: str) -> None:
    assert refusal_of(lambda: MUTATIONS[rpc].ask(admin, flag.key, etag=etag)) == stale(rpc, flag)


def test_every_update_makes_another_etag_even_one_that_changes_nothing(admin: AdminServiceStub, flag: Flag) -> None:
    etags = {MUTATIONS["UpdateFlag"].ask(admin, flag.key).flag.etag for _ in range(3)}

    assert len(etags | {flag.etag}) == 4


def test_an_etag_of_a_deleted_flag_is_stale_for_its_successor(admin: AdminServiceStub, flag: Flag) -> None:
    MUTATIONS["DeleteFlag"].ask(admin, flag.key)
    successor = created(admin, key=flag.key)

    refusal = refusal_of(lambda: MUTATIONS["DeleteFlag"].ask(admin, flag.key, etag=flag.etag))

    assert refusal == changed_since_read(current_etag=successor.etag)
