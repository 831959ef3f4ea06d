"""Evaluation calls with client keys through a real server: the stage, its settings, and keys that come and go."""

import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.client_key_pb2 import (
    CLIENT_KEY_TYPE_BEARER,
    CLIENT_KEY_TYPE_SIGNING,
    RATE_TIER_HIGH,
    ClientKey,
    ClientKeyType,
)
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    EvaluateFlagsRequest,
    WatchFlagsRequest,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.auth.signatures import UNSIGNED, sign
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from tests.support.clients import TIMEOUT_S, UNAUTHENTICATED, refusal_of
from tests.support.servers import StartServer, connect, token_for
from tests.support.waiting import eventually

pytestmark = [pytest.mark.promise("D1"), pytest.mark.usefixtures("answering")]

REQUEST = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
BULK = BulkEvaluateFlagsRequest(contexts=[EvaluationContext(user_id="anna")])
RPCS = ("EvaluateFlags", "BulkEvaluateFlags", "WatchFlags")
UNARY, STREAM, WATCH = (f"/gatekeeper.v1.EvaluationService/{rpc}" for rpc in RPCS)
Metadata = tuple[tuple[str, str], ...]


class Client:
    """A calling service with a client key of either type."""

    def __init__(self, channel: grpc.Channel, admin: AdminServiceStub, authority: str) -> None:
        self.stub = EvaluationServiceStub(channel)
        self.admin = admin
        self.authority = authority
        self.key_id, secret = self._create(CLIENT_KEY_TYPE_SIGNING)
        self._secret = secret.encode()
        self.bearer_id, self.bearer_secret = self._create(CLIENT_KEY_TYPE_BEARER)
        self.bearer = (("authorization", f"Bearer {self.bearer_secret}"),)

    def _create(self, kind: ClientKeyType.ValueType) -> tuple[str, str]:
        key = ClientKey(name="till", tier=RATE_TIER_HIGH, type=kind)
        created = self.admin.CreateClientKey(pb.CreateClientKeyRequest(client_key=key), timeout=TIMEOUT_S)
        return created.client_key.key_id, created.secret

    def signed(
        self,
        content: str = hashlib.sha256(REQUEST.SerializeToString()).hexdigest(),
        *,
        method: str = UNARY,
        authority: str = "",
    ) -> Metadata:
        timestamp, nonce = str(int(time.time())), uuid4().hex
        parts = {"key_id": self.key_id, "timestamp": timestamp, "nonce": nonce, "content_sha256": content}
        signature = sign(self._secret, method=method, authority=authority or self.authority, **parts)
        headers = {**parts, "signature": signature}
        return tuple((f"x-gatekeeper-{name.replace('_', '-')}", value) for name, value in headers.items())

    def evaluate(self, metadata: Metadata = (), request: EvaluateFlagsRequest = REQUEST) -> int:
        return self.stub.EvaluateFlags(request, metadata=metadata, timeout=TIMEOUT_S).revision

    def evaluate_many(self, metadata: Metadata = ()) -> int:
        return len(list(self.stub.BulkEvaluateFlags(iter([BULK]), metadata=metadata, timeout=TIMEOUT_S)))

    def watch(self, metadata: Metadata = ()) -> int:
        """Watch until the first message; returns its revision."""
        call = self.stub.WatchFlags(WatchFlagsRequest(), metadata=metadata, timeout=TIMEOUT_S)
        revision = next(call).revision
        call.cancel()
        return revision


def client_of(server: GatekeeperServer, dsn: str) -> Iterator[Client]:
    with connect(server) as channel, connect(server, token=token_for(dsn, Role.ADMIN)) as admin:
        yield Client(channel, AdminServiceStub(admin), f"127.0.0.1:{server.port}")


@pytest.fixture
def client(server: GatekeeperServer, dsn: str) -> Iterator[Client]:
    """A client of a server with the default settings."""
    yield from client_of(server, dsn)


@pytest.fixture
def strict(start_server: StartServer, dsn: str) -> Iterator[Client]:
    """A client of a server that wants every call signed, bodies too."""
    yield from client_of(start_server(evaluation_access="signed"), dsn)


def test_signed_and_anonymous_calls_are_served_and_bad_signatures_not(client: Client) -> None:
    signed = client.signed()

    assert client.evaluate(signed) == client.evaluate() == client.evaluate(client.signed(UNSIGNED))
    assert client.evaluate_many(client.signed(UNSIGNED, method=STREAM)) == client.evaluate_many() == 2
    assert client.watch(client.signed(UNSIGNED, method=WATCH)) == client.watch() == client.evaluate()
    bad = (*signed[:-1], ("x-gatekeeper-signature", "0" * 64))
    assert refusal_of(lambda: client.watch(bad)) == UNAUTHENTICATED
    assert refusal_of(lambda: client.evaluate(bad)) == UNAUTHENTICATED
    assert refusal_of(lambda: client.evaluate(signed[:-1])) == UNAUTHENTICATED


def test_call_that_is_sent_again_or_as_another_is_refused(client: Client) -> None:
    signed = client.signed()
    client.evaluate(signed)
    other = EvaluateFlagsRequest(context=EvaluationContext(user_id="bob"))

    assert refusal_of(lambda: client.evaluate(signed)) == UNAUTHENTICATED
    assert refusal_of(lambda: client.evaluate(client.signed(), other)) == UNAUTHENTICATED
    assert refusal_of(lambda: client.evaluate_many(client.signed(UNSIGNED))) == UNAUTHENTICATED
    assert refusal_of(lambda: client.evaluate_many(client.signed("0" * 64, method=STREAM))) == UNAUTHENTICATED


def test_every_call_must_be_signed_whole_where_the_operator_says_so(strict: Client) -> None:
    strict.evaluate(strict.signed())
    assert strict.evaluate_many(strict.signed(UNSIGNED, method=STREAM)) == 2
    strict.watch(strict.signed(UNSIGNED, method=WATCH))

    assert refusal_of(strict.evaluate) == UNAUTHENTICATED
    assert refusal_of(strict.evaluate_many) == UNAUTHENTICATED
    assert refusal_of(strict.watch) == UNAUTHENTICATED
    assert refusal_of(lambda: strict.evaluate(strict.signed(UNSIGNED))) == UNAUTHENTICATED


def test_revoked_key_signs_no_further_call(client: Client) -> None:
    client.evaluate(client.signed())

    client.admin.RevokeClientKey(pb.RevokeClientKeyRequest(key_id=client.key_id), timeout=TIMEOUT_S)

    assert refusal_of(lambda: client.evaluate(client.signed())) == UNAUTHENTICATED


class HeldBulk:
    """An open signed bulk evaluation that has been answered once."""

    def __init__(self, client: Client) -> None:
        self.left = threading.Event()
        self.call = client.stub.BulkEvaluateFlags(self._requests(), metadata=client.signed(UNSIGNED, method=STREAM))
        next(self.call)

    def _requests(self) -> Iterator[Any]:
        yield BULK
        self.left.wait(TIMEOUT_S)


def test_open_streams_end_when_their_key_is_revoked(server: GatekeeperServer, client: Client) -> None:
    watch = client.stub.WatchFlags(
        WatchFlagsRequest(), metadata=client.signed(UNSIGNED, method=WATCH), timeout=TIMEOUT_S
    )
    anonymous = client.stub.WatchFlags(WatchFlagsRequest(), timeout=TIMEOUT_S)
    assert next(watch).revision == next(anonymous).revision
    bulk = HeldBulk(client)
    assert eventually(lambda: len(server.pools.open_streams) == 2)

    client.admin.RevokeClientKey(pb.RevokeClientKeyRequest(key_id=client.key_id), timeout=TIMEOUT_S)

    assert refusal_of(lambda: list(watch)) == UNAUTHENTICATED
    assert refusal_of(lambda: list(bulk.call)) == UNAUTHENTICATED
    assert anonymous.is_active()
    bulk.left.set()
    anonymous.cancel()
    assert eventually(lambda: len(server.pools.open_streams) == 0)


def test_twin_streams_that_nobody_ends_outlive_their_key(
    server: GatekeeperServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.pools.open_streams, "end_of_keys", lambda _is_valid: None)
    watch = client.stub.WatchFlags(
        WatchFlagsRequest(), metadata=client.signed(UNSIGNED, method=WATCH), timeout=TIMEOUT_S
    )
    next(watch)
    client.admin.RevokeClientKey(pb.RevokeClientKeyRequest(key_id=client.key_id), timeout=TIMEOUT_S)
    server.client_keys.refresh()
    server._end_streams_of_keys()

    assert watch.is_active()
    watch.cancel()


def test_signed_calls_need_no_database(server: GatekeeperServer, client: Client) -> None:
    server.database.close()

    assert client.evaluate(client.signed()) > 0


def test_use_of_a_key_is_listed(server: GatekeeperServer, client: Client) -> None:
    client.evaluate(client.signed())
    server.client_keys.uses.flush()

    keys = client.admin.ListClientKeys(pb.ListClientKeysRequest(), timeout=TIMEOUT_S).client_keys
    used = {key.key_id: key.last_used_time.seconds for key in keys if key.HasField("last_used_time")}
    assert used.keys() == {client.key_id}
    assert abs(used[client.key_id] - time.time()) < 60


def test_a_bearer_key_is_known_in_every_rpc_until_it_is_revoked(server: GatekeeperServer, client: Client) -> None:
    assert client.evaluate(client.bearer) == client.evaluate()
    assert client.evaluate_many(client.bearer) == 2
    watch = client.stub.WatchFlags(WatchFlagsRequest(), metadata=client.bearer, timeout=TIMEOUT_S)
    next(watch)

    client.admin.RevokeClientKey(pb.RevokeClientKeyRequest(key_id=client.bearer_id), timeout=TIMEOUT_S)

    assert refusal_of(lambda: list(watch)) == UNAUTHENTICATED
    assert refusal_of(lambda: client.evaluate(client.bearer)) == UNAUTHENTICATED
    assert client.evaluate() > 0


def test_a_key_is_used_in_its_own_way_alone(client: Client) -> None:
    signing_secret_as_bearer = (("authorization", f"Bearer gkc_{client.key_id[3:]}_{client._secret.decode()}"),)

    assert refusal_of(lambda: client.evaluate((*client.bearer, *client.signed()))) == UNAUTHENTICATED
    assert refusal_of(lambda: client.evaluate(signing_secret_as_bearer)) == UNAUTHENTICATED


def test_either_credential_is_enough_where_a_key_is_required(start_server: StartServer, dsn: str) -> None:
    for client in client_of(start_server(evaluation_access="key"), dsn):
        assert client.evaluate(client.bearer) == client.evaluate(client.signed()) > 0
        assert client.evaluate_many(client.bearer) == client.evaluate_many(client.signed(UNSIGNED, method=STREAM)) == 2
        for call in (client.evaluate, client.evaluate_many, client.watch):
            assert refusal_of(call) == UNAUTHENTICATED


def test_a_bearer_key_is_refused_where_calls_must_be_signed(strict: Client) -> None:
    assert refusal_of(lambda: strict.evaluate(strict.bearer)) == UNAUTHENTICATED
    assert refusal_of(lambda: strict.evaluate_many(strict.bearer)) == UNAUTHENTICATED


def test_the_cause_of_a_refusal_is_in_the_log_and_the_metrics_alone(server: GatekeeperServer, client: Client) -> None:
    wrong = client.bearer_secret[:-4] + "AAAA"
    with capture_logs() as logs:
        refusals = [
            refusal_of(lambda: client.evaluate(client.signed("0" * 64))),
            refusal_of(lambda: client.evaluate(client.signed(authority="elsewhere:50051"))),
            refusal_of(lambda: client.evaluate((("authorization", f"Bearer {wrong}"),))),
        ]

    assert refusals == [UNAUTHENTICATED] * 3
    causes = {log["cause"]: log for log in logs if log["event"] == "client_credential_refused"}
    assert causes.keys() == {"other_body", "wrong_signature", "wrong_secret"}
    assert causes["wrong_signature"]["authority"] == client.authority
    assert wrong not in str(logs)
    counted = {
        sample.labels["cause"]: sample.value
        for family in server.metrics.collect()
        for sample in family.samples
        if sample.name == "gatekeeper_refused_credentials_total" and sample.value
    }
    assert counted == dict.fromkeys(causes, 1.0)


@pytest.mark.parametrize(("listen", "warns"), [("127.0.0.1:0", False), ("0.0.0.0:0", True)])
def test_a_bearer_key_on_a_network_without_tls_is_warned_about(
    start_server: StartServer, dsn: str, listen: str, warns: bool
) -> None:
    with capture_logs() as logs:
        server = start_server(listen=listen)
        next(client_of(server, dsn))
        server._load_credentials()
        server._load_credentials()

    assert [log["log_level"] for log in logs if log["event"] == "bearer_keys_without_tls"] == ["warning"] * warns
