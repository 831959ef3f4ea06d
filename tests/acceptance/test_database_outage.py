"""Evaluation answers while the database is down; everything else says so, and goes on by itself afterwards."""

import json
from pathlib import Path

import grpc
import pytest

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.embedded.home import Home
from tests.support.processes import TIMEOUT_S, Gatekeeper, hanging, kill_postmaster, postgres_pids, serving, stop
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B1")

EVALUATIONS = 500
NEW_FLAG = CreateFlagRequest(flag=Flag(key="new"))


def test_no_evaluation_fails_while_postgres_is_down_and_writes_resume(gatekeeper: Gatekeeper) -> None:
    # Without it every restart fails: the outage lasts until it is put back.
    version = Home(gatekeeper.data_dir).cluster / "PG_VERSION"
    set_aside = version.rename(gatekeeper.data_dir / "set-aside")
    with gatekeeper.admin() as admin, gatekeeper.channel() as channel:
        evaluation = EvaluationServiceStub(channel)
        kill_postmaster(gatekeeper.data_dir)
        gatekeeper.logged("embedded_postgres_restart_failed")
        answers = [evaluation.EvaluateFlags(user(number), timeout=TIMEOUT_S) for number in range(EVALUATIONS)]
        with pytest.raises(grpc.RpcError) as refused:
            admin.CreateFlag(NEW_FLAG, timeout=TIMEOUT_S)
        set_aside.rename(version)
        gatekeeper.logged("embedded_postgres_restarted")

        assert {(tuple(answer.flags), answer.revision) for answer in answers} == {(("new_checkout",), 1)}
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert eventually(lambda: creates(admin))


def test_answers_say_stale_once_the_database_is_down_for_too_long(data_dir: Path) -> None:
    with serving(data_dir, GATEKEEPER_STALE_AFTER_S="0.5") as gatekeeper, gatekeeper.channel() as channel:
        evaluation = EvaluationServiceStub(channel)

        def is_stale() -> bool:
            return evaluation.EvaluateFlags(user(0), timeout=TIMEOUT_S).stale

        assert eventually(lambda: not is_stale())  # A busy machine may refresh less often than each half second.
        with hanging(lambda: postgres_pids(data_dir)):
            assert eventually(is_stale)
        assert eventually(lambda: not is_stale())


def test_log_stays_one_json_document_a_line_when_libraries_log_too(gatekeeper: Gatekeeper) -> None:
    kill_postmaster(gatekeeper.data_dir)
    gatekeeper.logged("embedded_postgres_restarted")
    with gatekeeper.admin() as admin:
        assert eventually(lambda: creates(admin))
    said = gatekeeper.logged("library", logger="psycopg.pool")
    stop(gatekeeper.process)

    assert "connection" in said["message"]
    assert [line for line in gatekeeper.log.whole().splitlines() if not isinstance(json.loads(line), dict)] == []


def user(number: int) -> EvaluateFlagsRequest:
    return EvaluateFlagsRequest(context=EvaluationContext(user_id=f"user-{number}"))


def creates(admin: AdminServiceStub) -> bool:
    try:
        return admin.CreateFlag(NEW_FLAG, timeout=TIMEOUT_S).revision == 2
    except grpc.RpcError:
        return False
