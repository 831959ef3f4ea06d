"""The audit log: an entry for each mutation, chained by hashes, and nothing in the database changes it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1.admin_service_pb2 import (
    AddTargetsRequest,
    CreateFlagRequest,
    DeleteFlagRequest,
    UpdateFlagRequest,
)
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.processes import Gatekeeper, copied, serving
from tests.support.records import chained_entries

pytestmark = pytest.mark.promise("D8")

ROUNDS = 5


@pytest.fixture(scope="module")
def written(first_started_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatekeeper]:
    """A server on which twenty mutations were made, after the demo flag's."""
    with serving(copied(first_started_dir, tmp_path_factory.mktemp("audited"))) as gatekeeper:
        with gatekeeper.admin() as admin:
            for number in range(ROUNDS):
                mutate_four_times(admin, f"flag-{number}")
        yield gatekeeper


def mutate_four_times(admin: AdminServiceStub, key: str) -> None:
    admin.CreateFlag(CreateFlagRequest(flag=Flag(key=key, description="ein Schalter für Zoë \U0001f680")))
    admin.UpdateFlag(UpdateFlagRequest(flag=Flag(key=key, enabled=True), update_mask=FieldMask(paths=["enabled"])))
    admin.AddTargets(AddTargetsRequest(flag_key=key, user_ids=["alice"], value=True))
    admin.DeleteFlag(DeleteFlagRequest(key=key))


def test_twenty_mutations_leave_twenty_chained_entries(written: Gatekeeper) -> None:
    _demo, *entries = chained_entries(written.dsn)

    actions = ["CreateFlag", "UpdateFlag", "AddTargets", "DeleteFlag"] * ROUNDS
    assert [entry.action for entry in entries] == actions
    assert [entry.revision for entry in entries] == [2 + number for number in range(len(actions))]
    assert {entry.actor for entry in entries} == {"admin:admin#1"}


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'nobody'",
        "UPDATE audit_log_p000000 SET actor = 'nobody'",
        "DELETE FROM audit_log WHERE seq = 2",
        "DELETE FROM audit_log_p000000 WHERE seq = 2",
        "TRUNCATE audit_log",
        "TRUNCATE audit_log_p000000",
    ],
)
def test_owner_of_the_log_can_neither_change_nor_shorten_it(written: Gatekeeper, statement: str, role: str) -> None:
    with psycopg.connect(written.dsn) as owner:
        owner.execute(f"SET session_replication_role = {role}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            owner.execute(statement.encode())


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_log SET actor = 'nobody' WHERE seq = 2",
        "DELETE FROM audit_log WHERE seq = 2",
        "DELETE FROM audit_log WHERE seq = (SELECT max(seq) FROM audit_log)",
        "UPDATE audit_log SET seq = 105 - seq WHERE seq IN (2, 3); UPDATE audit_log SET seq = seq - 100 WHERE seq > 99",
        "UPDATE audit_documents SET document = '{}' WHERE seq = 2",
    ],
    ids=["edit", "delete", "cut the tail", "swap", "replace a document"],
)
def test_switching_the_triggers_off_leaves_a_broken_chain(admin: AdminServiceStub, dsn: str, tampering: str) -> None:
    """The twin of both: without the triggers the log does change, and the hashes tell."""
    mutate_four_times(admin, "flag")
    assert len(chained_entries(dsn)) == 4
    with psycopg.connect(dsn) as superuser:
        superuser.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
        superuser.execute("ALTER TABLE audit_documents DISABLE TRIGGER ALL")
        superuser.execute(tampering.encode())
    with pytest.raises(AssertionError):
        chained_entries(dsn)


def test_an_installation_reconciles_from_its_first_start_on(written: Gatekeeper) -> None:
    """Its first admin user and its demo flag were made by no RPC."""
    gatekeeper = [sys.executable, "-m", "gatekeeper_grpc", "audit", "reconcile"]
    environment = {"DATABASE_URL": written.dsn}

    untouched = subprocess.run(gatekeeper, env=environment, capture_output=True, text=True, check=False)
    with psycopg.connect(written.dsn) as owner:
        owner.execute("UPDATE feature_flags SET rollout_percentage = 99 WHERE key = 'new_checkout'")
        owner.execute("UPDATE admin_user SET role = 'viewer'")
    tampered = subprocess.run(gatekeeper, env=environment, capture_output=True, text=True, check=False)

    # On a busy machine the log of a slow connection stands there as well.
    faults = [line.partition(":")[0] for line in tampered.stderr.splitlines() if "behind the log" in line]
    assert (untouched.returncode, "0 differ" in untouched.stdout) == (0, True)
    assert (tampered.returncode, faults) == (1, ["flag new_checkout", "admin_user admin"])
