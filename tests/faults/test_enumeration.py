"""The time of a failed login tells nobody which accounts exist, with everything that slows guessing switched off."""

import time
from collections.abc import Iterator
from statistics import median

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_user_pb2 import AdminUser
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.auth.lockout import LoginGuard
from gatekeeper_grpc.auth.passwords import Passwords
from tests.faults.figures import ROUNDS
from tests.faults.report import Report
from tests.support.clients import TIMEOUT_S, Installation, installed, refusal_of
from tests.support.databases import running_postgres
from tests.support.operators import PASSWORD, WRONG_CREDENTIALS, enlisted, manager, new_name

pytestmark = [pytest.mark.promise("D4"), pytest.mark.timeout(900)]

TRIES = 200
APART = 0.05
# Beyond what a guard allows one account, if it were on.
FAILED_BEFORE = 110


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """An installation without limits on failed logins."""
    monkeypatch.setattr(LoginGuard, "_wait_s", lambda *_keys: 0.0)
    with running_postgres() as postgres, installed(postgres) as installation:
        yield installation


def failed_login_s(installation: Installation, username: str) -> float:
    """How long a login with a wrong password takes, which is refused in the same words as every other."""
    request = LoginRequest(username=username, password=f"not-{PASSWORD}")
    auth = AuthServiceStub(installation.channels[None])
    began = time.perf_counter()
    refused = refusal_of(lambda: auth.Login(request, timeout=TIMEOUT_S))
    took_s = time.perf_counter() - began
    assert refused == WRONG_CREDENTIALS
    return took_s


def medians(installation: Installation) -> dict[str, float]:
    """The median time by what a name is; tries of all kinds take turns, so that a busy machine slows down all alike."""
    known, disabled, locked = (enlisted(installation).username for _ in range(3))
    disabling = pb.UpdateAdminUserRequest(
        admin_user=AdminUser(username=disabled, enabled=False), update_mask=FieldMask(paths=["enabled"])
    )
    manager(installation).UpdateAdminUser(disabling, timeout=TIMEOUT_S)
    for _ in range(FAILED_BEFORE):
        failed_login_s(installation, locked)
    taken: dict[str, list[float]] = {"known": [], "unknown": [], "disabled": [], "locked": []}
    for _ in range(TRIES):
        names = {"known": known, "unknown": new_name(), "disabled": disabled, "locked": locked}
        for kind, name in names.items():
            taken[kind].append(failed_login_s(installation, name))
    return {kind: median(times) for kind, times in taken.items()}


def apart(found: dict[str, float]) -> float:
    """How much longer the slowest kind takes than the fastest."""
    return max(found.values()) / min(found.values()) - 1


def shown(found: dict[str, float]) -> str:
    return ", ".join(f"{kind} {seconds * 1000:.2f} ms" for kind, seconds in found.items())


def test_failed_logins_of_every_kind_of_name_take_as_long(installation: Installation, report: Report) -> None:
    with report.fault("D4", f"{TRIES} failed logins of each kind of name, without limits") as row:
        rounds: list[dict[str, float]] = []
        while not rounds or (apart(rounds[-1]) >= APART and len(rounds) < ROUNDS):
            rounds.append(medians(installation))
        best = min(rounds, key=apart)
        row.also = f"medians {shown(best)}; {apart(best):.1%} apart"

    assert apart(best) < APART, shown(best)


def test_twin_without_equal_work_the_time_tells(
    installation: Installation, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = Passwords.verify
    monkeypatch.setattr(
        Passwords,
        "verify",
        lambda self, password, stored, **more: stored is not None and verify(self, password, stored, **more),
    )
    found = medians(installation)

    assert apart(found) > APART
    report.twin("D4", "the same work for every name", f"medians {shown(found)}; {apart(found):.0%} apart")
