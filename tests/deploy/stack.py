"""Two instances as an operator has them, and traffic that touches every metric."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_BEARER, RATE_TIER_STANDARD, ClientKey
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    EvaluateFlagsRequest,
    WatchFlagsRequest,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.processes import KEYS, TIMEOUT_S, Gatekeeper, serving
from tests.support.servers import Bearer
from tests.support.tls import HOST, CertificateFolder

# The limits must exist to be counted, and refuse nothing here.
_LIMITS = {"GATEKEEPER_LOGIN_RATE": "6000/min burst 6000", "GATEKEEPER_MUTATION_RATE": "6000/min burst 6000"}
_UNKNOWN_KEY = f"gkc_{'0' * 20}_{'A' * 43}"
_numbers = count()


@dataclass(frozen=True, kw_only=True)
class Stack:
    """An instance with one worker and TLS, and one with two workers, on one database."""

    one: Gatekeeper
    two: Gatekeeper
    certificates: CertificateFolder
    admin: AdminServiceStub
    client_key: str

    @property
    def ops_ports(self) -> dict[str, int]:
        """Operations ports by the name of the instance."""
        return {"gatekeeper-1": self.one.ops_port, "gatekeeper-2": self.two.ops_port}

    def make_traffic(self) -> None:
        """Change a flag, evaluate and watch on both instances, and let some calls fail."""
        key = f"flag-{next(_numbers)}"
        self.admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=key, enabled=True)), timeout=TIMEOUT_S)
        self.admin.ListAdminUsers(pb.ListAdminUsersRequest(), timeout=TIMEOUT_S)
        for channel in (self.certificates.channel(self.one.port), self.two.channel()):
            with channel:
                _evaluate(channel, key, self.client_key)
                _fail(channel)
        with socket.create_connection((HOST, self.one.port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")  # No TLS, where TLS is spoken.
            connection.recv(1)


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """Run both instances on an embedded database for the length of the block."""
    certificates = CertificateFolder(folder)
    with ExitStack() as running:
        one = running.enter_context(serving(folder / "one", **KEYS, **_LIMITS, **certificates.variables))
        shared = {"DATABASE_URL": one.dsn, "GATEKEEPER_WORKERS": "2"}
        two = running.enter_context(serving(folder / "two", **KEYS, **_LIMITS, **shared))
        channel = running.enter_context(two.channel())
        admin = AdminServiceStub(grpc.intercept_channel(channel, Bearer(_access_token(channel, one.data_dir))))
        key = ClientKey(name="service", type=CLIENT_KEY_TYPE_BEARER, tier=RATE_TIER_STANDARD)
        secret = admin.CreateClientKey(pb.CreateClientKeyRequest(client_key=key), timeout=TIMEOUT_S).secret
        yield Stack(one=one, two=two, certificates=certificates, admin=admin, client_key=secret)


def _access_token(channel: grpc.Channel, data_dir: Path) -> str:
    password = (data_dir / "admin_password").read_text().strip()
    request = LoginRequest(username="admin", password=password)
    return AuthServiceStub(channel).Login(request, timeout=TIMEOUT_S).access_token


def _evaluate(channel: grpc.Channel, key: str, client_key: str) -> None:
    client = EvaluationServiceStub(channel)
    contexts = [EvaluationContext(user_id=f"user-{number}") for number in range(5)]
    for context in contexts:
        client.EvaluateFlags(EvaluateFlagsRequest(context=context), timeout=TIMEOUT_S)
    client.EvaluateFlags(EvaluateFlagsRequest(context=contexts[0]), metadata=_bearer(client_key), timeout=TIMEOUT_S)
    bulk = BulkEvaluateFlagsRequest(flag_keys=[key], contexts=contexts)
    assert [*client.BulkEvaluateFlags(iter([bulk]), timeout=TIMEOUT_S)]
    watch = client.WatchFlags(WatchFlagsRequest(), timeout=TIMEOUT_S)
    next(watch)
    watch.cancel()


def _fail(channel: grpc.Channel) -> None:
    context = EvaluationContext(user_id="alice")
    evaluate, login = EvaluationServiceStub(channel).EvaluateFlags, AuthServiceStub(channel).Login
    calls: list[Callable[[], object]] = [
        lambda: evaluate(EvaluateFlagsRequest(context=context), metadata=_bearer(_UNKNOWN_KEY), timeout=TIMEOUT_S),
        lambda: evaluate(EvaluateFlagsRequest(context=context, min_revision=10**9 - 1), timeout=TIMEOUT_S),
        lambda: AdminServiceStub(channel).ListFlags(pb.ListFlagsRequest(), timeout=TIMEOUT_S),
        lambda: login(LoginRequest(username="nobody", password="wrong"), timeout=TIMEOUT_S),
    ]
    for call in calls:
        with suppress(grpc.RpcError):
            call()


def _bearer(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)
