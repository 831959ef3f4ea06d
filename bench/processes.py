"""Starts real `gatekeeper serve` processes for the benchmarks, fills them, and reads what they used."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO
from urllib.request import urlopen

import grpc
import psycopg

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import auth_service_pb2, flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from tests.support.processes import postgres_pids
from tests.support.tls import CertificateFolder

Metadata = tuple[tuple[str, str | bytes], ...]
PASSWORD = "bench-password"  # noqa: S105 - of a throw-away database


SERVE = ("gatekeeper_grpc", "serve")
FLAGS = 20
STOPPED_WITHIN_S = 60.0
EVALUATE_FLAGS = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
# Foreign keys are not checked for each of a million rows.
_FILL = """
    SET session_replication_role = replica;
    INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage, create_time, update_time, revision)
    SELECT 'flag-' || n, true, 'off', 50, now(), now(), 1 FROM generate_series(1, {flags}) n;
    INSERT INTO subjects (user_id) SELECT 'user-' || n FROM generate_series(1, {targets}) n;
    INSERT INTO targeted_users (flag_id, subject_id, variant)
    SELECT flag_id, subject_id, CASE subject.n % 2 WHEN 0 THEN 'off' ELSE 'on' END
    FROM (SELECT subject_id, row_number() OVER () AS n FROM subjects) subject
    JOIN (SELECT flag_id, row_number() OVER () AS n FROM feature_flags) flag ON flag.n = subject.n % {flags} + 1;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A running server: its ports and process id; with `certificates`, it speaks TLS."""

    port: int
    pid: int = 0
    ops_port: int = 0
    data_dir: Path = Path()
    certificates: CertificateFolder | None = None

    def channel(self) -> grpc.Channel:
        """Open a new connection."""
        if self.certificates is not None:
            return self.certificates.channel(self.port)
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)])

    def rss_kib(self) -> int:
        """Return the resident memory of the process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise LookupError("VmRSS")

    def cpu_s(self) -> float:
        """Return the processor time of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def counted(self, metric: str, **labels: str) -> float:
        """Return the sum of a metric of `/metrics` over all series that have these labels."""
        with urlopen(f"http://127.0.0.1:{self.ops_port}/metrics") as response:
            lines = response.read().decode().splitlines()
        wanted = {f'{name}="{value}"' for name, value in labels.items()}
        series = (re.fullmatch(rf"{metric}(?:{{(.*)}})? (\S+)", line) for line in lines)
        return sum(float(each[2]) for each in series if each and wanted <= {*(each[1] or "").split(",")})

    def answered(self) -> int:
        """Return how many calls of EvaluateFlags it has answered with OK, by its own count."""
        return int(self.counted("gatekeeper_rpc_duration_seconds_count", code="OK", method=EVALUATE_FLAGS))


def cpu_of_thread_s(pid: int) -> float:
    """Return the processor time of the first thread of a process so far, in nanoseconds where /proc/PID/stat has ticks.

    Many processes of one thread each, such as PostgreSQL's, would lose up to a hundredth of a second each.
    """
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@contextmanager
def serving(
    data_dir: Path,
    module: tuple[str, ...] = SERVE,
    /,
    **settings: str,
) -> Iterator[Instance]:
    """Run one instance on `data_dir` inside the block; settings are environment variables."""
    defaults = {
        "GATEKEEPER_DATA_DIR": str(data_dir),
        "GATEKEEPER_LISTEN": "127.0.0.1:0",
        "GATEKEEPER_HEALTH_LISTEN": "127.0.0.1:0",
        "GATEKEEPER_OPS_LISTEN": "127.0.0.1:0",
        "GATEKEEPER_LOG_FORMAT": "json",
        "GATEKEEPER_DRAIN_S": "0",
        "GATEKEEPER_ADMIN_PASSWORD": PASSWORD,
        "GATEKEEPER_BCRYPT_COST": "10",
        "GATEKEEPER_LOGIN_RATE": "off",
        "GATEKEEPER_MUTATION_RATE": "off",
        "GATEKEEPER_TOKEN_MUTATION_RATE": "off",
        "GATEKEEPER_ADMIN_READ_RATE": "off",
    }
    # A file, not a pipe: nothing reads the pipe later, and a server blocks when its log is full.
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], env={**os.environ, **defaults, **settings}, stderr=log
        )
        try:
            said = _said(process, log)
            ops_port = said.get("ops_port", 0)
            yield Instance(port=said["port"], pid=process.pid, ops_port=ops_port, data_dir=data_dir)
        finally:
            process.terminate()
            process.wait(timeout=STOPPED_WITHIN_S)
            if "DATABASE_URL" not in settings:
                _wait_for_the_end_of_postgres(data_dir)


def database_url(data_dir: Path) -> str:
    """Return the DSN of the embedded database that runs in `data_dir`."""
    command = [sys.executable, "-m", "gatekeeper_grpc", "db-url"]
    environment = {**os.environ, "GATEKEEPER_DATA_DIR": str(data_dir)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def _wait_for_the_end_of_postgres(data_dir: Path) -> None:
    """Return when nothing writes into the directory any more, so that it can be removed."""
    until = time.monotonic() + STOPPED_WITHIN_S
    while postgres_pids(data_dir) and time.monotonic() < until:
        time.sleep(0.05)


def log_in(instance: Instance) -> Metadata:
    """Log in as the first admin; returns the metadata that admin calls need."""
    with instance.channel() as channel:
        request = auth_service_pb2.LoginRequest(username="admin", password=PASSWORD)
        response = AuthServiceStub(channel).Login(request, wait_for_ready=True, timeout=10)
    return (("authorization", f"Bearer {response.access_token}"),)


def create_flags(instance: Instance, count: int = FLAGS) -> None:
    """Create `count` enabled flags with a rollout of 50 %: flag-0, flag-1 and so on."""
    metadata = log_in(instance)
    with instance.channel() as channel:
        for number in range(count):
            flag = flag_pb2.Flag(key=f"flag-{number}", enabled=True, rollout_percentage=50)
            AdminServiceStub(channel).CreateFlag(admin.CreateFlagRequest(flag=flag), metadata=metadata)


def fill(dsn: str, *, flags: int, targets: int = 0) -> None:
    """Write flags (flag-1 and so on) and targets as no change would, then VACUUM ANALYZE; a later start loads them."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(_FILL.format(flags=flags, targets=targets).encode())
        conn.execute("VACUUM ANALYZE")


def snapshot_of(dsn: str) -> Snapshot:
    """Load what a database has, to evaluate it here."""
    with closing(Database(dsn)) as database:
        database.open()
        return SnapshotStore(database).load()


@contextmanager
def flags_served(
    count: int = FLAGS, module: tuple[str, ...] = SERVE, /, *, with_tls: bool = False, **settings: str
) -> Iterator[Instance]:
    """Run an instance in a directory of its own, with flags of `create_flags`."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gatekeeper-bench-")))
        certificates = CertificateFolder(folder) if with_tls else None
        settings |= certificates.variables if certificates else {}
        instance = stack.enter_context(serving(folder / "data", module, **settings))
        instance = replace(instance, certificates=certificates)
        create_flags(instance, count)
        yield instance


def _said(process: subprocess.Popen[bytes], log: TextIO) -> dict[str, Any]:
    while process.poll() is None:
        log.seek(0)
        for line in log.read().splitlines():
            if '"event": "serving"' in line:
                return dict(json.loads(line))
        time.sleep(0.05)
    raise RuntimeError("the server ended before it served")
