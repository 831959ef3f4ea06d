"""A write is acknowledged only when the instance that answers shows it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest, CreateFlagResponse
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.cache.refresher import Refresher
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore

TIMEOUT_S = 60.0
# The wait for a refresh was bounded by this.
BOUND_S = 2.0


@contextmanager
def slow_refresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold every refresh until the event that this yields is set, as a busy machine does."""
    may_load, load_delta = threading.Event(), SnapshotStore.load_delta

    def held(store: SnapshotStore, base: Snapshot) -> Snapshot | None:
        assert may_load.wait(TIMEOUT_S)
        return load_delta(store, base)

    monkeypatch.setattr(SnapshotStore, "load_delta", held)
    try:
        yield may_load
    finally:
        may_load.set()


def create(admin: AdminServiceStub) -> CreateFlagResponse:
    return admin.CreateFlag(CreateFlagRequest(flag=Flag(key="slow")), timeout=TIMEOUT_S)


def test_a_write_waits_for_its_refresh_longer_than_two_seconds(
    admin: AdminServiceStub, server: GatekeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_refresh(monkeypatch) as may_load, ThreadPoolExecutor(1) as editor:
        answer = editor.submit(create, admin)
        with pytest.raises(TimeoutError):
            answer.result(timeout=BOUND_S + 0.5)
        may_load.set()

        acknowledged = answer.result().revision
        assert server.cache.current().revision >= acknowledged


def test_twin_with_a_bounded_wait_it_is_acknowledged_unseen(
    admin: AdminServiceStub, server: GatekeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bounded(refresher: Refresher, revision: int) -> None:
        refresher._cache.wait_for_revision(revision, timeout_s=BOUND_S)

    monkeypatch.setattr(Refresher, "refresh_after_write", bounded)
    with slow_refresh(monkeypatch):
        acknowledged = create(admin).revision

        assert server.cache.current().revision < acknowledged
