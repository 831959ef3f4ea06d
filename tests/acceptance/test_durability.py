"""An acknowledged write survives kill -9 of the server and of PostgreSQL, together with its audit entry."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.processes import TIMEOUT_S, Gatekeeper, kill_postmaster, serving
from tests.support.records import chained_entries, flag_revisions
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("A1")

ROUNDS = 3
WRITERS = 4
# Acknowledged in each round, by each writer, before the kill.
WRITES = 5


class Writer:
    """Creates one flag after another; the flag of a call that failed may or may not be there."""

    def __init__(self, admin: AdminServiceStub, name: str) -> None:
        self.acknowledged: dict[str, int] = {}
        self.refusals: list[grpc.StatusCode] = []
        self._admin = admin
        self._name = name

    def write(self, number: int) -> None:
        flag = Flag(key=f"{self._name}-{number}")
        try:
            response = self._admin.CreateFlag(CreateFlagRequest(flag=flag), timeout=TIMEOUT_S)
        except grpc.RpcError as refused:
            self.refusals.append(refused.code())
        else:
            self.acknowledged[flag.key] = response.revision


@contextmanager
def writing(gatekeeper: Gatekeeper, name: str) -> Iterator[list[Writer]]:
    """Write from several threads at once for the length of the block."""
    stopping = threading.Event()
    with gatekeeper.admin() as admin:
        writers = [Writer(admin, f"{name}-{number}") for number in range(WRITERS)]
        threads = [threading.Thread(target=write_until, args=(stopping, writer)) for writer in writers]
        for thread in threads:
            thread.start()
        try:
            yield writers
        finally:
            stopping.set()
            for thread in threads:
                thread.join(TIMEOUT_S)


def write_until(stopping: threading.Event, writer: Writer) -> None:
    number = 0
    while not stopping.is_set():
        writer.write(number)
        number += 1


def wait_until_all_wrote(writers: list[Writer]) -> None:
    """Wait until each writer got so many more acknowledgements."""
    wanted = [len(writer.acknowledged) + WRITES for writer in writers]
    assert eventually(lambda: all(len(writer.acknowledged) >= n for writer, n in zip(writers, wanted, strict=True))), [
        writer.refusals for writer in writers
    ]


def assert_kept(dsn: str, acknowledged: dict[str, int]) -> None:
    """Every acknowledged write is there, and what is there is exactly what the audit log says."""
    flags = flag_revisions(dsn)
    assert acknowledged.items() <= flags.items()
    assert flags == {entry.resource_key: entry.revision for entry in chained_entries(dsn)}


def test_acknowledged_writes_and_audit_entries_survive_a_killed_server(data_dir: Path) -> None:
    acknowledged: dict[str, int] = {}
    for number in range(ROUNDS):
        with serving(data_dir) as gatekeeper, writing(gatekeeper, f"round-{number}") as writers:
            wait_until_all_wrote(writers)
            gatekeeper.kill()
        for writer in writers:
            acknowledged |= writer.acknowledged
    with serving(data_dir) as restarted:
        assert len(acknowledged) >= ROUNDS * WRITERS * WRITES
        assert_kept(restarted.dsn, acknowledged)


def test_acknowledged_writes_survive_a_killed_postgres(gatekeeper: Gatekeeper) -> None:
    with writing(gatekeeper, "writer") as writers:
        wait_until_all_wrote(writers)
        for _ in range(ROUNDS):
            killed = kill_postmaster(gatekeeper.data_dir)
            gatekeeper.logged("embedded_postgres_died", pid=killed)
            wait_until_all_wrote(writers)
    # A writer that is between two writes notices nothing, and the others are told to call again.
    assert {code for writer in writers for code in writer.refusals} <= {grpc.StatusCode.UNAVAILABLE}
    assert_kept(gatekeeper.dsn, {key: at for writer in writers for key, at in writer.acknowledged.items()})
