"""On a full disk writes fail, evaluation continues, and nothing has to be repaired afterwards."""

import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from gatekeeper_client.v1.auth_service_pb2 import RefreshTokenRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from tests.faults.figures import BUSY_S, FAULT_S, RECOVERS_WITHIN_S
from tests.faults.fleet import fleet
from tests.faults.load import Editor, Load, Writer, at_work
from tests.faults.report import Report
from tests.faults.small_disk import exhaust_wal, small_disk
from tests.support.processes import TIMEOUT_S
from tests.support.records import chained_entries, flag_revisions
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B5")


def test_writes_are_refused_and_evaluation_goes_on_while_the_disk_is_full(
    prepared: Path, tmp_path: Path, report: Report
) -> None:
    with small_disk(prepared, tmp_path / "disk") as disk, fleet(disk, tmp_path) as instances:
        load = Load(instances.instances)
        writer = Writer(lambda: instances[0].admin, "writer")
        with at_work(load, writer), report.fault("B5", "disk full (a small tmpfs)", load) as row:
            disk.fill()
            time.sleep(FAULT_S / 3)
            disk.free()
            row.recovery_s = instances.recovered_s()
        row.also = f"{len(writer.acknowledged)} writes acknowledged, {writer.refused.total()} refused"
        kept, entries = flag_revisions(disk.dsn), chained_entries(disk.dsn)

    assert load.failed == {}, load.complaints
    assert writer.refused.keys() == {"UNAVAILABLE"}
    assert writer.acknowledged.items() <= kept.items()
    assert kept == {entry.resource_key: entry.revision for entry in entries}
    assert row.recovery_s < RECOVERS_WITHIN_S + BUSY_S


_ADMIN_ANSWERS_WITHIN_S = 2.0


def slowest_refresh_s(auth: AuthServiceStub, *, for_s: float) -> float:
    """Offer a refresh token again and again; returns how long the slowest answer took."""
    took_s, until = [0.0], time.monotonic() + for_s
    while time.monotonic() < until:
        began_at = time.monotonic()
        with suppress(grpc.RpcError):
            auth.RefreshToken(RefreshTokenRequest(refresh_token="unknown"), timeout=TIMEOUT_S)
        took_s.append(time.monotonic() - began_at)
        time.sleep(0.05)
    return max(took_s)


@pytest.mark.promise("F5")
def test_with_a_full_wal_each_call_is_answered_in_time(prepared: Path, tmp_path: Path, report: Report) -> None:
    with (
        small_disk(prepared, tmp_path / "disk") as disk,
        fleet(disk, tmp_path, size=1) as instances,
        instances[0].gatekeeper.channel() as channel,
    ):
        load = Load(instances.instances)
        editor = Editor(instances[0].admin, load.acknowledged)
        with at_work(load, editor), report.fault("B5 F5", "disk full, and the WAL as well", load) as row:
            disk.fill()
            exhaust_wal(disk.dsn)
            refresh_s = slowest_refresh_s(AuthServiceStub(channel), for_s=FAULT_S / 3)
            disk.free()
            row.recovery_s = instances.recovered_s()
        row.also = f"the slowest edit took {editor.slowest_s:.2f} s, the slowest refresh {refresh_s:.2f} s"

    assert load.failed == {}, load.complaints
    assert editor.refused
    assert max(editor.slowest_s, refresh_s) < _ADMIN_ANSWERS_WITHIN_S + BUSY_S


def test_twin_that_does_not_know_a_full_disk_calls_it_a_bug(prepared: Path, tmp_path: Path, report: Report) -> None:
    with (
        small_disk(prepared, tmp_path / "disk") as disk,
        fleet(disk, tmp_path, size=1, sabotage="untranslated_errors") as instances,
    ):
        writer = Writer(lambda: instances[0].admin, "writer")
        with at_work(writer):
            disk.fill()
            assert eventually(lambda: writer.refused)
            disk.free()

    assert "INTERNAL" in writer.refused
    report.twin("B5", "the table of database errors", "a full disk answered with INTERNAL")
