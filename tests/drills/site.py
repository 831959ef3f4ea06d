"""An installation to practise on: instances on a PostgreSQL server, their secrets in files, one erasure ledger."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGQUIT
from typing import Any

import grpc

from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsResponse
from gatekeeper_grpc.domain.caller import Role
from tests.faults.load import Load, at_work
from tests.faults.retrying import OneTry
from tests.support.processes import KEYS, Gatekeeper, connect, serving
from tests.support.replication import Node
from tests.support.scram import replace
from tests.support.servers import Bearer, token_for
from tests.support.waiting import eventually

# What a data directory brings along wherever it is copied to; the processes are killed, never the machine.
_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
shared_buffers = '16MB'
wal_retrieve_retry_interval = '100ms'
"""


def configured(node: Node) -> Node:
    """Make a cluster whose copies run on loopback alone."""
    node.init()
    with (node.data_dir / "postgresql.conf").open("a") as file:
        file.write(_CONFIGURATION)
    return node


def end_server(data_dir: Path) -> None:
    """End a server that the commands of a page have started."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int((data_dir / "postmaster.pid").read_text().split()[0])
        os.kill(pid, SIGQUIT)
        eventually(lambda: not Path(f"/proc/{pid}").exists())


@dataclass(kw_only=True)
class Site:
    """Instances of one installation."""

    folder: Path
    url: str
    token: str
    """An access token of an admin user with the role admin."""
    stack: ExitStack
    in_files: bool = True
    """Whether secrets are in files, and not in the environment, as releases need that cannot read such files."""
    instances: list[Gatekeeper] = field(default_factory=list)

    @property
    def secrets(self) -> Path:
        """Where the files of secrets are."""
        return self.folder / "secrets"

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of every instance, without the database."""
        return {**self._keep(KEYS), "GATEKEEPER_ERASURE_LEDGER": str(self.folder / "erasures")}

    @property
    def url_file(self) -> Path:
        """Has the URL of the database."""
        return self.secrets / "DATABASE_URL"

    def start(self, **options: Any) -> Gatekeeper:
        """Start another instance; `options` are those of `serving`. It serves when this returns."""
        data_dir = self.folder / f"instance-{len(self.instances)}"
        self.instances.append(self.serve(data_dir, **options))
        return self.instances[-1]

    def serve(self, data_dir: Path, **options: Any) -> Gatekeeper:
        """Start an instance on a data directory, which may be that of one that has ended."""
        process = serving(data_dir, **{**self.settings, **self._keep({"DATABASE_URL": self.url}), **options})
        return self.stack.enter_context(process)

    def admin(self, instance: int = 0) -> AdminServiceStub:
        """A client of AdminService."""
        channel = self.stack.enter_context(connect(self.instances[instance].port))
        return AdminServiceStub(grpc.intercept_channel(channel, Bearer(self.token)))

    def _keep(self, secrets: Mapping[str, str]) -> Mapping[str, str]:
        """Return the variables that hand over secrets."""
        return {f"{name}_FILE": str(self.secrets / name) for name in secrets} if self.in_files else secrets

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluate on every instance for the length of the block; no evaluation may fail."""
        with ExitStack() as stack:
            clients = [stack.enter_context(closing(OneTry(instance.port))) for instance in self.instances]
            load = Load(clients)
            with at_work(load):
                yield
        assert load.sent > 0
        assert load.failed == {}, load.complaints


@contextmanager
def running_site(
    folder: Path, url: str, *, owner_url: str = "", instances: int = 2, in_files: bool = True
) -> Iterator[Site]:
    """Run an installation on a migrated database for the length of the block.

    Args:
        folder: Does not exist yet.
        url: The database, as instances use it.
        owner_url: The same as its owner, if that is another role.
        instances: How many to start.
        in_files: As for `Site`.
    """
    (folder / "secrets").mkdir(parents=True)
    for name, content in {**KEYS, "DATABASE_URL": url}.items():
        replace(folder / "secrets" / name, content)
    with ExitStack() as stack:
        token = token_for(owner_url or url, Role.ADMIN)
        site = Site(folder=folder, url=url, token=token, stack=stack, in_files=in_files)
        for _ in range(instances):
            site.start()
        yield site


def evaluated(instance: Gatekeeper) -> EvaluateFlagsResponse:
    """Ask an instance for all flags, once."""
    with closing(OneTry(instance.port)) as client:
        return client.evaluate()
