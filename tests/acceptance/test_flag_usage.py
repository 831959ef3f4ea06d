"""Usage of a server that ends: what it counted is there at the next start, or the log says how much is lost."""

from pathlib import Path

import pytest

from gatekeeper_client.v1.admin_service_pb2 import GetFlagUsageRequest
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.embedded.home import Home
from tests.support.processes import TIMEOUT_S, Gatekeeper, kill_postmaster, serving, stop

DEMO_FLAG = "new_checkout"
EVALUATIONS = 300


def evaluate(gatekeeper: Gatekeeper) -> None:
    request = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"), flag_keys=[DEMO_FLAG])
    with gatekeeper.channel() as channel:
        for _ in range(EVALUATIONS):
            EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S)


def test_usage_is_there_after_a_restart(data_dir: Path) -> None:
    with serving(data_dir) as first:
        evaluate(first)
        stop(first.process)

    with serving(data_dir) as second, second.admin() as admin:
        usage = admin.GetFlagUsage(GetFlagUsageRequest(key=DEMO_FLAG), timeout=TIMEOUT_S)

    assert sum(count.decisions for hour in usage.usage for count in hour.counts) == EVALUATIONS
    assert usage.HasField("last_named_time")


@pytest.mark.promise("B1")
def test_with_a_killed_database_all_is_answered_and_the_loss_is_logged(gatekeeper: Gatekeeper) -> None:
    # Without it every restart of the database fails.
    version = Home(gatekeeper.data_dir).cluster / "PG_VERSION"
    version.rename(gatekeeper.data_dir / "set-aside")
    kill_postmaster(gatekeeper.data_dir)
    gatekeeper.logged("embedded_postgres_restart_failed")

    evaluate(gatekeeper)
    stop(gatekeeper.process)

    assert gatekeeper.logged("usage_lost")["decisions"] == EVALUATIONS
