"""Starts real `gatekeeper serve` processes for the benchmarks, and stops them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import grpc

from gatekeeper_client.v1 import auth_service_pb2
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub

Metadata = tuple[tuple[str, str | bytes], ...]
PASSWORD = "bench-password"  # noqa: S105 - of a throw-away database


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A running server: its port and process id."""

    port: int
    pid: int

    def channel(self) -> grpc.Channel:
        """Open a new connection."""
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)])

    def rss_kib(self) -> int:
        """Return the resident memory of the process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise LookupError("VmRSS")


@contextmanager
def serving(
    data_dir: Path, module: tuple[str, ...] = ("gatekeeper_grpc", "serve"), /, **settings: str
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
            yield Instance(port=_port(process, log), pid=process.pid)
        finally:
            process.terminate()
            process.wait(timeout=30)


def database_url(data_dir: Path) -> str:
    """Return the DSN of the embedded database that runs in `data_dir`."""
    command = [sys.executable, "-m", "gatekeeper_grpc", "db-url"]
    environment = {**os.environ, "GATEKEEPER_DATA_DIR": str(data_dir)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def log_in(instance: Instance) -> Metadata:
    """Log in as the first admin; returns the metadata that admin calls need."""
    with instance.channel() as channel:
        request = auth_service_pb2.LoginRequest(username="admin", password=PASSWORD)
        response = AuthServiceStub(channel).Login(request, wait_for_ready=True, timeout=10)
    return (("authorization", f"Bearer {response.access_token}"),)


def _port(process: subprocess.Popen[bytes], log: TextIO) -> int:
    while process.poll() is None:
        log.seek(0)
        for line in log.read().splitlines():
            if '"event": "serving"' in line:
                return int(json.loads(line)["port"])
        time.sleep(0.05)
    raise RuntimeError("the server ended before it served")
