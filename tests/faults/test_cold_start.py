"""A fleet started without its database serves the last-known-good snapshot as stale, and recovers by itself."""

import json
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.faults.figures import BUSY_S, COLD_START_ANSWERS_WITHIN_S, FAULT_S, RECOVERS_WITHIN_S
from tests.faults.fleet import Fleet, Instance, fleet
from tests.faults.load import Load, at_work
from tests.faults.postgres import Postgres
from tests.faults.report import Report
from tests.support.processes import KEYS, run
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B4")

KEPT = "snapshot"


def readiness(instance: Instance) -> dict[str, Any]:
    """What `GET /readyz` says, and with which status."""
    connection = HTTPConnection("127.0.0.1", instance.gatekeeper.ops_port, timeout=5.0)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return {"status": response.status, **json.loads(response.read())}
    finally:
        connection.close()


def refusal(instance: Instance) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        instance.write()
    return str(refused.value.code().name)


def stop_all(instances: Fleet) -> None:
    """End all instances, and then the database under them."""
    for instance in instances.instances:
        instance.gatekeeper.process.terminate()
    for instance in instances.instances:
        instance.gatekeeper.process.wait()


def restart_all(instances: Fleet) -> Sequence[float]:
    """Start all instances again, one after the other; how long each takes until it has answered."""
    return [restart(instances, index) for index in range(len(instances.instances))]


def restart(instances: Fleet, index: int) -> float:
    began = time.monotonic()
    instances.restart(index)
    instances[index].evaluate()
    return time.monotonic() - began


def test_cold_start_without_database_serves_stale_and_recovers_by_itself(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=2) as instances:
        newest = instances[0].write()
        assert eventually(lambda: all(instance.shows(newest) for instance in instances.instances))
        stop_all(instances)
        postgres.stop()
        with report.fault("B4", "cold start without database") as row:
            took_s = restart_all(instances)
            load = Load(instances.instances)
            with at_work(load):
                known = [instance.evaluate() for instance in instances.instances]
                ready = [readiness(instance) for instance in instances.instances]
                refused = {refusal(instance) for instance in instances.instances}
                time.sleep(FAULT_S / 6)
                postgres.start()
                row.recovery_s = instances.recovered_s()
            row.sent, row.failed = load.sent, load.failed.total()
            row.also = f"first answer {max(took_s):.1f} s after the start, at the latest"
        fresh = [readiness(instance) for instance in instances.instances]

    assert all((answer.revision, answer.stale) == (newest, True) for answer in known)
    assert all((page["status"], page["ready"], page["database"]) == (200, True, False) for page in ready)
    assert all(page["reasons"] for page in ready)
    assert refused == {"UNAVAILABLE"}
    assert load.failed == {}, load.complaints
    assert all((page["stale"], page["database"], page["reasons"]) == (False, True, []) for page in fresh)
    assert max(took_s) < COLD_START_ANSWERS_WITHIN_S + BUSY_S
    assert row.recovery_s < RECOVERS_WITHIN_S + BUSY_S


def start_in_vain(instances: Fleet) -> str:
    """Start the first instance again, which must be refused; returns what it logged and complained of."""
    settings = {**KEYS, "DATABASE_URL": instances[0].route.url}
    code, _, complaints = run("serve", data_dir=instances.data_dir(0), **settings)
    assert code == 1
    return complaints


def test_corrupt_snapshot_file_is_refused_and_reported(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    with fleet(postgres, tmp_path, size=1) as instances:
        stop_all(instances)
        kept = instances.data_dir(0) / KEPT
        content = bytearray(kept.read_bytes())
        content[len(content) // 2] ^= 1
        kept.write_bytes(content)
        postgres.stop()
        with report.fault("B4", "cold start without database, one bit of the snapshot file turned") as row:
            complaints = start_in_vain(instances)
            row.also = "refused"
        postgres.start()
        restart(instances, 0)
        assert instances.recovered_s() < RECOVERS_WITHIN_S + BUSY_S

    assert '"event": "last_known_good_refused"' in complaints


def test_twin_without_a_kept_snapshot_a_cold_start_is_refused(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=1, sabotage="nothing_kept") as instances:
        stop_all(instances)
        postgres.stop()
        complaints = start_in_vain(instances)
        postgres.start()

    assert "cannot be reached" in complaints
    report.twin("B4", "the last-known-good snapshot", "no start without the database")
