"""Real `gatekeeper` processes: starts them, reads what they say, talks to them as clients do, kills them."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import grpc

from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.embedded import exec_stub, running_dsn
from gatekeeper_grpc.embedded.account import Account
from gatekeeper_grpc.embedded.home import Home
from tests.support.servers import Bearer
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually

Found = TypeVar("Found")

# For whatever must happen, on a machine that is busy with something else.
TIMEOUT_S = 60.0
# For processes that start, several at a time.
START_TIMEOUT_S = 180.0
# What an operator has to give every instance on a database of its own.
KEYS = {
    "GATEKEEPER_JWT_KEYS": "test:0123456789abcdef0123456789abcdef",
    "GATEKEEPER_DATA_KEYS": "data:fedcba9876543210fedcba9876543210",
    "GATEKEEPER_ERASURE_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",  # pragma: allowlist secret
}
# Settings of servers that tests start.
QUICK = {
    "GATEKEEPER_LISTEN": "127.0.0.1:0",
    "GATEKEEPER_HEALTH_LISTEN": "127.0.0.1:0",
    "GATEKEEPER_OPS_LISTEN": "127.0.0.1:0",
    "GATEKEEPER_LOG_FORMAT": "json",
    "GATEKEEPER_BCRYPT_COST": "10",
    "GATEKEEPER_DRAIN_S": "0",
    "GATEKEEPER_REFRESH_INTERVAL_S": "0.25",
    # Tests call as fast as they can, all from one address; those of the limits set them.
    "GATEKEEPER_LOGIN_RATE": "off",
    "GATEKEEPER_MUTATION_RATE": "off",
    "GATEKEEPER_TOKEN_MUTATION_RATE": "off",
    "GATEKEEPER_ADMIN_READ_RATE": "off",
}


class Output:
    """What a process writes to a pipe, kept line by line as it comes."""

    def __init__(self, pipe: IO[str]) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._grown = threading.Condition()  # guards both
        self._thread = threading.Thread(target=self._keep, args=(pipe,), daemon=True)
        self._thread.start()

    def text(self) -> str:
        """What came so far."""
        with self._grown:
            return "".join(self._lines)

    def whole(self) -> str:
        """All of it, once the process has ended."""
        self._thread.join(TIMEOUT_S)
        return self.text()

    def first(self, find: Callable[[str], Found | None]) -> Found:
        """The first line that `find` makes something of; waits for it."""
        with self._grown:
            self._grown.wait_for(lambda: self._ended or any(map(find, self._lines)), START_TIMEOUT_S)
            found = next(filter(None, map(find, self._lines)), None)
        assert found is not None, f"waited in vain for a line among:\n{self.text()}"
        return found

    def _keep(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._add([line], ended=False)
        self._add([], ended=True)

    def _add(self, lines: list[str], *, ended: bool) -> None:
        with self._grown:
            self._lines += lines
            self._ended = ended
            self._grown.notify_all()


class Gatekeeper:
    """A running `gatekeeper serve`; with `certificates`, its clients speak TLS."""

    def __init__(
        self, process: subprocess.Popen[str], data_dir: Path, certificates: CertificateFolder | None = None
    ) -> None:
        assert process.stdout
        assert process.stderr
        self.process = process
        self.data_dir = data_dir
        self._certificates = certificates
        self.printed = Output(process.stdout)
        self.log = Output(process.stderr)
        serving = self.logged("serving")
        self.port = int(serving["port"])
        self.admin_port = int(serving.get("admin_port", self.port))
        self.health_port = int(serving["health_port"])
        self.ops_port = int(serving["ops_port"])

    def logged(self, event: str, **fields: object) -> dict[str, Any]:
        """The first log entry of this event with these fields; waits for it."""
        return self.log.first(lambda line: _matching(line, {"event": event, **fields}))

    @property
    def dsn(self) -> str:
        """The embedded database's."""
        return running_dsn(self.data_dir)

    def channel(self) -> grpc.Channel:
        """A connection of its own, which tries again soon when the server is away."""
        return self.connect(self.port)

    def connect(self, port: int) -> grpc.Channel:
        """The same by another port, such as that of a proxy."""
        return self._certificates.channel(port) if self._certificates else connect(port)

    @contextmanager
    def admin(self) -> Iterator[AdminServiceStub]:
        """A client who has logged in as the first admin, with the password that the first start kept."""
        password = (self.data_dir / "admin_password").read_text().strip()
        with self.connect(self.admin_port) as channel:
            issued = AuthServiceStub(channel).Login(
                LoginRequest(username="admin", password=password), timeout=TIMEOUT_S
            )
            yield AdminServiceStub(grpc.intercept_channel(channel, Bearer(issued.access_token)))

    def ends_within(self, limit_s: float) -> int:
        """Wait for its end, at most so long; returns the exit code."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs after {limit_s:g} s, and said:\n{self.log.text()}") from None

    def kill(self) -> None:
        """End it without any notice."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def resident_bytes(self) -> int:
        """Memory of the process that is in RAM."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (size,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(size) * 1024


@contextmanager
def serving(
    data_dir: Path, *options: str, program: Sequence[str] = ("gatekeeper_grpc",), **settings: str
) -> Iterator[Gatekeeper]:
    """Run `gatekeeper serve` on `data_dir` for the length of the block; it may end earlier. Settings are variables.

    It ends with the thread that has started it, however that ends.
    """
    with start("serve", *options, data_dir=data_dir, program=program, launcher=_ends_with_us(), **settings) as process:
        try:
            yield Gatekeeper(process, data_dir)
        finally:
            stop(process)
            assert eventually(lambda: not postgres_pids(data_dir) or "DATABASE_URL" in settings)


def start(
    *arguments: str,
    data_dir: Path,
    program: Sequence[str] = ("gatekeeper_grpc",),
    launcher: Sequence[str] = (),
    **settings: str,
) -> subprocess.Popen[str]:
    """Start a `gatekeeper` command.

    Args:
        arguments: Of the command.
        data_dir: Its data directory.
        program: The module (or ``-c`` and code) that runs it, with its arguments; or the path of a `gatekeeper`.
        launcher: A program that becomes the one whose command line follows its own, such as `with_files`.
        settings: Environment variables.
    """
    command = [*launcher, *_command_of(program), *arguments]
    environment = {**os.environ, **QUICK, "GATEKEEPER_DATA_DIR": str(data_dir), **settings}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _command_of(program: Sequence[str]) -> Sequence[str]:
    if Path(program[0]).is_absolute():
        return program
    return [sys.executable, *(["-m"] if program[0] != "-c" else []), *program]


def _ends_with_us() -> tuple[str, ...]:
    """A launcher: the process gets SIGINT when this one is killed, as the embedded PostgreSQL does."""
    identity = (str(each) for each in (os.getpid(), os.geteuid(), os.getegid()))
    return sys.executable, "-I", "-S", exec_stub.__file__, *identity


def with_files(soft: int, hard: int) -> tuple[str, ...]:
    """A launcher: so many files may be open, and the process may raise that to `hard`."""
    return "sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh"


def under(account: Account) -> tuple[str, ...]:
    """A launcher: the process runs under an account.

    `subprocess` has options for that, but then it forks where it usually starts processes with vfork: handlers of gRPC
    run, and the copy of a process whose threads make calls can crash before it becomes the program.
    """
    if account.is_ours:
        return ()
    return "setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"


def stop(process: subprocess.Popen[str]) -> None:
    """End a process the polite way, and the other way when it does not listen."""
    process.terminate()
    try:
        process.wait(TIMEOUT_S)
    finally:
        process.kill()


def run(*arguments: str, data_dir: Path, **settings: str) -> tuple[int, str, str]:
    """Run a `gatekeeper` command to its end; returns exit code, standard output and standard error."""
    with start(*arguments, data_dir=data_dir, **settings) as process:
        try:
            printed, complaints = process.communicate(timeout=START_TIMEOUT_S)
        finally:
            process.kill()
    return process.returncode, printed, complaints


def connect(port: int) -> grpc.Channel:
    """Open a connection that nothing shares, and that tries again soon when the server is away."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=options)


def copied(data_dir: Path, into: Path) -> Path:
    """Copy a data directory that nobody uses into a folder; returns the copy."""
    # With cp, because it keeps the account that owns the cluster.
    subprocess.run(["cp", "-a", data_dir, into], check=True)
    return into / data_dir.name


def postgres_pids(data_dir: Path) -> list[int]:
    """The processes of the embedded database, of any server process."""
    return Home(data_dir).postgres_pids()


def kill_postmaster(data_dir: Path) -> int:
    """End the embedded database's first process without any notice; returns which it was."""
    pid = int((Home(data_dir).cluster / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    return pid


@contextmanager
def hanging(pids: Callable[[], Iterable[int]]) -> Iterator[None]:
    """Let processes hang for the length of the block: those listed, and those that they started before they hung."""
    stopped: set[int] = set()
    try:
        while running := set(pids()) - stopped:
            _signal(running, signal.SIGSTOP)
            stopped |= running
        yield
    finally:
        _signal(stopped, signal.SIGCONT)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # A session may have ended since it was listed.
            os.kill(pid, number)


def _matching(line: str, fields: dict[str, object]) -> dict[str, Any] | None:
    if not line.startswith("{"):  # grpcio's core writes lines of its own.
        return None
    entry: dict[str, Any] = json.loads(line)
    return entry if fields.items() <= entry.items() else None
