"""A server that is attacked while victims call it, and what the two sides saw."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gatekeeper_client.v1.admin_service_pb2 import CreateAdminUserRequest, CreateFlagRequest
from gatekeeper_client.v1.admin_user_pb2 import ROLE_VIEWER, AdminUser
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.figures import ATTACK_S, BUSY_S
from tests.faults.http2 import NEVER_BEGUN
from tests.faults.victims import FLAG, PASSWORD, Victims, victims
from tests.support.processes import KEYS, TIMEOUT_S, Gatekeeper, start, stop
from tests.support.servers import access_token

_RAMP_S = 1.0
_WARM_UP_S = 4.0
_SAMPLE_S = 0.1
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """What an attack came to."""

    victims: Victims
    attacker: Mapping[str, Any]
    """What the attacker saw, as `tests.faults.attacks` prints it."""
    grown_bytes: int
    """How much memory the server had at most, beyond what it had before."""

    @property
    def codes(self) -> Mapping[str, int]:
        """How the attacker's calls ended."""
        codes: Mapping[str, int] = self.attacker["codes"]
        return codes

    def untold(self) -> list[str]:
        """Name what the attacker was not told in words, CANCELLED among it; a call that never began needs none."""
        words = self.attacker["in_words"]
        failed = {code: count for code, count in self.codes.items() if code not in {"OK", NEVER_BEGUN}}
        untold = {code: count for code, count in failed.items() if code == "CANCELLED" or words.get(code, 0) < count}
        return [f"{count} x {code}" for code, count in untold.items()]

    @property
    def told_when(self) -> int:
        """How many refusals said when to come back."""
        told: int = self.attacker["retry_info"]
        return told

    def __str__(self) -> str:
        ended = ", ".join(f"{count:,} {code}" for code, count in self.codes.items())
        return f"served: {self.victims}; the attacker's calls: {ended or 'none ended'}; +{self.grown_bytes >> 20} MiB"


class Siege:
    """A server with an embedded database, an admin user for victims to log in as, and a flag to import targets into."""

    def __init__(self, server: Gatekeeper) -> None:
        self.server = server
        self.admin_token = access_token(server.dsn, "admin")
        with server.admin() as admin:
            admin.CreateFlag(CreateFlagRequest(flag=Flag(key=FLAG, enabled=True)), timeout=TIMEOUT_S)
            victim = CreateAdminUserRequest(
                admin_user=AdminUser(username="victim", role=ROLE_VIEWER, enabled=True), password=PASSWORD
            )
            admin.CreateAdminUser(victim, timeout=TIMEOUT_S)

    def viewer_token(self) -> str:
        """An access token of a viewer."""
        return access_token(self.server.dsn, "victim")

    def attacked(self, name: str, *, for_s: float = ATTACK_S, **options: object) -> Attacked:
        """Attack, and let victims call once the attack is under way."""
        self._warm_up()
        memory = _Memory(self.server)
        with (
            victims(self.server.port, self.admin_token, allowance_s=BUSY_S - 1.5) as calling,
            _attack(self.server.port, name, _RAMP_S + for_s, **options) as attack,
            memory,
        ):
            time.sleep(_RAMP_S)
            calling.start()
            time.sleep(for_s)
            printed, complaints = attack.communicate(timeout=for_s + TIMEOUT_S)
        assert attack.returncode == 0, complaints
        return Attacked(victims=calling, attacker=json.loads(printed), grown_bytes=memory.grown_bytes)

    def _warm_up(self) -> None:
        """Let victims call in peace: the first calls of each kind cost memory that no attack takes."""
        with victims(self.server.port, self.admin_token, allowance_s=BUSY_S - 1.5) as calling:
            calling.start()
            time.sleep(_WARM_UP_S)


@contextmanager
def siege(data_dir: Path, *, sabotage: str = "", settings: Mapping[str, str] = _NO_SETTINGS) -> Iterator[Siege]:
    """Run a server for the length of the block; `sabotage` is one of `sabotaged`'s."""
    program = ("tests.faults.sabotaged", sabotage) if sabotage else ("gatekeeper_grpc",)
    with start("serve", data_dir=data_dir, program=program, **{**KEYS, **settings}) as process:
        try:
            yield Siege(Gatekeeper(process, data_dir))
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
def _attack(port: int, name: str, for_s: float, **options: object) -> Iterator[subprocess.Popen[str]]:
    given = [f"{option}={value}" for option, value in options.items()]
    command = [sys.executable, "-m", "tests.faults.attacks", name, str(port), str(for_s), *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
