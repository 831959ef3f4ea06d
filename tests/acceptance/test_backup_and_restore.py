"""A restored backup takes the old name, with PostgreSQL's programs and a server that runs on."""

import subprocess
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from gatekeeper_grpc.embedded.binaries import find_bin_dir
from tests.support.clients import send
from tests.support.databases import database_dsn, database_name
from tests.support.outages import close_database
from tests.support.processes import TIMEOUT_S, Gatekeeper, run
from tests.support.traces import live, traces

pytestmark = pytest.mark.promise("E2", "D9")


def postgres_program(name: str, *arguments: str | Path) -> None:
    subprocess.run([find_bin_dir() / name, *arguments], check=True, capture_output=True)


def test_a_restored_and_finished_backup_replaces_the_database(gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    person, backup, data_dir = f"person-{uuid4().hex}", tmp_path / "backup", gatekeeper.data_dir
    keys = DataKeys(KeyRing.parse((data_dir / "data_keys").read_text().strip()))
    name = database_name(gatekeeper.dsn)
    restored = database_dsn(gatekeeper.dsn, "restored")
    with gatekeeper.admin() as admin:
        live(admin, person)
        postgres_program("pg_dump", "--format", "custom", "--file", backup, "--dbname", gatekeeper.dsn)
        send(admin, "EraseUser", pb.EraseUserRequest(user_id=person))
        lost = send(admin, "CreateFlag", pb.CreateFlagRequest(flag=Flag(key="lost"))).revision

        postgres_program("createdb", "--maintenance-db", gatekeeper.dsn, "restored")
        postgres_program("pg_restore", "--no-owner", "--exit-on-error", "--dbname", restored, backup)
        finish = ("restore-finish", "--known-revision", str(lost))
        code, printed, complaints = run(*finish, data_dir=data_dir, DATABASE_URL=restored)
        assert (code, printed.splitlines()[-1]) == (0, "erased again: 1"), complaints
        with psycopg.connect(database_dsn(gatekeeper.dsn, "postgres"), autocommit=True) as conn:
            close_database(name, conn)
            conn.execute(f"ALTER DATABASE {name} RENAME TO broken")
            conn.execute(f"ALTER DATABASE restored RENAME TO {name}")

        assert gatekeeper.logged("commits_lost")["last_served_revision"] == lost
        with gatekeeper.channel() as channel:
            request = EvaluateFlagsRequest(context=EvaluationContext(user_id=person), min_revision=lost)
            answer = EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S)
        assert answer.revision > REVISIONS_PER_EPOCH
        assert set(answer.flags) == {"new_checkout", "alpha", "beta"}
        again = send(admin, "CreateFlag", pb.CreateFlagRequest(flag=Flag(key="lost"))).revision
        assert again == answer.revision + 1

    assert traces(gatekeeper.dsn, person, files=data_dir, keys=keys) == []
    assert run("audit", "verify", data_dir=data_dir)[0] == 0
