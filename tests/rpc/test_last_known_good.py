"""The stored snapshot and the database: a start detects commits that the database has lost."""

from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.cache.refresher import Refresher
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from tests.support.clients import send
from tests.support.servers import StartServer, connect, token_for
from tests.support.traces import query
from tests.support.waiting import eventually


def set_back_between_starts(start_server: StartServer, dsn: str, file: Path) -> int:
    """Store revision 2, let the database lose it, and start again; returns the head revision at the end."""
    first = start_server(snapshot_file=file)
    with connect(first, token=token_for(dsn, Role.EDITOR)) as channel:
        for key in ("one", "two"):
            send(AdminServiceStub(channel), "CreateFlag", pb.CreateFlagRequest(flag=Flag(key=key)))
    first.stop()
    with psycopg.connect(dsn) as conn:
        conn.execute("UPDATE revision_head SET revision = 1")
    second = start_server(snapshot_file=file, refresh_interval_s=0.05)
    eventually(lambda: second.cache.current().revision >= REVISIONS_PER_EPOCH, timeout_s=6.0)
    ((head,),) = query(dsn, "SELECT revision FROM revision_head")
    return int(head)


def test_commits_lost_while_nobody_ran_are_noticed_by_the_stored_snapshot(
    start_server: StartServer, dsn: str, tmp_path: Path
) -> None:
    with capture_logs() as logs:
        head = set_back_between_starts(start_server, dsn, tmp_path / "snapshot")

    assert head == REVISIONS_PER_EPOCH
    assert [log["revision"] for log in logs if log["event"] == "epoch_begun"] == [REVISIONS_PER_EPOCH]


def test_twin_without_the_check_revisions_are_issued_twice(
    start_server: StartServer, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refresher, "expect", lambda *_: None)

    assert set_back_between_starts(start_server, dsn, tmp_path / "snapshot") == 1
