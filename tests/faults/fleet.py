"""Several real `gatekeeper serve` processes on one database, each with a network to it that can be broken."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import grpc

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, EvaluateFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.figures import EVALUATION_DEADLINE_S
from tests.faults.proxy import ChaosProxy, Mode
from tests.support.processes import KEYS, TIMEOUT_S, Gatekeeper, start, stop
from tests.support.servers import Bearer
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually

Process = subprocess.Popen[str]

ALICE = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_numbers = count()


@dataclass(frozen=True, slots=True)
class Route:
    """A way to a database, and the network on it, if it can be broken."""

    url: str
    network: ChaosProxy | None = None


class Database(Protocol):
    """Something that a fleet can work on."""

    def token(self) -> str:
        """Return an access token that its admin service takes."""
        ...

    def route(self) -> AbstractContextManager[Route]:
        """Make a way to it for the length of the block."""
        ...


@dataclass(frozen=True, slots=True)
class Instance:
    """One process, its way to the database, and clients of it."""

    gatekeeper: Gatekeeper
    route: Route
    admin: AdminServiceStub
    evaluation: EvaluationServiceStub

    @property
    def name(self) -> str:
        """Names this process, and no later one in its index."""
        return f"process {self.gatekeeper.process.pid}"

    def evaluate(self) -> EvaluateFlagsResponse:
        """Ask for all flags."""
        return self.evaluation.EvaluateFlags(ALICE, timeout=EVALUATION_DEADLINE_S)

    def write(self, *, within_s: float = TIMEOUT_S) -> int:
        """Create a flag that nobody has created before; returns the revision."""
        request = CreateFlagRequest(flag=Flag(key=f"written-{next(_numbers)}"))
        return self.admin.CreateFlag(request, timeout=within_s).revision

    def accepts_writes(self, *, within_s: float = TIMEOUT_S) -> bool:
        """Write, and tell whether that was acknowledged."""
        try:
            return self.write(within_s=within_s) > 0
        except grpc.RpcError:
            return False

    def shows(self, revision: int) -> bool:
        """Whether it answers with this revision or a later one, and vouches for it."""
        answer = self.evaluate()
        return answer.revision >= revision and not answer.stale


class Fleet:
    """Instances on one database, with `settings`, as variables; `sabotage` is one of `sabotaged`'s."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        *,
        sabotage: str,
        settings: Mapping[str, str],
        certificates: CertificateFolder | None,
    ) -> None:
        self._database = database
        self.instances: list[Instance] = []
        self._folder = folder
        self._program = ("tests.faults.sabotaged", sabotage) if sabotage else ("gatekeeper_grpc",)
        self._certificates = certificates
        self._settings = {**KEYS, **settings, **(certificates.variables if certificates else {})}
        self.token = database.token()
        """Of an editor or admin, for clients of the test's own."""
        self._stack = ExitStack()

    def __getitem__(self, index: int) -> Instance:
        return self.instances[index]

    def start(self, size: int) -> None:
        """Start so many instances side by side; returns when they serve."""
        routes = [self._stack.enter_context(self._database.route()) for _ in range(size)]
        processes = [self._launch(index, route) for index, route in enumerate(routes)]
        self.instances += map(self._joined, range(size), processes, routes)

    def restart(self, index: int) -> None:
        """Start an instance again that has ended: with its data directory, its network and its port."""
        ended = self.instances[index]
        process = self._launch(index, ended.route, GATEKEEPER_LISTEN=f"127.0.0.1:{ended.gatekeeper.port}")
        self.instances[index] = self._joined(index, process, ended.route)

    def close(self) -> None:
        """Stop all instances and what belongs to them."""
        self._stack.close()

    @contextmanager
    def network(self, mode: Mode, *, latency_s: float = 0.0) -> Iterator[None]:
        """Break the network between all instances and the database for the length of the block."""
        with ExitStack() as stack:
            for instance in self.instances:
                assert instance.route.network
                stack.enter_context(instance.route.network.broken(mode, latency_s=latency_s))
            yield

    def recovered_s(self) -> float:
        """How long it takes from now until every instance accepts writes, and shows those of all others."""
        began = time.monotonic()
        assert all(eventually(instance.accepts_writes) for instance in self.instances)
        newest = self.instances[0].write()
        assert all(eventually(partial(instance.shows, newest)) for instance in self.instances)
        return time.monotonic() - began

    def data_dir(self, index: int) -> Path:
        """The data directory of an instance."""
        return self._folder / f"instance-{index}"

    def _launch(self, index: int, route: Route, **others: str) -> Process:
        settings = {"DATABASE_URL": route.url, **self._settings, **others}
        process = start("serve", data_dir=self.data_dir(index), program=self._program, **settings)
        self._stack.enter_context(process)
        self._stack.callback(stop, process)
        return process

    def _joined(self, index: int, process: Process, route: Route) -> Instance:
        gatekeeper = Gatekeeper(process, self.data_dir(index), self._certificates)
        channel = self._stack.enter_context(gatekeeper.channel())
        admin = AdminServiceStub(grpc.intercept_channel(channel, Bearer(self.token)))
        return Instance(gatekeeper, route, admin, EvaluationServiceStub(channel))


@contextmanager
def fleet(
    database: Database,
    folder: Path,
    *,
    size: int = 3,
    sabotage: str = "",
    settings: Mapping[str, str] = _NO_SETTINGS,
    certificates: CertificateFolder | None = None,
) -> Iterator[Fleet]:
    """Run a fleet for the length of the block; with `certificates`, by TLS."""
    started = Fleet(database, folder, sabotage=sabotage, settings=settings, certificates=certificates)
    try:
        started.start(size)
        yield started
    finally:
        started.close()
