"""Limits over two instances that share a Redis, and what becomes of them without it. Twins have no Redis."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count

import grpc
import pytest

from gatekeeper_client.signing import ClientKey, SignedChannel
from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1 import client_key_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.rate_exchange import Taken
from gatekeeper_grpc.lifecycle import server as server_module
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.redis_bus.link import RedisLink
from gatekeeper_grpc.redis_bus.shared_budgets import RedisSharedBudgets
from tests.support.clients import TIMEOUT_S, refusal_of
from tests.support.servers import StartServer, connect, token_for
from tests.support.valkey import Valkey, valkey
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B3")

ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
# So slow that no call becomes free while a test runs.
LIMITED: Mapping[str, str] = {
    "login_rate": "1/min burst 4",
    "mutation_rate": "1/min burst 4",
    "standard_tier_rate": "1/min burst 40",
}
Act = Callable[[], object]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis(running: Valkey) -> Iterator[Valkey]:
    with running.client() as client:
        client.flushall()
    yield running
    if not running.answers():
        running.start_again()


@pytest.fixture
def token(dsn: str) -> str:
    return token_for(dsn, Role.ADMIN)


@pytest.fixture
def exchange_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_RATE_EXCHANGE_INTERVAL_S", 3_600.0)


@pytest.fixture
def start_pair(start_server: StartServer, dsn: str) -> Callable[[str | None], list[GatekeeperServer]]:
    """Starts two instances with these limits, on one database and one Redis."""

    def start(redis_url: str | None) -> list[GatekeeperServer]:
        settings = {**LIMITED, "evaluation_access": "signed", "DATABASE_URL": dsn, "REDIS_URL": redis_url}
        return [start_server(**settings) for _ in range(2)]

    return start


@contextmanager
def logs_in(server: GatekeeperServer) -> Iterator[Act]:
    """Logins that fail for their password, if they are not refused before; each under another name."""
    with connect(server) as channel:
        login, names = AuthServiceStub(channel).Login, count()
        yield lambda: login(LoginRequest(username=f"anna-{next(names)}", password="wrong"), timeout=TIMEOUT_S)


@contextmanager
def changes(server: GatekeeperServer, token: str) -> Iterator[Act]:
    with connect(server, token=token) as channel:
        create = AdminServiceStub(channel).CreateFlag
        yield lambda: create(pb.CreateFlagRequest(flag=Flag(key="new"), validate_only=True), timeout=TIMEOUT_S)


@contextmanager
def evaluates(server: GatekeeperServer, key: ClientKey) -> Iterator[Act]:
    server.client_keys.refresh()
    with SignedChannel(connect(server), key, authority=f"127.0.0.1:{server.port}") as channel:
        evaluate = EvaluationServiceStub(channel).EvaluateFlags
        yield lambda: evaluate(ANNA, timeout=TIMEOUT_S)


def new_key(server: GatekeeperServer, token: str) -> ClientKey:
    """A key, made by a call that counts as a change of its own admin user."""
    key = client_key_pb2.ClientKey(
        name="till", tier=client_key_pb2.RATE_TIER_STANDARD, type=client_key_pb2.CLIENT_KEY_TYPE_SIGNING
    )
    with connect(server, token=token) as channel:
        request = pb.CreateClientKeyRequest(client_key=key)
        created = AdminServiceStub(channel).CreateClientKey(request, timeout=TIMEOUT_S)
        return ClientKey(created.client_key.key_id, created.secret)


def passed(act: Act, calls: int = 100) -> int:
    """Make calls until one is refused for its rate; count those before it."""
    for number in range(calls):
        try:
            act()
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return number
    return calls


def test_logins_of_an_address_share_a_budget_over_two_instances(
    start_pair: Callable[[str | None], list[GatekeeperServer]], redis: Valkey
) -> None:
    one, other = start_pair(redis.url)
    with logs_in(one) as here, logs_in(other) as there:
        assert [passed(here, 2), passed(there)] == [2, 2]
        assert refusal_of(here).reason == refusal_of(there).reason == "RATE_LIMITED"


def test_twin_without_redis_each_instance_counts_for_itself(
    start_pair: Callable[[str | None], list[GatekeeperServer]], token: str
) -> None:
    one, other = start_pair(None)
    with logs_in(one) as here, logs_in(other) as there:
        assert [passed(here, 2), passed(there), passed(here)] == [2, 4, 2]
    with changes(one, token) as here, changes(other, token) as there:
        assert [passed(here), passed(there)] == [4, 4]


def test_changes_of_an_admin_share_a_budget_over_two_instances(
    start_pair: Callable[[str | None], list[GatekeeperServer]], token: str, redis: Valkey
) -> None:
    one, other = start_pair(redis.url)
    with changes(one, token) as here, changes(other, token) as there:
        assert [passed(here, 1), passed(there)] == [1, 3]
        refusal = refusal_of(here)

        assert (refusal.reason, refusal.metadata["limit"]) == ("RATE_LIMITED", "mutation")


def test_who_is_refused_over_all_instances_then_takes_no_worker(
    start_pair: Callable[[str | None], list[GatekeeperServer]], redis: Valkey
) -> None:
    """The first refusal needs Redis, and so a worker; this instance remembers it."""
    one, other = start_pair(redis.url)
    with logs_in(one) as here, logs_in(other) as there:
        passed(here)
        assert passed(there) == 0
    with redis.client() as client, logs_in(other) as there:
        asked = _scripts_run(client)
        assert passed(there) == 0

        assert _scripts_run(client) == asked


@pytest.mark.usefixtures("exchange_by_hand")
def test_evaluations_of_a_key_share_a_budget_over_two_instances(
    start_pair: Callable[[str | None], list[GatekeeperServer]], token: str, redis: Valkey
) -> None:
    one, other = start_pair(redis.url)
    key = new_key(one, token)
    with evaluates(one, key) as here, evaluates(other, key) as there:
        assert passed(there, 1) == 1
        _exchange(other, one)
        assert passed(here, 30) == 30
        _exchange(one, other)

        assert passed(there) == 9


def test_twin_without_redis_an_instance_does_not_know_what_others_let_pass(
    start_pair: Callable[[str | None], list[GatekeeperServer]], token: str
) -> None:
    one, other = start_pair(None)
    key = new_key(one, token)
    with evaluates(one, key) as here, evaluates(other, key) as there:
        assert passed(there, 1) == 1
        assert passed(here, 30) == 30

        assert passed(there) == 39


def test_instances_exchange_what_they_let_pass_in_the_background(
    start_pair: Callable[[str | None], list[GatekeeperServer]], token: str, redis: Valkey
) -> None:
    server, _ = start_pair(redis.url)
    with evaluates(server, new_key(server, token)) as evaluate, redis.client() as client:
        passed(evaluate, 7)

        assert eventually(lambda: [client.get(key) for key in client.keys("*:standard_tier:calls:*")] == [b"7"])


def test_an_evaluation_never_asks_redis(
    start_pair: Callable[[str | None], list[GatekeeperServer]],
    token: str,
    redis: Valkey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, _ = start_pair(redis.url)
    key = new_key(server, token)
    asked_by: list[str] = []
    ask = RedisLink.ask

    def noted(link: RedisLink, question: object) -> object:
        asked_by.append(threading.current_thread().name)
        return ask(link, question)  # type: ignore[arg-type]

    monkeypatch.setattr(RedisLink, "ask", noted)
    with evaluates(server, key) as evaluate, changes(server, token) as change:
        assert passed(evaluate, 20) == 20
        change()

    assert any(name.startswith("gatekeeper-admin_write") for name in asked_by)
    assert not any(name.startswith(("gatekeeper-evaluation", "Thread-")) for name in asked_by)


@pytest.mark.parametrize("fault", ["killed", "hanging"])
def test_without_redis_logins_and_changes_wait_once_and_are_limited_here(
    fault: str,
    start_pair: Callable[[str | None], list[GatekeeperServer]],
    token: str,
    redis: Valkey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, _ = start_pair(redis.url)
    now = [1_000.0]
    monkeypatch.setattr(server._bus._link, "_clock", lambda: now[0])  # type: ignore[union-attr]
    waited = _commands_sent(monkeypatch)
    with ExitStack() as stack:
        if fault == "killed":
            redis.kill()
        else:
            stack.enter_context(redis.hanging())
        log_in, change = stack.enter_context(logs_in(server)), stack.enter_context(changes(server, token))
        assert [passed(log_in), passed(change)] == [4, 4]
        assert len(waited) <= 1  # The announcer or the exchange may have found out first.

        now[0] += 10.0
        assert [refusal_of(log_in).reason, refusal_of(change).reason] == ["RATE_LIMITED"] * 2


def _commands_sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each time that a call waits for Redis instead of being told at once that it is away."""
    waited: list[str] = []
    take = RedisSharedBudgets.take

    def noted(budgets: RedisSharedBudgets, limit: str, caller: str, rate: Rate) -> Taken:
        if not budgets._link._is_away:
            waited.append(limit)
        return take(budgets, limit, caller, rate)

    monkeypatch.setattr(RedisSharedBudgets, "take", noted)
    return waited


def _exchange(*servers: GatekeeperServer) -> None:
    """Do now what the instances do twice a second."""
    for server in servers:
        assert server.rate_limits.exchange is not None
        server.rate_limits.exchange.run()


def _scripts_run(client: object) -> int:
    stats: Mapping[str, Mapping[str, int]] = client.info("commandstats")  # type: ignore[attr-defined]
    return int(stats["cmdstat_eval"]["calls"])
