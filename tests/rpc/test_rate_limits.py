"""Rate limits of a server, as clients meet them: who is refused, who is not, and what both are told."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport.admission import PoolName
from gatekeeper_grpc.transport.admission import Refusal as Reason
from tests.support.addresses import seen_from
from tests.support.clients import TIMEOUT_S, Refusal, refusal_of
from tests.support.floods import retry_after_s
from tests.support.operators import new_token
from tests.support.scrapes import samples_of
from tests.support.servers import StartServer, access_token, connect, token_for

# So slow that no call becomes free while a test runs.
THREE = "1/min burst 3"

pytestmark = pytest.mark.promise("D4")


def limited(limit: str, rate: str = THREE) -> Refusal:
    """What a client receives that has called too often."""
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", {"limit": limit, "rate": rate})


@dataclass(frozen=True)
class People:
    """Clients of one server."""

    server: GatekeeperServer
    stack: ExitStack

    def admin(self, token: str) -> AdminServiceStub:
        return AdminServiceStub(self.stack.enter_context(connect(self.server, token=token)))

    def at(self, address: str) -> grpc.Channel:
        target = self.stack.enter_context(seen_from(address, self.server.port))
        return self.stack.enter_context(grpc.insecure_channel(target))

    def logs_in_at(self, address: str) -> Callable[[], object]:
        """A login that fails for its password, if it is not refused before."""
        login = AuthServiceStub(self.at(address)).Login
        return lambda: login(LoginRequest(username="anna", password="wrong"), timeout=TIMEOUT_S)


@contextmanager
def people(server: GatekeeperServer) -> Iterator[People]:
    with ExitStack() as stack:
        yield People(server, stack)


def creates(admin: AdminServiceStub) -> Callable[[], object]:
    """A change that is a dry run: it counts as any other."""
    request = pb.CreateFlagRequest(flag=Flag(key="new"), validate_only=True)
    return lambda: admin.CreateFlag(request, timeout=TIMEOUT_S)


def lists(admin: AdminServiceStub) -> Callable[[], object]:
    return lambda: admin.ListFlags(pb.ListFlagsRequest(), timeout=TIMEOUT_S)


def reasons(act: Callable[[], object], calls: int) -> list[str]:
    """Make calls that all fail; return why, in order."""
    return [refusal_of(act).reason for _ in range(calls)]


def decisions(server: GatekeeperServer, limit: str) -> tuple[float, float]:
    """How many calls a limit has allowed and refused, as a scrape shows it."""
    samples = samples_of(server.ops_port)
    name = "gatekeeper_rate_limit_decisions_total"
    allowed, refused = (samples[f'{name}{{decision="{found}",limit="{limit}"}}'] for found in ("allowed", "refused"))
    return allowed, refused


def test_an_address_that_logs_in_too_often_is_refused_before_the_queue(start_server: StartServer) -> None:
    server = start_server(login_rate=THREE)
    with people(server) as clients:
        log_in = clients.logs_in_at("127.0.1.1")
        assert reasons(log_in, 3) == ["UNAUTHENTICATED"] * 3

        with pytest.raises(grpc.RpcError) as refusal:
            log_in()
        assert refusal_of(log_in) == limited("login")
        assert 0 < retry_after_s(refusal.value) <= 60
    assert server.pools[PoolName.LOGIN].refused[Reason.RATE_LIMITED] == 2
    assert decisions(server, "login") == (3, 2)


def test_twin_without_the_limit_no_login_is_refused_by_it(start_server: StartServer) -> None:
    server = start_server(login_rate="off")
    with people(server) as clients:
        log_in = clients.logs_in_at("127.0.1.1")
        assert "RATE_LIMITED" not in reasons(log_in, 5)


def test_an_address_that_has_not_called_waits_for_nobody(start_server: StartServer) -> None:
    with people(start_server(login_rate=THREE)) as clients:
        flood = clients.logs_in_at("127.0.1.1")
        reasons(flood, 5)

        assert reasons(clients.logs_in_at("127.0.1.2"), 3) == ["UNAUTHENTICATED"] * 3


def test_a_change_of_the_own_password_counts_as_a_login(start_server: StartServer) -> None:
    """A stolen session that uses up the changes of its owner does not keep them from ending it."""
    with people(start_server(login_rate=THREE, mutation_rate=THREE)) as clients:
        change = AdminServiceStub(clients.at("127.0.1.1")).ChangePassword
        request = pb.ChangePasswordRequest(username="anna", current_password="wrong", new_password="long enough now")

        assert reasons(lambda: change(request, timeout=TIMEOUT_S), 4)[3] == "RATE_LIMITED"
        assert reasons(clients.logs_in_at("127.0.1.1"), 1) == ["RATE_LIMITED"]


def test_an_admin_who_changes_too_much_waits_and_may_still_read(start_server: StartServer, dsn: str) -> None:
    server = start_server(mutation_rate=THREE, DATABASE_URL=dsn)
    with people(server) as clients:
        admin = clients.admin(token_for(dsn, Role.EDITOR))
        for _ in range(3):
            creates(admin)()

        assert refusal_of(creates(admin)) == limited("mutation")
        lists(admin)()
    assert decisions(server, "mutation") == (3, 1)


def test_twin_without_the_limit_every_change_passes(start_server: StartServer, dsn: str) -> None:
    with people(start_server(mutation_rate="off", DATABASE_URL=dsn)) as clients:
        admin = clients.admin(token_for(dsn, Role.EDITOR))
        for _ in range(6):
            creates(admin)()


def test_all_sessions_of_an_admin_share_a_budget_and_no_one_else_does(start_server: StartServer, dsn: str) -> None:
    with people(start_server(mutation_rate=THREE, DATABASE_URL=dsn)) as clients:
        first, other = token_for(dsn, Role.EDITOR), token_for(dsn, Role.ADMIN)
        for session in (first, access_token(dsn, "editor"), access_token(dsn, "editor")):
            creates(clients.admin(session))()

        assert refusal_of(creates(clients.admin(first))) == limited("mutation")
        creates(clients.admin(other))()


def test_an_import_counts_once_however_long_it_is(start_server: StartServer, dsn: str) -> None:
    with people(start_server(mutation_rate=THREE, DATABASE_URL=dsn)) as clients:
        admin = clients.admin(token_for(dsn, Role.EDITOR))
        flag = admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="new")), timeout=TIMEOUT_S).flag
        messages = [
            pb.ImportTargetsRequest(flag_key=flag.key, user_ids=[f"user-{number}"], value=True) for number in range(20)
        ]
        admin.ImportTargets(iter(messages), timeout=TIMEOUT_S)
        lasting = pb.DeleteFlagRequest(key="new", etag=flag.etag, validate_only=True)
        admin.DeleteFlag(lasting, timeout=TIMEOUT_S)

        assert refusal_of(creates(admin)) == limited("mutation")


def test_an_admin_who_reads_too_often_waits_and_may_still_change(start_server: StartServer, dsn: str) -> None:
    with people(start_server(admin_read_rate=THREE, DATABASE_URL=dsn)) as clients:
        admin = clients.admin(token_for(dsn, Role.EDITOR))
        for _ in range(3):
            lists(admin)()

        assert refusal_of(lists(admin)) == limited("admin_read")
        creates(admin)()


def test_an_api_token_has_a_budget_of_its_own(start_server: StartServer, dsn: str) -> None:
    """A program may change more than a person, and does not use up what its maker has."""
    with people(
        start_server(mutation_rate="1/min burst 3", token_mutation_rate="1/min burst 5", DATABASE_URL=dsn)
    ) as clients:
        maker = clients.admin(token_for(dsn, Role.EDITOR))
        one, other = (clients.admin(new_token(maker, role=Role.EDITOR.value).secret) for _ in range(2))
        for _ in range(5):
            creates(one)()

        assert refusal_of(creates(one)) == limited("token_mutation", "1/min burst 5")
        creates(other)()
        creates(maker)()  # The third, after two tokens were made.
        assert refusal_of(creates(maker)) == limited("mutation")


def test_admins_are_told_what_is_left_in_metadata(start_server: StartServer, dsn: str) -> None:
    with people(start_server(mutation_rate=THREE, DATABASE_URL=dsn)) as clients:
        admin = clients.admin(token_for(dsn, Role.EDITOR))
        told = [_budget(admin.CreateFlag.with_call(_new_flag(), timeout=TIMEOUT_S)[1]) for _ in range(2)]
        refused = _budget(admin.UpdateFlag.future(pb.UpdateFlagRequest(flag=Flag(key="none")), timeout=TIMEOUT_S))

    assert [budget["limit"] for budget in told] == ["3", "3"]
    assert [budget["remaining"] for budget in told] == ["2", "1"]
    assert [budget["reset"] for budget in told] == ["60", "120"]
    assert refused["remaining"] == "0"


def test_twin_an_embedded_server_does_not_limit_changes_on_loopback(start_server: StartServer, dsn: str) -> None:
    with people(start_server(mutation_rate=THREE)) as clients:
        admin = clients.admin(token_for(dsn, Role.EDITOR))
        for _ in range(6):
            creates(admin)()


def _new_flag() -> pb.CreateFlagRequest:
    return pb.CreateFlagRequest(flag=Flag(key="new"), validate_only=True)


def _budget(call: Any) -> dict[str, str]:
    """What the metadata of a finished call say of the budget."""
    prefix = "x-ratelimit-"
    return {key.removeprefix(prefix): value for key, value in call.trailing_metadata() if key.startswith(prefix)}
