"""SIGTERM and SIGINT: health first, then the calls in flight; the process ends in time even if a call hangs."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

import grpc
import psycopg
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.processes import (
    KEYS,
    START_TIMEOUT_S,
    TIMEOUT_S,
    Gatekeeper,
    hanging,
    postgres_pids,
    serving,
    start,
    stop,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("C4")

DRAIN_S = 2.0
GRACE_S = 1.0
# The promise is one second beyond the drain and grace periods; the rest is for a busy machine. Without the forced end
# the first two would hang for as long as their stream or database does.
MARGIN_S = 6.0

# Exit codes. When everybody is slow, the last second may not be enough to stop the database too.
CLEAN = 0
FORCED = {70, -signal.SIGALRM}  # By a thread; by the kernel, where no thread runs, or is too slow.
INTERRUPTED = 130

# Frozen at the interpreter's end, or with a call into C that never returns: Python's threads do not run any more.
HANGS_IN_ITS_END = """
import ctypes, sys, threading
from gatekeeper_grpc.operations import logs
from gatekeeper_grpc.lifecycle import signals

logs.configure_logs(level="INFO", log_format="json")
signals.exit_by_force_after(1.0)
print(flush=True)
if sys.argv[1] == "the_interpreter":
    ctypes.PyDLL(None).pause()
threading.Event().wait()
"""

ALICE = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))


@contextmanager
def head_locked(dsn: str) -> Iterator[psycopg.Connection]:
    """Let every mutation wait for the length of the block."""
    with psycopg.connect(dsn) as holder:
        holder.execute("SELECT FROM revision_head FOR UPDATE")
        yield holder


def waits_for_a_lock(dsn: str) -> bool:
    with psycopg.connect(dsn) as conn:
        return bool(conn.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone())


def is_refused(evaluation: EvaluationServiceStub) -> bool:
    try:
        evaluation.EvaluateFlags(ALICE, timeout=TIMEOUT_S)
    except grpc.RpcError as refused:
        # grpcio cancels the calls that arrive in the very moment of its shutdown.
        return refused.code() is grpc.StatusCode.UNAVAILABLE
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_turns_health_first_and_then_ends_everything(data_dir: Path, number: signal.Signals) -> None:
    with serving(data_dir, GATEKEEPER_DRAIN_S=str(DRAIN_S)) as gatekeeper, gatekeeper.channel() as channel:
        health = HealthStub(channel).Watch(HealthCheckRequest(), timeout=TIMEOUT_S)
        before = next(health).status
        gatekeeper.process.send_signal(number)
        after = next(health).status
        still_served = EvaluationServiceStub(channel).EvaluateFlags(ALICE, timeout=TIMEOUT_S)
        health.cancel()

        assert (before, after) == (HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING)
        assert still_served.revision == 1
        assert gatekeeper.ends_within(TIMEOUT_S) == CLEAN
        assert postgres_pids(data_dir) == []


def test_call_in_flight_finishes_while_new_calls_are_unavailable(gatekeeper: Gatekeeper) -> None:
    with gatekeeper.admin() as admin, gatekeeper.channel() as other, head_locked(gatekeeper.dsn) as holder:
        in_flight = admin.CreateFlag.future(CreateFlagRequest(flag=Flag(key="slow")), timeout=TIMEOUT_S)
        assert eventually(lambda: waits_for_a_lock(gatekeeper.dsn))
        gatekeeper.process.terminate()
        assert eventually(lambda: is_refused(EvaluationServiceStub(other)))
        holder.rollback()

        assert in_flight.result().revision == 2
        assert gatekeeper.ends_within(TIMEOUT_S) == CLEAN


def test_stream_that_never_ends_is_cut_off_when_the_grace_period_is_over(data_dir: Path) -> None:
    # The longest interval there is: nothing that waits for the next refresh may hold up the end.
    settings = {"GATEKEEPER_GRACE_S": str(GRACE_S), "GATEKEEPER_REFRESH_INTERVAL_S": "60"}
    requests: SimpleQueue[BulkEvaluateFlagsRequest] = SimpleQueue()
    with serving(data_dir, **settings) as gatekeeper, gatekeeper.channel() as channel:
        answers = EvaluationServiceStub(channel).BulkEvaluateFlags(iter(requests.get, None))
        requests.put(BulkEvaluateFlagsRequest())
        next(answers)
        gatekeeper.process.terminate()

        assert gatekeeper.ends_within(GRACE_S + MARGIN_S) in {CLEAN, *FORCED}
        with pytest.raises(grpc.RpcError) as cut_off:
            list(answers)
        assert cut_off.value.code() is grpc.StatusCode.UNAVAILABLE
        assert eventually(lambda: not postgres_pids(data_dir))


def test_database_that_hangs_is_left_behind_when_the_grace_period_is_over(data_dir: Path) -> None:
    with serving(data_dir, GATEKEEPER_GRACE_S=str(GRACE_S)) as gatekeeper, gatekeeper.admin() as admin:
        with hanging(lambda: postgres_pids(data_dir)):
            stuck = admin.CreateFlag.future(CreateFlagRequest(flag=Flag(key="stuck")), timeout=TIMEOUT_S)
            gatekeeper.process.terminate()

            assert gatekeeper.ends_within(GRACE_S + MARGIN_S) in FORCED
            assert stuck.code() is grpc.StatusCode.UNAVAILABLE
        assert eventually(lambda: not postgres_pids(data_dir))


def test_signal_ends_a_start_that_waits_for_its_database(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/gatekeeper"
        settings = {"DATABASE_URL": url, **KEYS}
        with start("serve", data_dir=tmp_path, **settings) as process, silent.accept()[0]:
            process.terminate()

            assert process.wait(MARGIN_S) == INTERRUPTED


# Runs a `gatekeeper` command that gets SIGTERM in a callback of a weak reference, which drops the interruption.
_DROPS_SIGTERM = """
import os, signal, time, weakref

from gatekeeper_grpc.cli.main import main
from gatekeeper_grpc.lifecycle import process
from gatekeeper_grpc.lifecycle.server import GatekeeperServer

class Referent:
    pass

def signalled(_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)

def start(server, start=GatekeeperServer.start):
    weakref.finalize(Referent(), signalled, None)
    start(server)

GatekeeperServer.start = start
if {twin}:
    process.interrupt_at = lambda *_, into: signal.signal(signal.SIGTERM, signal.default_int_handler)
main()
"""


def test_sigterm_that_python_drops_during_a_start_ends_the_server(data_dir: Path) -> None:
    with start("serve", data_dir=data_dir, program=("-c", _DROPS_SIGTERM.format(twin=False))) as process:
        assert process.wait(START_TIMEOUT_S) == 0


def test_twin_the_interruption_alone_is_lost(data_dir: Path) -> None:
    with start("serve", data_dir=data_dir, program=("-c", _DROPS_SIGTERM.format(twin=True))) as process:
        gatekeeper = Gatekeeper(process, data_dir)
        try:
            assert gatekeeper.logged("serving")
            assert process.poll() is None
        finally:
            stop(process)


# Runs a `gatekeeper` command that gets SIGHUP as soon as it imports a package.
_HANGS_UP = """
import os, signal, sys

class HangsUp:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), signal.SIGHUP)

sys.meta_path.insert(0, HangsUp())
from gatekeeper_grpc.cli.main import main
main()
"""


def test_sighup_before_the_first_import_ends_nothing(tmp_path: Path) -> None:
    no_file = dict.fromkeys(("GATEKEEPER_TLS_CERT_FILE", "GATEKEEPER_TLS_KEY_FILE"), str(tmp_path / "nothing"))
    with start("serve", data_dir=tmp_path / "data", program=("-c", _HANGS_UP), **no_file) as process:
        assert process.wait(START_TIMEOUT_S) == 1


def test_twin_sighup_ends_a_command_that_serves_nothing(tmp_path: Path) -> None:
    with start("config", data_dir=tmp_path / "data", program=("-c", _HANGS_UP)) as process:
        assert process.wait(START_TIMEOUT_S) == -signal.SIGHUP


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_during_a_start_ends_nothing(tmp_path: Path, workers: str) -> None:
    """The start waits for the end of its certificate, which is empty then, and refused."""
    certificate = tmp_path / "tls.crt"
    os.mkfifo(certificate)
    names = ("GATEKEEPER_TLS_CERT_FILE", "GATEKEEPER_TLS_KEY_FILE")
    settings = {**dict.fromkeys(names, str(certificate)), "GATEKEEPER_WORKERS": workers}
    with start("serve", data_dir=tmp_path / "data", **settings) as process:
        with certificate.open("wb"):  # Waits until the process reads.
            process.send_signal(signal.SIGHUP)
        _release(certificate, process)

        assert process.returncode == 1
        assert process.stderr
        assert "GATEKEEPER_TLS_CERT_FILE" in process.stderr.read()


def _release(fifo: Path, process: subprocess.Popen[str]) -> None:
    """Let a process read an empty file as often as it likes, until it ends."""

    def ended() -> bool:
        with suppress(OSError):  # It does not read now.
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return process.poll() is not None

    assert eventually(ended)


def test_sighup_before_a_process_serves_is_answered_once_it_does(data_dir: Path) -> None:
    with start("serve", data_dir=data_dir) as process:
        assert eventually(lambda: _catches(process, signal.SIGHUP))
        process.send_signal(signal.SIGHUP)
        gatekeeper = Gatekeeper(process, data_dir)
        try:
            assert gatekeeper.logged("secrets_reread")
        finally:
            stop(process)


def _catches(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("hangs_in", "codes"),
    [
        pytest.param("a_thread", FORCED, id="a thread hangs"),
        pytest.param("the_interpreter", {-signal.SIGALRM}, id="the interpreter hangs"),
    ],
)
def test_process_that_hangs_in_its_end_is_ended_in_time(hangs_in: str, codes: set[int]) -> None:
    with hanging_in_its_end(hangs_in) as process:
        assert process.wait(1 + MARGIN_S) in codes


def test_a_process_whose_log_has_no_reader_ends_in_time() -> None:
    with hanging_in_its_end("a_thread") as process:
        assert process.stderr
        process.stderr.close()

        assert process.wait(1 + MARGIN_S) in FORCED


@contextmanager
def hanging_in_its_end(where: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a second left."""
    command = [sys.executable, "-c", HANGS_IN_ITS_END, where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
