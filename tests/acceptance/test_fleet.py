"""Several workers on one port: what one does all show, and what happens to one fails no call."""

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import LiteralString
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.parser import text_string_to_metric_families

from gatekeeper_client.v1.admin_service_pb2 import GetFlagRequest, UpdateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.processes import (
    KEYS,
    START_TIMEOUT_S,
    TIMEOUT_S,
    Gatekeeper,
    copied,
    postgres_pids,
    run,
    serving,
    start,
)
from tests.support.scrapes import documented, families_of, shown
from tests.support.waiting import eventually

# A fleet starts several processes, and some of these tests start a fleet of their own.
pytestmark = [pytest.mark.timeout(900), pytest.mark.promise("C4")]

WORKERS = 3
NUMBERS = {str(number) for number in range(1, WORKERS + 1)}
FLEET = {"GATEKEEPER_WORKERS": str(WORKERS)}
TWO = {"GATEKEEPER_WORKERS": "2"}
ALICE = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))
# Longer than it takes to detect a hung worker on a busy machine.
DEADLINE_S = 60.0
CLIENTS = 4
THINKS_S = 0.01
DRAIN_S, GRACE_S = 0.5, 3.0
# The promise is a second, and a process that exceeds it ends itself by force, with another exit code. The rest is for a
# busy machine.
MARGIN_S = 30.0

DOCS = Path(__file__).parents[2] / "docs" / "operations" / "fleet.md"
(RECOMMENDED,) = re.findall(r"```json\n(.+?)```", DOCS.read_text(), flags=re.DOTALL)
RETRYING: list[tuple[str, object]] = [("grpc.service_config", json.dumps(json.loads(RECOMMENDED)))]
PLAIN: list[tuple[str, object]] = []
# Runs a `gatekeeper` command, in its workers too, and tells what must not happen while gRPC threads live. `os.fork` and
# `preexec_fn` call such handlers; vfork with exec, by which processes are started, runs no code of ours in between.
TELL_TALE = """
import atexit, os, sys
atexit.register(os.write, 2, b"finalized\\n")
os.register_at_fork(before=lambda: os.write(2, b"forked\\n"))
from gatekeeper_grpc.cli import main as cli
{patch}
cli.main()
"""


@pytest.fixture(scope="module")
def fleet(first_started_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatekeeper]:
    with serving(copied(first_started_dir, tmp_path_factory.mktemp("fleet")), **FLEET) as started:
        yield started


def child_pids(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def worker_pids(gatekeeper: Gatekeeper) -> list[int]:
    """The workers' processes; postgres is started by another thread."""
    return child_pids(gatekeeper.process.pid)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def page(gatekeeper: Gatekeeper, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{gatekeeper.ops_port}{path}", timeout=TIMEOUT_S) as response:
            return response.status, response.read().decode()
    except HTTPError as refused:
        return refused.code, refused.read().decode()


def by_worker(gatekeeper: Gatekeeper, name: str) -> dict[str, float]:
    """A metric's values by worker."""
    families = text_string_to_metric_families(page(gatekeeper, "/metrics")[1])
    return {s.labels["worker"]: s.value for family in families for s in family.samples if s.name == name}


def restarts(gatekeeper: Gatekeeper, cause: str) -> float:
    families = text_string_to_metric_families(page(gatekeeper, "/metrics")[1])
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == "gatekeeper_worker_restarts_total" and s.labels["cause"] == cause)


def is_complete(gatekeeper: Gatekeeper) -> bool:
    """All workers are up, and the fleet has nothing to explain."""
    status, body = page(gatekeeper, "/readyz")
    return status == 200 and json.loads(body)["reasons"] == []


def evaluate(channel: grpc.Channel) -> None:
    EvaluationServiceStub(channel).EvaluateFlags(ALICE, timeout=DEADLINE_S)


class Clients:
    """Clients that send one call after the other, and the results."""

    def __init__(
        self, port: int, options: list[tuple[str, object]], ask: Callable[[grpc.Channel], object] = evaluate
    ) -> None:
        self._port = port
        self._call = ask
        self._options = [("grpc.use_local_subchannel_pool", 1), *options]
        self._over = threading.Event()
        self._answers = count(1)
        self.answered = 0
        self.failures: list[str] = []

    @contextmanager
    def calling(self) -> Iterator[None]:
        with ExitStack() as stack:
            channels = [stack.enter_context(self._channel()) for _ in range(CLIENTS)]
            threads = [threading.Thread(target=self._ask, args=(one,)) for one in channels]
            for thread in threads:
                thread.start()
            try:
                self.wait_for_more()
                yield
                self.wait_for_more()
            finally:
                self._over.set()
                for thread in threads:
                    thread.join()

    def wait_for_more(self) -> None:
        """Wait until more calls have been answered."""
        enough = self.answered + 50 * CLIENTS
        assert eventually(lambda: self.answered > enough)

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self._port}", options=self._options)

    def _ask(self, channel: grpc.Channel) -> None:
        while not self._over.is_set():
            try:
                self._call(channel)
                self.answered = next(self._answers)
                self._over.wait(THINKS_S)
            except grpc.RpcError as failed:
                self.failures.append(f"{failed.code()}: {failed.details()}")


def test_a_change_is_seen_on_every_connection_whichever_worker_answers(fleet: Gatekeeper) -> None:
    with fleet.admin() as admin, ExitStack() as stack:
        connections = [stack.enter_context(fleet.channel()) for _ in range(8 * WORKERS)]
        flag = Flag(key="new_checkout", rollout_percentage=100)
        change = UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["rollout_percentage"]))
        revision = admin.UpdateFlag(change).revision

        def is_seen() -> bool:
            answers = [EvaluationServiceStub(one).EvaluateFlags(ALICE, timeout=TIMEOUT_S) for one in connections]
            return all(answer.revision >= revision and answer.flags["new_checkout"] for answer in answers)

        assert eventually(is_seen)
        assert eventually(lambda: by_worker(fleet, "gatekeeper_snapshot_revision") == dict.fromkeys(NUMBERS, revision))


def test_metrics_are_those_of_all_workers_and_of_the_supervisor(fleet: Gatekeeper) -> None:
    assert eventually(lambda: is_complete(fleet))

    assert by_worker(fleet, "gatekeeper_ready") == dict.fromkeys(NUMBERS, 1)
    assert by_worker(fleet, "process_open_fds").keys() == NUMBERS | {"supervisor"}
    assert f"gatekeeper_workers_up {WORKERS}.0" in page(fleet, "/metrics")[1].splitlines()


def test_ready_tells_of_each_worker(fleet: Gatekeeper) -> None:
    assert eventually(lambda: is_complete(fleet))
    status, body = page(fleet, "/readyz")
    ready = json.loads(body)

    assert (status, ready["ready"], page(fleet, "/livez")) == (200, True, (200, "alive\n"))
    assert [(worker["worker"], worker["up"], worker["ready"]) for worker in ready["workers"]] == [
        (number, True, True) for number in range(1, WORKERS + 1)
    ]


def test_metrics_of_a_fleet_are_those_of_the_document_by_worker(fleet: Gatekeeper) -> None:
    families = families_of(fleet.ops_port)
    workers = {
        sample.labels.get("worker")
        for family in families
        if family.name != "gatekeeper_worker"
        for sample in family.samples
    }

    assert shown(families) == documented(fleet=True)
    assert {"1", "2"} <= workers


def test_health_answers_on_the_shared_port_and_on_the_supervisors_own(fleet: Gatekeeper) -> None:
    assert eventually(lambda: is_complete(fleet))
    for port in (fleet.port, fleet.health_port):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=TIMEOUT_S)
        assert answer.status == HealthCheckResponse.SERVING


def test_lines_of_a_worker_carry_its_number(fleet: Gatekeeper) -> None:
    assert {str(fleet.logged("snapshot_loaded", worker=int(number))["worker"]) for number in NUMBERS} == NUMBERS


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "hung")])
def test_a_dead_or_hung_worker_is_replaced_without_a_failure_for_clients(
    fleet: Gatekeeper, number: signal.Signals, cause: str
) -> None:
    assert eventually(lambda: is_complete(fleet))
    before, victim = restarts(fleet, cause), worker_pids(fleet)[0]
    clients = Clients(fleet.port, RETRYING)
    with clients.calling():
        os.kill(victim, number)
        assert eventually(lambda: not is_running(victim))
        assert eventually(lambda: is_complete(fleet), timeout_s=START_TIMEOUT_S)

    assert clients.failures == []
    assert restarts(fleet, cause) == before + 1
    assert len(worker_pids(fleet)) == WORKERS


def test_a_roll_replaces_every_worker_and_no_call_fails(fleet: Gatekeeper) -> None:
    assert eventually(lambda: is_complete(fleet))
    before = set(worker_pids(fleet))
    retrying, plain = Clients(fleet.port, RETRYING), Clients(fleet.port, PLAIN)
    with retrying.calling(), plain.calling():
        fleet.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: not before & set(worker_pids(fleet)), timeout_s=2 * START_TIMEOUT_S)

    assert (retrying.failures, plain.failures) == ([], [])
    assert eventually(lambda: is_complete(fleet))


# Longer than a start waits with a kept snapshot, if nobody else serves.
_SLOW_LOADS: LiteralString = """
    ALTER TABLE targeted_users RENAME TO stored_targets;
    CREATE VIEW targeted_users AS SELECT * FROM stored_targets WHERE (SELECT pg_sleep(4)) IS NOT NULL
"""
_HURRIED = """
from gatekeeper_grpc.lifecycle import process
process.REPLACEMENT_TIMEOUTS = None
from gatekeeper_grpc.cli.main import main
main()
"""


@pytest.mark.parametrize("program", [("gatekeeper_grpc",), ("-c", _HURRIED)], ids=["as it is", "twin: in a hurry"])
def test_a_replacement_serves_when_it_has_read_the_database(program: tuple[str, ...], data_dir: Path) -> None:
    """It could serve its kept snapshot sooner; but calls that need the database would fail then."""
    with serving(data_dir, program=program, **TWO) as gatekeeper:
        with psycopg.connect(gatekeeper.dsn) as conn:
            conn.execute(_SLOW_LOADS)
        gatekeeper.process.send_signal(signal.SIGHUP)
        gatekeeper.logged("roll_finished")
        is_hurried = "serving_last_known_good" in gatekeeper.log.text()

    assert is_hurried == ("-c" in program)


def test_workers_share_both_listeners_and_a_roll_fails_no_call_on_either(data_dir: Path) -> None:
    with serving(data_dir, **TWO, GATEKEEPER_ADMIN_LISTEN="127.0.0.1:0") as gatekeeper:
        assert len({gatekeeper.port, gatekeeper.admin_port, gatekeeper.health_port, gatekeeper.ops_port}) == 4
        before, token = set(worker_pids(gatekeeper)), access_token_of(gatekeeper)

        def read(channel: grpc.Channel) -> None:
            metadata = (("authorization", f"Bearer {token}"),)
            AdminServiceStub(channel).GetFlag(GetFlagRequest(key="new_checkout"), timeout=DEADLINE_S, metadata=metadata)

        evaluating, reading = Clients(gatekeeper.port, PLAIN), Clients(gatekeeper.admin_port, PLAIN, read)
        with evaluating.calling(), reading.calling():
            gatekeeper.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: not before & set(worker_pids(gatekeeper)), timeout_s=2 * START_TIMEOUT_S)
        gatekeeper.process.terminate()

        assert (evaluating.failures, reading.failures) == ([], [])
        assert gatekeeper.ends_within(MARGIN_S) == 0


def access_token_of(gatekeeper: Gatekeeper) -> str:
    """Log in as the first admin by the listener of AuthService."""
    password = (gatekeeper.data_dir / "admin_password").read_text().strip()
    with gatekeeper.connect(gatekeeper.admin_port) as channel:
        login = LoginRequest(username="admin", password=password)
        return AuthServiceStub(channel).Login(login, timeout=TIMEOUT_S).access_token


def test_sigterm_during_a_roll_ends_everything_in_time(data_dir: Path) -> None:
    with serving(data_dir, **TWO, **in_time()) as gatekeeper:
        gatekeeper.process.send_signal(signal.SIGHUP)
        gatekeeper.logged("roll_started")
        assert eventually(lambda: len(worker_pids(gatekeeper)) > 2)
        pids = worker_pids(gatekeeper)
        gatekeeper.process.terminate()

        gatekeeper.ends_within(DRAIN_S + GRACE_S + MARGIN_S)
        assert eventually(lambda: not any(map(is_running, [*pids, *postgres_pids(data_dir)])))


def test_sigterm_drains_all_workers_and_leaves_nothing_behind(data_dir: Path) -> None:
    # Nothing needs the grace period: long enough that no busy machine ends the fleet by force.
    settings = {**TWO, **in_time(), "GATEKEEPER_GRACE_S": str(MARGIN_S)}
    with serving(data_dir, **settings) as gatekeeper, gatekeeper.channel() as channel:
        pids = worker_pids(gatekeeper)
        EvaluationServiceStub(channel).EvaluateFlags(ALICE, timeout=TIMEOUT_S)
        with grpc.insecure_channel(f"127.0.0.1:{gatekeeper.health_port}") as health:
            watch = HealthStub(health).Watch(HealthCheckRequest(), timeout=TIMEOUT_S)
            before = next(watch).status
            gatekeeper.process.terminate()
            after = next(watch).status
            watch.cancel()
        code = gatekeeper.ends_within(DRAIN_S + GRACE_S + MARGIN_S)

        assert (before, after) == (HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING)
        assert code == 0
        assert not any(map(is_running, pids))
        assert postgres_pids(data_dir) == []


def test_a_worker_that_does_not_end_is_killed_in_time(data_dir: Path) -> None:
    with serving(data_dir, **TWO, **in_time()) as gatekeeper:
        pids = worker_pids(gatekeeper)
        gatekeeper.process.terminate()
        os.kill(pids[0], signal.SIGSTOP)

        gatekeeper.ends_within(DRAIN_S + GRACE_S + MARGIN_S)
        assert eventually(lambda: not any(map(is_running, pids)))


def test_a_killed_supervisor_leaves_no_worker_and_no_database(data_dir: Path) -> None:
    with serving(data_dir, **TWO, **in_time()) as gatekeeper:
        pids = worker_pids(gatekeeper)
        assert len(pids) == 2
        gatekeeper.kill()

        assert eventually(lambda: not any(map(is_running, pids)))
        assert eventually(lambda: not postgres_pids(data_dir))


@pytest.mark.parametrize("variable", ["GATEKEEPER_LISTEN", "GATEKEEPER_ADMIN_LISTEN"])
def test_a_shared_port_that_another_fleet_has_is_refused(fleet: Gatekeeper, tmp_path: Path, variable: str) -> None:
    settings = {**TWO, **KEYS, "DATABASE_URL": fleet.dsn, variable: f"127.0.0.1:{fleet.port}"}

    code, _, complaints = run("serve", data_dir=tmp_path, **settings)

    assert code == 1
    assert complaints.startswith(f"Error: {variable}: cannot listen on 127.0.0.1:{fleet.port}: another process")


def test_a_port_that_a_stranger_shares_is_refused(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        settings = {**TWO, **KEYS, "DATABASE_URL": "postgresql://127.0.0.1:1/x", "GATEKEEPER_LISTEN": address}

        code, _, complaints = run("serve", data_dir=tmp_path, **settings)

    assert code == 1
    assert complaints.startswith(f"Error: GATEKEEPER_LISTEN: cannot listen on {address}: another process")


def test_a_fleet_that_cannot_serve_fails_with_the_error_of_a_worker(tmp_path: Path) -> None:
    settings = {**TWO, **KEYS, "DATABASE_URL": "postgresql://127.0.0.1:1/gatekeeper"}

    code, printed, complaints = run("serve", data_dir=tmp_path, **settings)

    assert (code, printed) == (1, "")
    assert complaints.splitlines()[-1].startswith("Error: PostgreSQL at 127.0.0.1 cannot be reached")


def test_sigterm_ends_a_start_that_waits_for_its_first_worker(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/gatekeeper"
        with start("serve", data_dir=tmp_path, DATABASE_URL=url, **KEYS, **TWO, **in_time()) as process:
            with silent.accept()[0]:
                process.terminate()
                process.wait(DRAIN_S + GRACE_S + MARGIN_S)
            assert process.returncode == 130


@pytest.mark.parametrize("patch", ["", "cli.exit_now = sys.exit"], ids=["as it is", "twin: with finalization"])
def test_no_fork_and_no_finalization_while_grpc_threads_live(tmp_path: Path, *, patch: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/gatekeeper"
        settings = {"DATABASE_URL": url, **KEYS, **TWO, **in_time()}
        program = ("-c", TELL_TALE.format(patch=patch))
        with (
            start("serve", data_dir=tmp_path, program=program, **settings) as process,
            silent.accept()[0],  # By the first worker: the supervisor has started it.
        ):
            process.terminate()
            _, said = process.communicate(timeout=TIMEOUT_S)

    assert "forked" not in said
    assert ("finalized" in said) == bool(patch)


def in_time() -> dict[str, str]:
    return {"GATEKEEPER_DRAIN_S": str(DRAIN_S), "GATEKEEPER_GRACE_S": str(GRACE_S)}
