"""A recorded signed call is sent to all workers of a real fleet at once, many times: how often it is served."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_SIGNING, RATE_TIER_HIGH, ClientKey
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.support.clients import race
from tests.support.processes import TIMEOUT_S, Gatekeeper, serving
from tests.support.signing import AUTHORITY, Metadata, Signer
from tests.support.valkey import Valkey, valkey
from tests.support.waiting import eventually

pytestmark = [pytest.mark.timeout(600), pytest.mark.promise("D1")]

WORKERS = 2
# The kernel gives each connection to one of the workers: that all go to the same happens once in two billion runs.
CONNECTIONS = 32
REQUEST = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Valkey]:
    with valkey(tmp_path / "valkey") as server:
        yield server


@contextmanager
def fleet(data_dir: Path, redis: Valkey, mode: str) -> Iterator[tuple[Signer, list[EvaluationServiceStub]]]:
    """A fleet that wants signed calls, a client key that all its workers know, and open connections to them."""
    settings = {
        "GATEKEEPER_WORKERS": str(WORKERS),
        "GATEKEEPER_EVALUATION_ACCESS": "signed",
        "GATEKEEPER_SHARED_NONCES": mode,
        "REDIS_URL": redis.url,
    }
    with serving(data_dir, **settings) as gatekeeper, ExitStack() as stack:
        stubs = [EvaluationServiceStub(stack.enter_context(connected(gatekeeper))) for _ in range(CONNECTIONS)]
        signer = new_signer(gatekeeper)
        assert eventually(lambda: all(outcome(stub, signed(signer)) == "served" for stub in stubs))
        yield signer, stubs


def connected(gatekeeper: Gatekeeper) -> grpc.Channel:
    options = (("grpc.default_authority", AUTHORITY), ("grpc.use_local_subchannel_pool", 1))
    return grpc.insecure_channel(f"127.0.0.1:{gatekeeper.port}", options=options)


def new_signer(gatekeeper: Gatekeeper) -> Signer:
    key = ClientKey(name="till", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING)
    with gatekeeper.admin() as admin:
        created = admin.CreateClientKey(pb.CreateClientKeyRequest(client_key=key), timeout=TIMEOUT_S)
    return Signer(created.client_key.key_id, created.secret.encode())


def signed(signer: Signer) -> Metadata:
    return signer.signed(REQUEST.SerializeToString())


def outcome(stub: EvaluationServiceStub, call: Metadata) -> str:
    try:
        stub.EvaluateFlags(REQUEST, metadata=call, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "served"


def replayed(signer: Signer, stubs: list[EvaluationServiceStub]) -> Counter[str]:
    """Send one signed call over every connection at once, and then once more; returns how often it ended how."""
    call = signed(signer)
    return Counter([*race([partial(outcome, stub, call) for stub in stubs]), *(outcome(stub, call) for stub in stubs)])


def test_with_shared_nonces_a_replayed_call_is_served_once(data_dir: Path, redis: Valkey) -> None:
    with fleet(data_dir, redis, "strict") as (signer, stubs):
        rounds: list[Counter[str]] = []

        def is_served() -> bool:
            # On a busy machine Redis may take too long: then nobody is served, and the client would sign again.
            rounds.append(replayed(signer, stubs))
            return rounds[-1] == {"served": 1, "UNAUTHENTICATED": 2 * CONNECTIONS - 1}

        assert eventually(is_served)
        assert all(ended["served"] <= 1 for ended in rounds)


@pytest.mark.parametrize("mode", ["off", "on"], ids=["not shared", "Redis away"])
def test_twin_each_process_of_a_fleet_serves_a_replayed_call_once(data_dir: Path, redis: Valkey, mode: str) -> None:
    with fleet(data_dir, redis, mode) as (signer, stubs):
        redis.kill()

        assert replayed(signer, stubs) == {"served": WORKERS, "UNAUTHENTICATED": 2 * CONNECTIONS - WORKERS}
