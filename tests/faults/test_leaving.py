"""Restarts and rolls in plaintext and with TLS, and new certificates: what clients as we recommend them see of them.

The clients are in Go, Java, Node and Python. `LEAVINGS=100 CALLS=125000 pytest tests/faults/test_leaving.py` makes a
record.
"""

import datetime as dt
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1.admin_service_pb2 import (
    CreateApiTokenRequest,
    CreateFlagRequest,
    ListFlagsRequest,
    UpdateFlagRequest,
)
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_EDITOR
from gatekeeper_client.v1.api_token_pb2 import ApiToken
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.fleet import Fleet, Instance, fleet
from tests.faults.load import at_work
from tests.faults.postgres import Postgres
from tests.faults.programs import Commands, Program, build
from tests.faults.recommended import Clients, PythonClients, flag_of
from tests.faults.report import Report
from tests.support.operators import in_s
from tests.support.processes import START_TIMEOUT_S, TIMEOUT_S
from tests.support.servers import Bearer
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually

LEAVINGS = int(os.environ.get("LEAVINGS", "20"))
CALLS = int(os.environ.get("CALLS", "25000"))
"""Of each test; there are four."""
pytestmark = [pytest.mark.promise("C4", "G1"), pytest.mark.timeout(3_600 + 60 * LEAVINGS)]
HOUR = dt.timedelta(hours=1)
SETTINGS = {"GATEKEEPER_DRAIN_S": "0.5", "GATEKEEPER_GRACE_S": "10"}
WORKERS = 2
_LOG_SHOWN = 5_000
_DAY_S = 86_400
# So many in a row miss one of two workers once in 500 times.
CONNECTIONS = 10


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


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return build(tmp_path_factory.mktemp("programs"))


def python_clients(instances: Fleet, certificates: CertificateFolder | None, **more: Any) -> PythonClients:
    make_flag(instances, PythonClients.language)
    return PythonClients(ports_of(instances), api_token(instances), certificates=certificates, **more)


def api_token(instances: Fleet) -> str:
    """What a tool has: an access token expires during a long run."""
    token = ApiToken(name="load", role=ROLE_EDITOR, expire_time=in_s(_DAY_S))
    request = CreateApiTokenRequest(api_token=token)
    secret = instances[0].admin.CreateApiToken(request, timeout=TIMEOUT_S).secret
    assert eventually(lambda: all(accepts(each, secret) for each in instances.instances for _ in range(CONNECTIONS)))
    return secret


def accepts(instance: Instance, secret: str) -> bool:
    """Whether a worker of an instance has heard of a token: a new connection may lead to any of them."""
    with instance.gatekeeper.channel() as channel:
        admin = AdminServiceStub(grpc.intercept_channel(channel, Bearer(secret)))
        with suppress(grpc.RpcError):
            return bool(admin.ListFlags(ListFlagsRequest(), timeout=TIMEOUT_S).revision)
    return False


def clients_of(instances: Fleet, commands: Commands, certificates: CertificateFolder | None) -> Sequence[Clients]:
    """Clients in every language."""
    ports, token = ports_of(instances), api_token(instances)
    programs = [
        Program(language, command, ports, token, certificates=certificates) for language, command in commands.items()
    ]
    for program in programs:
        make_flag(instances, program.language)
    return [*programs, python_clients(instances, certificates)]


def ports_of(instances: Fleet) -> list[int]:
    return [instance.gatekeeper.port for instance in instances.instances]


def make_flag(instances: Fleet, language: str) -> None:
    instances[0].admin.CreateFlag(CreateFlagRequest(flag=Flag(key=flag_of(language))), timeout=TIMEOUT_S)


def restart(instances: Fleet, number: int) -> None:
    """Stop an instance and start it again on its port; the other one serves. Return once its clients are back."""
    index = number % len(instances.instances)
    process, connections = instances[index].gatekeeper.process, open_connections(instances[index])
    process.terminate()
    assert process.wait(TIMEOUT_S) == 0
    instances.restart(index)
    # But for the connection of the test itself, which is opened when it is used.
    assert eventually(lambda: open_connections(instances[index]) >= connections - 1)


def open_connections(instance: Instance) -> int:
    metrics = urlopen(f"http://127.0.0.1:{instance.gatekeeper.ops_port}/metrics").read().decode()
    (line,) = (line for line in metrics.splitlines() if line.startswith("gatekeeper_open_connections "))
    return int(float(line.split()[1]))


def roll(instances: Fleet, number: int) -> None:
    """Replace all workers of a supervisor."""
    del number
    gatekeeper = instances[0].gatekeeper
    rolled = gatekeeper.log.text().count("roll_finished")

    def ended() -> bool:
        text = gatekeeper.log.text()
        return text.count("roll_finished") > rolled or "roll_abandoned" in text

    gatekeeper.process.send_signal(signal.SIGHUP)
    has_ended = eventually(ended, timeout_s=WORKERS * START_TIMEOUT_S)
    logged = gatekeeper.log.text()
    assert has_ended, logged[-_LOG_SHOWN:]
    assert "roll_abandoned" not in logged, logged[-_LOG_SHOWN:]


def applied(postgres: Postgres) -> dict[str, int]:
    """How often each flag was changed."""
    with psycopg.connect(postgres.dsn) as conn:
        return dict(conn.execute(_CHANGES).fetchall())


_CHANGES = "SELECT resource_key, count(*) FROM audit_log WHERE action = 'UpdateFlag' GROUP BY resource_key"


def leave(instances: Fleet, clients: Sequence[Clients], act: Callable[[Fleet, int], None]) -> int:
    """Have servers leave until that was often enough, and calls were many enough; return how often."""
    with at_work(*clients):
        assert eventually(lambda: all(each.figures.answered["change"] > 3 for each in clients))
        left = 0
        while left < LEAVINGS or sum(each.figures.sent for each in clients) < CALLS:
            act(instances, left)
            left += 1
    return left


def shown(clients: Clients) -> str:
    """The figures of one language."""
    figures = clients.figures
    answered = ", ".join(f"{count:,} {kind}" for kind, count in sorted(figures.answered.items()))
    return f"{clients.language}: {answered}, {figures.repeated} repeated, watches ended {dict(figures.watches)}"


LEAVINGS_BY_NAME = {
    "restarts": Leaving(act=restart, size=2, settings=SETTINGS),
    "rolls": Leaving(act=roll, size=1, settings={**SETTINGS, "GATEKEEPER_WORKERS": str(WORKERS)}),
}


@pytest.mark.parametrize("leaving", LEAVINGS_BY_NAME.values(), ids=LEAVINGS_BY_NAME)
def test_no_evaluation_or_read_fails_and_each_change_is_made_once(
    *,
    leaving: Leaving,
    certificates: CertificateFolder | None,
    commands: Commands,
    postgres: Postgres,
    tmp_path: Path,
    report: Report,
) -> None:
    size, settings, what = leaving.size, leaving.settings, leaving.act.__name__
    with fleet(postgres, tmp_path, size=size, settings=settings, certificates=certificates) as instances:
        clients = clients_of(instances, commands, certificates)
        mode = "TLS" if certificates else "plaintext, evaluations without retries"
        with report.fault("C4 G1", f"{what}s, {mode}, clients as recommended") as row:
            left = leave(instances, clients, leaving.act)
            row.sent = sum(each.figures.sent for each in clients)
            row.failed = sum(each.figures.failed.total() for each in clients)
            row.also = f"{left} {what}s; {'; '.join(map(shown, clients))}"

        applied_changes = applied(postgres)

    assert sum(each.figures.watches.total() for each in clients)
    for each in clients:
        assert each.figures.failed == {}, each.language
        assert all(each.figures.answered[kind] for kind in ("evaluate", "read", "change")), each.language
        assert applied_changes[flag_of(each.language)] == each.figures.answered["change"], each.language
        assert each.figures.watches.keys() <= {"UNAVAILABLE"}, each.language
        assert each.figures.seen_revision >= each.figures.changed_revision, (
            f"{each.language}: the watch was not resumed"
        )


def test_twin_without_the_drain_calls_are_cancelled(
    certificates: CertificateFolder | None, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    """Calls that reach a server while it stops are cancelled, and CANCELLED is not retried."""
    with fleet(
        postgres, tmp_path, size=2, settings=SETTINGS, certificates=certificates, sabotage="no_drain"
    ) as instances:
        clients = python_clients(instances, certificates, between_calls_s=0.001)
        with at_work(clients):
            restarts = restart_until(lambda: "CANCELLED" in codes(clients), instances)

    assert "CANCELLED" in codes(clients)
    mitigation = "ending quiet connections" if certificates else "asking clients to go first"
    report.twin("G1", mitigation, f"{clients.figures.failed.total()} calls failed in {restarts} restarts")


def restart_until(seen: Callable[[], bool], instances: Fleet) -> int:
    ends_at, number = time.monotonic() + 20 * TIMEOUT_S, 0
    while not seen() and time.monotonic() < ends_at:
        restart(instances, number)
        number += 1
    return number


def codes(clients: Clients) -> set[str]:
    """With what calls failed."""
    return {what.split(": ")[1] for what in list(clients.figures.failed)}


@pytest.mark.parametrize("request_id", ["3f2b8c1e-6f0a-4c57-9d0e-2a4c0d7b9e11", ""], ids=["request_id", "twin: none"])
def test_a_change_whose_answer_is_lost_is_made_once_by_its_request_id(
    request_id: str, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    """A server that is killed loses answers. Before the caller repeats its change, another caller makes one."""
    with (
        fleet(postgres, tmp_path / "killed", size=1, sabotage="slow_answers") as killed,
        fleet(postgres, tmp_path / "other", size=1) as other,
    ):
        make_flag(other, "nobody")
        lost = killed[0].admin.UpdateFlag.future(described("first", request_id), timeout=TIMEOUT_S)
        assert eventually(lambda: applied(postgres) == {flag_of("nobody"): 1})
        killed[0].gatekeeper.kill()
        assert lost.code() is grpc.StatusCode.UNAVAILABLE
        other[0].admin.UpdateFlag(described("second"), timeout=TIMEOUT_S)
        other[0].admin.UpdateFlag(described("first", request_id), timeout=TIMEOUT_S)

    made = applied(postgres)[flag_of("nobody")]
    assert made == (2 if request_id else 3)
    if not request_id:
        report.twin("G1", "request_id", "a change whose answer was lost was made twice, over that of another caller")


def described(description: str, request_id: str = "") -> UpdateFlagRequest:
    flag, mask = Flag(key=flag_of("nobody"), description=description), FieldMask(paths=["description"])
    return UpdateFlagRequest(flag=flag, update_mask=mask, request_id=request_id)


def test_new_certificates_and_keys_under_load_fail_no_call(
    secure: CertificateFolder, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=1, settings=SETTINGS, certificates=secure) as instances:
        clients = python_clients(instances, secure, newcomers=2)
        with report.fault("G1", "new certificates and keys, old and new connections") as row, at_work(clients):
            renew_well_and_badly(secure, instances, clients, bad="tls_certificate_refused")
            row.sent, row.failed = clients.figures.sent, clients.figures.failed.total()
            row.also = shown(clients)

    assert clients.figures.failed == {}
    assert clients.figures.repeated == 0
    assert clients.figures.watches == {}


def test_twin_without_checks_new_connections_fail(
    secure: CertificateFolder, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    sabotage = "any_certificate"
    with fleet(postgres, tmp_path, size=1, settings=SETTINGS, certificates=secure, sabotage=sabotage) as instances:
        clients = python_clients(instances, secure, newcomers=2)
        with at_work(clients):
            renew_well_and_badly(secure, instances, clients, bad="tls_certificate_loaded")

    assert {what.split(": ")[0] for what in clients.figures.failed} == {"connect"}
    report.twin("G1", "checks of new certificates", f"{clients.figures.failed.total()} new connections failed")


def renew_well_and_badly(
    certificates: CertificateFolder, instances: Fleet, clients: PythonClients, *, bad: str
) -> None:
    """Renew certificate and key; put an expired one in their place; renew them again.

    One file is replaced after the other, so that for a while key and certificate do not belong together.

    Args:
        certificates: The files.
        instances: One, which shows them.
        clients: Among them newcomers, who see each state of the files.
        bad: What is logged of a certificate that cannot be used.
    """
    good, issuer = "tls_certificate_loaded", certificates.issuer
    expired = issuer.issue(began=2 * HOUR, lasts=-HOUR)
    for issued, logged in ((issuer.issue(), good), (expired, bad), (issuer.issue(), good)):
        replace_and_wait(certificates.chain, issued.chain, bad, instances, clients)
        replace_and_wait(certificates.key, issued.key, logged, instances, clients)


def replace_and_wait(file: Path, content: bytes, event: str, instances: Fleet, clients: PythonClients) -> None:
    """Replace a file; return once that is logged, and newcomers have seen what it does."""
    log, figures = instances[0].gatekeeper.log, clients.figures
    before = log.text().count(event)
    file.write_bytes(content)
    assert eventually(lambda: log.text().count(event) > before)
    sent = figures.sent
    assert eventually(lambda: figures.sent > sent + 100)
