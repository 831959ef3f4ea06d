"""Nonces over all instances, in Redis: a signed call is served once, whichever instance it is sent to."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_SIGNING, RATE_TIER_HIGH
from gatekeeper_client.v1.client_key_pb2 import ClientKey as Created
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.redis_bus.link import RedisLink
from tests.support.clients import TIMEOUT_S, UNAUTHENTICATED, Refusal, outcome_of
from tests.support.servers import StartServer, connect, token_for
from tests.support.signing import AUTHORITY, Metadata, Signer
from tests.support.valkey import Valkey, valkey
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("D1", "B3")

REQUEST = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis(running: Valkey) -> Iterator[Valkey]:
    yield running
    if not running.answers():
        running.start_again()


@pytest.fixture
def slow_redis_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, Redis may need more than the 50 ms that it is given."""
    assert RedisLink.__init__.__kwdefaults__
    monkeypatch.setitem(RedisLink.__init__.__kwdefaults__, "timeout_s", TIMEOUT_S)


def signer_of(server: GatekeeperServer, dsn: str) -> Signer:
    """Make a client key."""
    key = Created(name="till", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING)
    with connect(server, token=token_for(dsn, Role.ADMIN)) as channel:
        created = AdminServiceStub(channel).CreateClientKey(pb.CreateClientKeyRequest(client_key=key))
    return Signer(created.client_key.key_id, created.secret.encode())


@contextmanager
def two_instances(
    start_server: StartServer, dsn: str, redis: Valkey, mode: str
) -> Iterator[tuple[Signer, list[EvaluationServiceStub], list[GatekeeperServer]]]:
    """Two instances behind one authority that want signed calls, and a client key that both know."""
    settings = {"evaluation_access": "signed", "shared_nonces": mode, "REDIS_URL": redis.url}
    servers = [start_server(**settings) for _ in range(2)]
    signer = signer_of(servers[0], dsn)
    assert eventually(lambda: all(server.client_keys.find(signer.key_id) for server in servers))
    options = (("grpc.default_authority", AUTHORITY), ("grpc.use_local_subchannel_pool", 1))
    channels = [grpc.insecure_channel(f"127.0.0.1:{server.port}", options=options) for server in servers]
    try:
        yield signer, [EvaluationServiceStub(channel) for channel in channels], servers
    finally:
        for channel in channels:
            channel.close()


def outcome(stub: EvaluationServiceStub, metadata: Metadata) -> object:
    """Evaluate; return "served", or why not."""
    found = outcome_of(lambda: stub.EvaluateFlags(REQUEST, metadata=metadata, timeout=TIMEOUT_S))
    if isinstance(found, Refusal):
        return found if found == UNAUTHENTICATED else found.code
    return "served"


@pytest.mark.usefixtures("slow_redis_is_no_outage")
@pytest.mark.parametrize("mode", ["on", "strict"])
def test_a_signed_call_is_served_by_one_of_all_instances(
    start_server: StartServer, dsn: str, redis: Valkey, mode: str
) -> None:
    with two_instances(start_server, dsn, redis, mode) as (signer, stubs, _):
        for first, second in (stubs, stubs[::-1]):
            call = signer.signed(REQUEST.SerializeToString())
            assert [outcome(stub, call) for stub in (first, second, first)] == ["served", *[UNAUTHENTICATED] * 2]


def test_twin_without_shared_nonces_each_instance_serves_it_once(
    start_server: StartServer, dsn: str, redis: Valkey
) -> None:
    with two_instances(start_server, dsn, redis, "off") as (signer, stubs, _):
        call = signer.signed(REQUEST.SerializeToString())

        assert [outcome(stub, call) for stub in stubs * 2] == ["served"] * 2 + [UNAUTHENTICATED] * 2


@pytest.mark.parametrize("fault", ["killed", "hanging"])
def test_without_redis_each_instance_serves_a_call_once_and_counts_it(
    start_server: StartServer, dsn: str, redis: Valkey, fault: str
) -> None:
    with two_instances(start_server, dsn, redis, "on") as (signer, stubs, servers), away(redis, fault):
        call = signer.signed(REQUEST.SerializeToString())

        assert [outcome(stub, call) for stub in stubs * 2] == ["served"] * 2 + [UNAUTHENTICATED] * 2
        assert [unshared(server) for server in servers] == [2.0, 2.0]


@pytest.mark.parametrize("fault", ["killed", "hanging"])
def test_without_redis_a_strict_instance_refuses_signed_calls(
    start_server: StartServer, dsn: str, redis: Valkey, fault: str
) -> None:
    with two_instances(start_server, dsn, redis, "strict") as (signer, (stub, _), (server, _)):
        with away(redis, fault):
            refused = outcome(stub, signer.signed(REQUEST.SerializeToString()))
        if fault == "killed":
            redis.start_again()

        assert refused is grpc.StatusCode.UNAVAILABLE
        assert unshared(server) == 1.0
        assert eventually(lambda: outcome(stub, signer.signed(REQUEST.SerializeToString())) == "served")


@pytest.mark.usefixtures("slow_redis_is_no_outage")
def test_what_redis_has_lost_the_instance_that_served_it_remembers(
    start_server: StartServer, dsn: str, redis: Valkey
) -> None:
    with two_instances(start_server, dsn, redis, "on") as (signer, (stub, _), _):
        call = signer.signed(REQUEST.SerializeToString())
        assert outcome(stub, call) == "served"
        with redis.client() as client:
            assert client.keys("gatekeeper:nonce:*")
            client.flushall()

        assert outcome(stub, call) == UNAUTHENTICATED


@contextmanager
def away(redis: Valkey, fault: str) -> Iterator[None]:
    if fault == "hanging":
        with redis.hanging():
            yield
    else:
        redis.kill()
        yield


def unshared(server: GatekeeperServer) -> float:
    return next(
        sample.value
        for family in server.metrics.collect()
        for sample in family.samples
        if sample.name == "gatekeeper_unshared_nonces_total"
    )
