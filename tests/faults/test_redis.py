"""A Redis that is down or hung affects nothing: evaluation, writes and the login limit work without it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest

from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from tests.faults.figures import ADMIN_FAILS_WITHIN_S, BUS_ALIVE_P99_S, BUSY_S, FAULT_S, ROUNDS
from tests.faults.fleet import Instance, fleet
from tests.faults.load import Editor, Load, at_work, visible_after_s
from tests.faults.postgres import Postgres
from tests.faults.proxy import ChaosProxy, Mode, proxied
from tests.faults.report import Report
from tests.support.processes import TIMEOUT_S
from tests.support.valkey import Valkey, valkey

pytestmark = pytest.mark.promise("B3")

WRITES = 100
GUESSES = 20
LASTS_S = FAULT_S / 3


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Valkey]:
    """A Redis of this test's own."""
    with valkey(tmp_path / "redis") as server:
        yield server


def through(network: ChaosProxy) -> dict[str, str]:
    return {"REDIS_URL": f"redis://127.0.0.1:{network.port}/0"}


Fault = Callable[[Valkey, ChaosProxy], AbstractContextManager[None]]


@contextmanager
def killed(redis: Valkey, _network: ChaosProxy) -> Iterator[None]:
    redis.kill()
    yield
    redis.start_again()


FAULTS: dict[str, Fault] = {
    "Redis killed": killed,
    "Redis hung (SIGSTOP)": lambda redis, _network: redis.hanging(),
    "network to Redis a blackhole": lambda _redis, network: network.broken(Mode.BLACKHOLE),
    "network to Redis resets": lambda _redis, network: network.broken(Mode.RESET),
}


def guesses_refused_for_being_many(instance: Instance) -> int:
    """Guess a password again and again; how often that was answered with a request to wait."""
    with instance.gatekeeper.channel() as channel:
        return sum(_guess(AuthServiceStub(channel)) for _ in range(GUESSES))


def _guess(auth: AuthServiceStub) -> bool:
    with pytest.raises(grpc.RpcError) as refused:
        auth.Login(LoginRequest(username="admin", password="a wrong guess"), timeout=TIMEOUT_S)
    return refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("name", FAULTS)
def test_nobody_notices_that_redis_is_away(
    name: str, postgres: Postgres, redis: Valkey, tmp_path: Path, report: Report
) -> None:
    with proxied(redis.port) as network, fleet(postgres, tmp_path, settings=through(network)) as instances:
        load = Load(instances.instances)
        editor = Editor(instances[0].admin, load.acknowledged)
        with at_work(load, editor), report.fault("B3", name, load) as row:
            with FAULTS[name](redis, network):
                time.sleep(LASTS_S)
                limited = guesses_refused_for_being_many(instances[1])
            row.recovery_s = instances.recovered_s()
        row.also = f"evaluation p99 {load.p99_s() * 1000:.0f} ms, the slowest edit took {editor.slowest_s:.2f} s"

    assert load.failed == {}, load.complaints
    assert editor.refused == {}
    assert editor.slowest_s < ADMIN_FAILS_WITHIN_S + BUSY_S
    assert limited > 0


def test_redis_announces_what_postgres_does_not(
    postgres: Postgres, redis: Valkey, tmp_path: Path, report: Report
) -> None:
    postgres.lose_notifications(1.0)
    settings = {"REDIS_URL": redis.url, "GATEKEEPER_REFRESH_INTERVAL_S": "5"}
    with (
        fleet(postgres, tmp_path, size=2, settings=settings) as instances,
        report.fault("A4", "all notifications lost, Redis alive") as row,
    ):
        rounds = [
            sorted(visible_after_s(instances[0].write, instances[1]) for _ in range(WRITES)) for _ in range(ROUNDS)
        ]
        p99_s, row.staleness_s = min((seen[-2], seen[-1]) for seen in rounds)
        row.also = f"p99 {p99_s * 1000:.0f} ms over {WRITES} writes, the best of {ROUNDS} rounds"

    assert p99_s < BUS_ALIVE_P99_S


def test_twin_that_publishes_before_it_answers_hangs_with_redis(
    postgres: Postgres, redis: Valkey, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=1, sabotage="redis_in_the_way", settings={"REDIS_URL": redis.url}) as instances:
        load = Load(instances.instances)
        editor = Editor(instances[0].admin, load.acknowledged)
        with at_work(editor), redis.hanging():
            time.sleep(2 * (ADMIN_FAILS_WITHIN_S + BUSY_S))

    assert editor.slowest_s > ADMIN_FAILS_WITHIN_S + BUSY_S
    report.twin("B3", "publishing from the background", f"an edit took {editor.slowest_s:.1f} s")
