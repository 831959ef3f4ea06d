"""A held background task delays nothing that must happen in time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_SIGNING, RATE_TIER_HIGH, ClientKey
from gatekeeper_grpc.auth import credential_refresh
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.scheduler import Scheduler
from gatekeeper_grpc.store.maintenance import Maintenance
from tests.support.clients import TIMEOUT_S
from tests.support.servers import StartServer, connect, token_for
from tests.support.waiting import eventually

# Twenty times the interval at which an instance looks for changed credentials, for a busy machine.
REVOKED_WITHIN_S = 10.0
HELD_S = 30.0


@pytest.fixture(autouse=True)
def maintenance_is_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """Every maintenance run takes 30 s, or until the end of the test; each releases the semaphore when it begins."""
    began, over = threading.Semaphore(0), threading.Event()

    def run(_: Maintenance) -> None:
        began.release()
        over.wait(HELD_S)

    monkeypatch.setattr(Maintenance, "run", run)
    yield began
    over.set()


class OnHeldScheduler:
    """Client keys as a task on the thread of a scheduler, which maintenance holds."""

    def __init__(self, name: str, task: Callable[[], object], *, interval_s: float, **_: object) -> None:
        self._scheduler = Scheduler()
        self._add = partial(self._scheduler.add, name, task, interval_s=interval_s, blocks=False)
        self._task = task

    def start(self) -> None:
        self._task()
        self._scheduler.start()
        held: Any = Maintenance  # the patched class: its `run` needs no instance
        self._scheduler.add("maintenance", partial(held.run, None), interval_s=HELD_S, blocks=False)
        self._add()

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self._scheduler.close(timeout_s=0.0)


@contextmanager
def revoked_elsewhere(start_server: StartServer, dsn: str, began: threading.Semaphore) -> Iterator[Callable[[], bool]]:
    """Revoke a key on one of two instances; yields whether the other one still accepts it."""
    here, elsewhere = start_server(), start_server()
    assert all(began.acquire(timeout=TIMEOUT_S) for _ in (here, elsewhere))
    with connect(elsewhere, token=token_for(dsn, Role.ADMIN)) as channel:
        admin = AdminServiceStub(channel)
        key = ClientKey(name="till", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING)
        created = admin.CreateClientKey(pb.CreateClientKeyRequest(client_key=key), timeout=TIMEOUT_S)
        key_id = created.client_key.key_id
        here.client_keys.refresh()
        assert accepts(here, key_id)
        admin.RevokeClientKey(pb.RevokeClientKeyRequest(key_id=key_id), timeout=TIMEOUT_S)
        yield lambda: accepts(here, key_id)


def accepts(server: GatekeeperServer, key_id: str) -> bool:
    return server.client_keys.find(key_id) is not None


@pytest.mark.promise("D7")
def test_held_maintenance_does_not_delay_the_revocation_of_a_key(
    start_server: StartServer, dsn: str, maintenance_is_held: threading.Semaphore
) -> None:
    with revoked_elsewhere(start_server, dsn, maintenance_is_held) as is_accepted:
        assert eventually(lambda: not is_accepted(), timeout_s=REVOKED_WITHIN_S)


def test_twin_on_a_held_scheduler_the_revocation_does_not_arrive(
    start_server: StartServer, dsn: str, maintenance_is_held: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential_refresh, "RepeatingThread", OnHeldScheduler)
    with revoked_elsewhere(start_server, dsn, maintenance_is_held) as is_accepted:
        assert not eventually(lambda: not is_accepted(), timeout_s=1.0)
