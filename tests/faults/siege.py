"""A server that is attacked while victims call it, and what the two sides saw."""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psycopg

from gatekeeper_client.v1.admin_service_pb2 import CreateAdminUserRequest, CreateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_EDITOR, ROLE_VIEWER, AdminUser
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.attacks import READY
from tests.faults.figures import ATTACK_S, BUSY_S, RECOVERS_WITHIN_S
from tests.faults.http2 import NEVER_BEGUN
from tests.faults.small_disk import exhaust_wal, fill
from tests.faults.victims import FLAG, PASSWORD, Victims, victims
from tests.support.processes import KEYS, TIMEOUT_S, Gatekeeper, start, stop
from tests.support.servers import Bearer, access_token
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually

EDITORS = 12
OTHER_BYTES = 16 << 20
"""For the interpreter, the allocator and the victims' calls."""

_RAMP_S = 1.0
_WARM_UP_S = 4.0
_SAMPLE_S = 0.1
_ALLOWANCE_S = BUSY_S - 1.5


def _no_fault(_siege: "Siege") -> AbstractContextManager[None]:
    return nullcontext()


def _directly(_folder: Path) -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """An attack, and what it may come to."""

    what: str
    promise: str = "C1"
    attack: str
    """One of `attacks`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The attack's; what is a function is given the siege."""
    fault: Callable[["Siege"], AbstractContextManager[None]] = _no_fault
    """What is broken during the attack."""
    launcher: Callable[[Path], Sequence[str]] = _directly
    """What starts the server's process."""
    tls: bool = False
    """Whether the server, its victims and the attacker speak TLS."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Kinds of victims' calls that may be refused within two seconds instead, and what the refusal says."""
    bytes: int = 0
    """How much memory the attack may take, in addition to `OTHER_BYTES`."""
    attacker_waits_s: float | None = None
    """How long the attacker's calls take at most until they are refused."""
    tells_when: bool = True
    """Whether each RESOURCE_EXHAUSTED that the attacker gets has a RetryInfo."""
    sabotage: str = ""
    """One of `sabotaged`: the mitigation that the twin lacks. Without one there is no twin."""
    twin: str = ""
    """Which that is, in words."""
    violated: frozenset[str] = frozenset()
    """What the twin violates, as `Attacked.violations` names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """What an attack came to."""

    suite: Suite
    victims: Victims
    attacker: Mapping[str, Any]
    """What the attacker saw, as `tests.faults.attacks` prints it."""
    grown_bytes: int
    """How much memory the server had at most, beyond what it had before."""
    recovered_s: float
    """How long it took after the attack until a change was made."""

    def violations(self) -> dict[str, object]:
        """Name what was not as promised: kinds of victims' calls; words, memory, time, RetryInfo and recovery."""
        suite, codes = self.suite, self.attacker["codes"]
        found: dict[str, object] = {**self.victims.unserved(refused=suite.refused)}
        if untold := self.victims.untold() + self._attacker_untold():
            found["words"] = untold
        if self.grown_bytes > suite.bytes + OTHER_BYTES:
            found["memory"] = f"{self.grown_bytes >> 20} MiB"
        if suite.attacker_waits_s and (late := self._late_refusals(suite.attacker_waits_s + _ALLOWANCE_S)):
            found["time"] = late
        if suite.tells_when and self.attacker["retry_info"] < codes.get("RESOURCE_EXHAUSTED", 0):
            found["RetryInfo"] = self.attacker["retry_info"]
        if self.recovered_s > RECOVERS_WITHIN_S + BUSY_S:
            found["recovery"] = self.recovered_s
        return found

    def _attacker_untold(self) -> list[str]:
        """Name what the attacker was not told in words, CANCELLED among it; a call that never began needs none."""
        words = self.attacker["in_words"]
        failed = {code: n for code, n in self.attacker["codes"].items() if code not in {"OK", NEVER_BEGUN}}
        untold = {code: n for code, n in failed.items() if code == "CANCELLED" or words.get(code, 0) < n}
        return [f"{count} x {code}" for code, count in untold.items()]

    def _late_refusals(self, within_s: float) -> dict[str, float]:
        return {code: s for code, s in self.attacker["slowest_s"].items() if code != "OK" and s > within_s}

    def __str__(self) -> str:
        ended = ", ".join(f"{count:,} {code}" for code, count in self.attacker["codes"].items())
        lost = sum(self.attacker["losses"].values())
        return (
            f"served: {self.victims}; the attacker's calls: {ended or 'none ended'}"
            + (f", {lost:,} connections lost" if lost else "")
            + f"; +{self.grown_bytes >> 20} MiB"
        )


class Siege:
    """A server with an embedded database, an admin user for victims to log in as, and a flag to import targets into."""

    def __init__(self, server: Gatekeeper) -> None:
        self.server = server
        self.admin_token = access_token(server.dsn, "admin")
        with self.admin() as admin:
            admin.CreateFlag(CreateFlagRequest(flag=Flag(key=FLAG, enabled=True)), timeout=TIMEOUT_S)
        self._create_admin_user("victim", ROLE_VIEWER)

    @contextmanager
    def admin(self) -> Iterator[AdminServiceStub]:
        """A client with the token of the first admin."""
        with self.server.channel() as channel:
            yield AdminServiceStub(grpc.intercept_channel(channel, Bearer(self.admin_token)))

    def viewer_token(self) -> str:
        """An access token of a viewer."""
        return access_token(self.server.dsn, "victim")

    def editor_tokens(self) -> str:
        """Access tokens of editors, as `attacks.edit` wants them."""
        names = [f"editor-{number}" for number in range(EDITORS)]
        for name in names:
            self._create_admin_user(name, ROLE_EDITOR)
        return ",".join(access_token(self.server.dsn, name) for name in names)

    @contextmanager
    def head_locked(self) -> Iterator[None]:
        """Another session holds the lock that all changes need, for the length of the block."""
        with psycopg.connect(self.server.dsn, application_name="psql") as conn:
            conn.execute("SELECT FROM revision_head FOR UPDATE")
            yield
            conn.rollback()

    @contextmanager
    def disk_full(self) -> Iterator[None]:
        """The disk of the data directory is full for the length of the block."""
        ballast = self.server.data_dir / "ballast"
        fill(ballast)
        try:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def wal_full(self) -> Iterator[None]:
        """The disk is full, and the WAL that the database has is as well."""
        with self.disk_full():
            exhaust_wal(self.server.dsn)
            yield

    def attacked(self, suite: Suite, *, for_s: float = ATTACK_S) -> Attacked:
        """Attack, and let victims call once the attack is under way."""
        options = {name: value(self) if callable(value) else value for name, value in suite.options.items()}
        options |= {"tls": 1} if suite.tls else {}
        self._warm_up()
        memory = _Memory(self.server)
        with (
            self._victims() as calling,
            _attack(self.server.port, suite.attack, _RAMP_S + for_s, options) as attack,
            memory,
        ):
            assert attack.stdout
            assert attack.stdout.readline().strip() == READY
            time.sleep(_RAMP_S)
            with suite.fault(self):
                calling.start()
                time.sleep(for_s)
                calling.close()
            ended_at = time.monotonic()
            recovered_s = time.monotonic() - ended_at if eventually(self._accepts_changes) else math.inf
            printed, complaints = attack.communicate(timeout=for_s + TIMEOUT_S)
        assert attack.returncode == 0, complaints
        return Attacked(
            suite=suite,
            victims=calling,
            attacker=json.loads(printed),
            grown_bytes=memory.grown_bytes,
            recovered_s=recovered_s,
        )

    def _warm_up(self) -> None:
        """Let victims call in peace: the first calls of each kind cost memory that no attack takes."""
        with self._victims() as calling:
            calling.start()
            time.sleep(_WARM_UP_S)

    def _victims(self) -> AbstractContextManager[Victims]:
        server = self.server
        return victims(server.port, self.admin_token, connect=server.connect, allowance_s=_ALLOWANCE_S)

    def _create_admin_user(self, name: str, role: int) -> None:
        user = AdminUser(username=name, role=role, enabled=True)  # type: ignore[arg-type] # An enum of the stubs.
        with self.admin() as admin:
            admin.CreateAdminUser(CreateAdminUserRequest(admin_user=user, password=PASSWORD), timeout=TIMEOUT_S)

    def _accepts_changes(self) -> bool:
        with self.admin() as admin, suppress(grpc.RpcError):
            admin.CreateFlag(CreateFlagRequest(flag=Flag(key=f"after-{time.monotonic_ns()}")), timeout=TIMEOUT_S)
            return True
        return False


@contextmanager
def siege(suite: Suite, folder: Path, *, sabotage: str = "") -> Iterator[Siege]:
    """Run a server for the length of the block; `sabotage` is one of `sabotaged`'s."""
    program = ("tests.faults.sabotaged", sabotage) if sabotage else ("gatekeeper_grpc",)
    data_dir = folder / "disk" / "data"
    data_dir.parent.mkdir()
    certificates = CertificateFolder(folder) if suite.tls else None
    settings = {**KEYS, **(certificates.variables if certificates else {})}
    with start(
        "serve", data_dir=data_dir, launcher=suite.launcher(data_dir.parent), program=program, **settings
    ) as process:
        try:
            # As the server sees it: it may have a disk of its own there.
            yield Siege(Gatekeeper(process, Path(f"/proc/{process.pid}/root{data_dir}"), certificates))
        finally:
            stop(process)


class _Memory:
    """Watches the memory of a server for the length of the block."""

    def __init__(self, server: Gatekeeper) -> None:
        self._server = server
        self._before = server.resident_bytes()
        self._most = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory")

    @property
    def grown_bytes(self) -> int:
        return max(0, self._most - self._before)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exc: object) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT_S)

    def _watch(self) -> None:
        while not self._stopping.wait(_SAMPLE_S):
            self._most = max(self._most, self._server.resident_bytes())


@contextmanager
def _attack(port: int, name: str, for_s: float, options: Mapping[str, object]) -> Iterator[subprocess.Popen[str]]:
    given = [f"{option}={value}" for option, value in options.items()]
    command = [sys.executable, "-m", "tests.faults.attacks", name, str(port), str(for_s), *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
