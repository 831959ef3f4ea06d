"""Restarts and rolls in plaintext and with TLS, and new certificates: what clients as we recommend them see of them.

`LEAVINGS=100 CALLS=1000000 pytest tests/faults/test_leaving.py` makes a record.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.faults.fleet import Fleet, fleet
from tests.faults.load import at_work
from tests.faults.postgres import Postgres
from tests.faults.recommended import RecommendedClients
from tests.faults.report import Report
from tests.support.processes import START_TIMEOUT_S, TIMEOUT_S
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually

pytestmark = [pytest.mark.promise("C4", "G1"), pytest.mark.timeout(3_600)]

LEAVINGS = int(os.environ.get("LEAVINGS", "20"))
CALLS = int(os.environ.get("CALLS", "25000"))
"""Of each test; there are four."""
SETTINGS = {"GATEKEEPER_DRAIN_S": "0.5", "GATEKEEPER_GRACE_S": "10"}
WORKERS = 2


@pytest.fixture(params=["plaintext", "tls"])
def certificates(request: pytest.FixtureRequest, tmp_path: Path) -> CertificateFolder | None:
    if request.param == "plaintext":
        return None
    folder = tmp_path / "certificate"
    folder.mkdir()
    return CertificateFolder(folder)


@pytest.fixture
def secure(tmp_path: Path) -> CertificateFolder:
    folder = tmp_path / "certificate"
    folder.mkdir()
    return CertificateFolder(folder)


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """How servers leave."""

    act: Callable[[Fleet, int], None]
    """Has one leave, or all in turn; gets the number of the time."""
    size: int
    """How many instances there are."""
    settings: Mapping[str, str]


def clients_of(instances: Fleet, certificates: CertificateFolder | None) -> RecommendedClients:
    ports = [instance.gatekeeper.port for instance in instances.instances]
    return RecommendedClients(ports, instances.token, certificates=certificates)


def restart(instances: Fleet, number: int) -> None:
    """Stop an instance and start it again on its port; the other one serves."""
    index = number % len(instances.instances)
    process = instances[index].gatekeeper.process
    process.terminate()
    assert process.wait(TIMEOUT_S) == 0
    instances.restart(index)


def roll(instances: Fleet, number: int) -> None:
    """Replace all workers of a supervisor."""
    del number
    gatekeeper = instances[0].gatekeeper
    rolled = gatekeeper.log.text().count("roll_finished")
    gatekeeper.process.send_signal(signal.SIGHUP)
    within_s = WORKERS * START_TIMEOUT_S
    assert eventually(lambda: gatekeeper.log.text().count("roll_finished") > rolled, timeout_s=within_s)


def applied(postgres: Postgres) -> int:
    """How often the flag was changed."""
    with psycopg.connect(postgres.dsn) as conn:
        ((changes,),) = conn.execute("SELECT count(*) FROM audit_log WHERE action = 'UpdateFlag'")
    return int(changes)


def leave(instances: Fleet, clients: RecommendedClients, act: Callable[[Fleet, int], None]) -> int:
    """Have servers leave until that was often enough, and calls were many enough; return how often."""
    with at_work(clients):
        assert eventually(lambda: clients.answered["evaluate"] > 100)
        left = 0
        while left < LEAVINGS or clients.answered.total() < CALLS:
            act(instances, left)
            left += 1
        newest = clients.changed_revision
        assert eventually(lambda: clients.seen_revision >= newest), "the watch was not resumed"
    return left


LEAVINGS_BY_NAME = {
    "restarts": Leaving(act=restart, size=2, settings=SETTINGS),
    "rolls": Leaving(act=roll, size=1, settings={**SETTINGS, "GATEKEEPER_WORKERS": str(WORKERS)}),
}


@pytest.mark.parametrize("leaving", LEAVINGS_BY_NAME.values(), ids=LEAVINGS_BY_NAME)
def test_no_evaluation_or_read_fails_and_each_change_is_made_once(
    leaving: Leaving, certificates: CertificateFolder | None, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    size, settings, what = leaving.size, leaving.settings, leaving.act.__name__
    with fleet(postgres, tmp_path, size=size, settings=settings, certificates=certificates) as instances:
        clients = clients_of(instances, certificates)
        mode = "TLS" if certificates else "plaintext"
        with report.fault("C4 G1", f"{what}s, {mode}, clients as recommended") as row:
            left = leave(instances, clients, leaving.act)
            row.sent, row.failed = clients.answered.total() + clients.failed.total(), clients.failed.total()
            row.also = f"{left} {what}s, {clients.repeated} changes repeated, watches ended {dict(clients.watches)}"

        applied_changes = applied(postgres)

    assert clients.failed == {}
    assert applied_changes == clients.answered["change"]
    assert clients.watches.keys() == {"UNAVAILABLE"}


def test_new_certificates_under_load_fail_no_call(
    secure: CertificateFolder, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=1, settings=SETTINGS, certificates=secure) as instances:
        clients = clients_of(instances, secure)
        log = instances[0].gatekeeper.log

        def renew(_instances: Fleet, number: int) -> None:
            loaded = log.text().count("tls_certificate_loaded")
            secure.put(secure.issuer.issue())
            assert eventually(lambda: log.text().count("tls_certificate_loaded") > loaded)

        with report.fault("G1", "new certificates, clients as recommended") as row, at_work(clients):
            for number in range(3):
                renew(instances, number)
            row.sent, row.failed = clients.answered.total(), clients.failed.total()

        assert clients.failed == {}
        assert clients.repeated == 0


def test_twin_without_the_drain_calls_fail(
    secure: CertificateFolder, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    """With TLS and no drain, calls that reach the server while it stops are cancelled, and CANCELLED is not retried."""
    with fleet(postgres, tmp_path, size=2, settings=SETTINGS, certificates=secure, sabotage="no_drain") as instances:
        clients = clients_of(instances, secure)
        with at_work(clients):
            ends_at, number = time.monotonic() + 20 * TIMEOUT_S, 0
            while not clients.failed and time.monotonic() < ends_at:
                restart(instances, number)
                number += 1

    assert {what.split(": ")[1] for what in clients.failed} == {"CANCELLED"}
    report.twin("G1", "ending quiet connections", f"{clients.failed.total()} calls cancelled in {number} restarts")
