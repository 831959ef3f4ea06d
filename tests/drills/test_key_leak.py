"""key-leak.md, executed: what has leaked works no longer on any instance, and everything else does."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_EDITOR, AdminUser
from gatekeeper_client.v1.api_token_pb2 import ApiToken
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest, LoginResponse, RefreshTokenRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_BEARER, RATE_TIER_STANDARD, ClientKey
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.auth.data_keys import DataKeys, SealError
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.store.migrations.runner import Migrator
from tests.drills.operator import Operator, following
from tests.drills.site import Site, configured, running_site
from tests.faults.figures import BUSY_S
from tests.faults.fleet import ALICE
from tests.faults.load import Load, at_work
from tests.support.clients import send
from tests.support.processes import KEYS, TIMEOUT_S, Gatekeeper, connect
from tests.support.replication import Node, open_folder
from tests.support.servers import Bearer
from tests.support.traces import query
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("D2", "F3")

PASSWORD = "canary-password"
REVOKED_WITHIN_S = 1.0
FILE_READ_WITHIN_S = 10.0
"""Promised for a busy machine."""


@dataclass(frozen=True)
class Holder:
    """Evaluates with a client key."""

    instance: Gatekeeper
    secret: str

    def evaluate(self) -> EvaluateFlagsResponse:
        """Ask for all flags."""
        return evaluates(self.secret)(self.instance)


@dataclass(frozen=True, kw_only=True)
class Drill:
    """An installation that evaluates for holders of keys alone, with one credential of each kind that does not leak."""

    node: Node
    site: Site
    client_key: str
    api_token: str
    login: LoginResponse

    @contextmanager
    def section(self, heading: str, **more: str) -> Iterator[Operator]:
        """Follow a section of key-leak.md, while the holder of another key evaluates; none of these calls may fail."""
        load = Load([Holder(instance, self.client_key) for instance in self.site.instances], per_s=10)
        with self._following(heading, **more) as operator, at_work(load):
            yield operator
        assert load.sent > 0
        assert load.failed == {}, load.complaints

    def _following(self, heading: str, **more: str) -> AbstractContextManager[Operator]:
        first = self.site.instances[0]
        variables = {
            **self.site.settings,
            "GATEKEEPER_DATA_DIR": str(first.data_dir),
            "DATABASE_URL": self.node.dsn,
            "GATEKEEPER_SERVER": f"127.0.0.1:{first.port}",
            "GATEKEEPER_TOKEN": self.site.token,
            "JWT_FILE": str(self.site.secrets / "GATEKEEPER_JWT_KEYS"),
            "DATA_FILE": str(self.site.secrets / "GATEKEEPER_DATA_KEYS"),
            "OPS": f"127.0.0.1:{first.ops_port}",
        }
        return following("key-leak.md", heading, node=self.node, variables=variables | more)

    def is_refused(self, call: Callable[[Gatekeeper], object], *, within_s: float) -> bool:
        """Whether every instance refuses the credentials of a call soon."""
        return all(
            eventually(lambda instance=instance: not accepted(call, instance), timeout_s=within_s + BUSY_S)  # type: ignore[misc]
            for instance in self.site.instances
        )

    def is_accepted(self, call: Callable[[Gatekeeper], object]) -> bool:
        """Whether every instance accepts the credentials of a call."""
        return all(accepted(call, instance) for instance in self.site.instances)

    def others_work(self) -> bool:
        """Whether the credentials that have not leaked are accepted everywhere; the login may need a refresh."""
        renewed = refreshed(self.site.instances[0], self.login)
        calls = (evaluates(self.client_key), lists(self.api_token), lists(renewed.access_token))
        return all(map(self.is_accepted, calls))


@pytest.fixture(scope="module")
def drilled() -> Iterator[Drill]:
    """One for all tests after which it works as before."""
    with drill() as drilled:
        yield drilled


@contextmanager
def drill() -> Iterator[Drill]:
    """Two instances, with somebody who has logged in, a tool and a client."""
    with open_folder() as folder:
        node = configured(Node(folder / "one"))
        node.start()
        Migrator(node.dsn).up()
        try:
            with running_site(folder / "site", node.dsn, instances=0) as site:
                for _ in range(2):
                    site.start(GATEKEEPER_EVALUATION_ACCESS="key")
                admin = site.admin()
                yield Drill(
                    node=node,
                    site=site,
                    client_key=new_client_key(admin).secret,
                    api_token=new_api_token(admin).secret,
                    login=logged_in(site, "ann"),
                )
        finally:
            node.stop()


def new_client_key(admin: AdminServiceStub) -> pb.CreateClientKeyResponse:
    key = ClientKey(name="holder", type=CLIENT_KEY_TYPE_BEARER, tier=RATE_TIER_STANDARD)
    request = pb.CreateClientKeyRequest(client_key=key, request_id=str(uuid4()))
    made: pb.CreateClientKeyResponse = send(admin, "CreateClientKey", request)
    return made


def new_api_token(admin: AdminServiceStub) -> pb.CreateApiTokenResponse:
    token = ApiToken(name="tool", role=ROLE_EDITOR)
    token.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    made: pb.CreateApiTokenResponse = send(admin, "CreateApiToken", pb.CreateApiTokenRequest(api_token=token))
    return made


def logged_in(site: Site, username: str) -> LoginResponse:
    """Make an admin user, and log in."""
    user = AdminUser(username=username, role=ROLE_EDITOR)
    send(site.admin(), "CreateAdminUser", pb.CreateAdminUserRequest(admin_user=user, password=PASSWORD))
    with connect(site.instances[0].port) as channel:
        request = LoginRequest(username=username, password=PASSWORD)
        return AuthServiceStub(channel).Login(request, timeout=TIMEOUT_S)


def refreshed(instance: Gatekeeper, login: LoginResponse) -> LoginResponse:
    """Redeem the refresh token, and keep the new one."""
    with connect(instance.port) as channel:
        request = RefreshTokenRequest(refresh_token=login.refresh_token)
        renewed = AuthServiceStub(channel).RefreshToken(request, timeout=TIMEOUT_S)
    login.refresh_token, login.access_token = renewed.refresh_token, renewed.access_token
    return login


def accepted(call: Callable[[Gatekeeper], object], instance: Gatekeeper) -> bool:
    try:
        call(instance)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return False
        raise
    return True


def evaluates(secret: str) -> Callable[[Gatekeeper], EvaluateFlagsResponse]:
    def evaluate(instance: Gatekeeper) -> EvaluateFlagsResponse:
        with connect(instance.port) as channel:
            stub = EvaluationServiceStub(grpc.intercept_channel(channel, Bearer(secret)))
            return stub.EvaluateFlags(ALICE, timeout=TIMEOUT_S)

    return evaluate


def lists(token: str) -> Callable[[Gatekeeper], object]:
    def list_flags(instance: Gatekeeper) -> object:
        with connect(instance.port) as channel:
            stub = AdminServiceStub(grpc.intercept_channel(channel, Bearer(token)))
            return stub.ListFlags(pb.ListFlagsRequest(), timeout=TIMEOUT_S)

    return list_flags


def test_a_leaked_client_key_is_refused_and_its_successor_is_not(drilled: Drill) -> None:
    leaked = new_client_key(drilled.site.admin())
    key_id = leaked.client_key.key_id
    assert eventually(lambda: drilled.is_accepted(evaluates(leaked.secret)))

    with drilled.section("A client key", KEY_ID=key_id) as operator:
        assert key_id in operator.pastes()
        operator.pastes()
        assert drilled.is_refused(evaluates(leaked.secret), within_s=REVOKED_WITHIN_S)
        (secret,) = re.findall(r"gkc_[\w-]+", operator.pastes())

    assert eventually(lambda: drilled.is_accepted(evaluates(secret)))
    assert drilled.others_work()


def test_a_leaked_api_token_is_refused(drilled: Drill) -> None:
    leaked = new_api_token(drilled.site.admin())
    assert eventually(lambda: drilled.is_accepted(lists(leaked.secret)))

    with drilled.section("An API token", TOKEN_ID=leaked.api_token.token_id) as operator:
        operator.pastes()

    assert drilled.is_refused(lists(leaked.secret), within_s=REVOKED_WITHIN_S)
    assert drilled.others_work()


def test_an_admin_user_whose_password_leaked_is_locked_out(drilled: Drill) -> None:
    leaked = logged_in(drilled.site, "eve")
    assert drilled.is_accepted(lists(leaked.access_token))

    with drilled.section("An admin user", USERNAME="eve") as operator:
        operator.pastes()

    assert drilled.is_refused(lists(leaked.access_token), within_s=REVOKED_WITHIN_S)
    assert not accepted(lambda instance: refreshed(instance, leaked), drilled.site.instances[0])
    assert drilled.others_work()


def test_tokens_of_a_leaked_key_are_refused_and_logins_go_on() -> None:
    with drill() as drilled:
        forged = drilled.site.token  # It was signed with the key, and by no server.
        assert drilled.is_accepted(lists(forged))

        with drilled.section("The key of tokens") as operator:
            operator.pastes()
            assert drilled.is_refused(lists(forged), within_s=FILE_READ_WITHIN_S)
            operator.pastes()
            assert '"action"' in operator.pastes()

        assert drilled.others_work()


def test_a_leaked_data_key_opens_nothing_once_it_is_rotated(drilled: Drill) -> None:
    leaked = DataKeys(KeyRing.parse(KEYS["GATEKEEPER_DATA_KEYS"]))
    before = sealed(drilled.node)
    assert eventually(lambda: all(leaked_kid_in(drilled.site)))
    with drilled.section("The data key") as operator:
        for changes in (1, 2):
            operator.pastes()
            assert eventually(lambda changes=changes: have_changed(drilled.site, changes))  # type: ignore[misc]
        operator.pastes()
        assert eventually(lambda: not any(leaked_kid_in(drilled.site)))
        operator.pastes()
        assert eventually(lambda: have_changed(drilled.site, 3))
    after = sealed(drilled.node)
    assert drilled.others_work()

    assert before
    assert all(opens(leaked, secret) for secret in before)
    assert not any(opens(leaked, secret) for secret in after)


def sealed(node: Node) -> list[bytes]:
    """Everything in the database that is sealed with a data key."""
    rows = query(node.dsn, "SELECT secret FROM client_keys UNION ALL SELECT result FROM idempotency_keys")
    return [bytes(secret) for (secret,) in rows]


def opens(keys: DataKeys, secret: bytes) -> bool:
    try:
        keys.open(secret)
    except SealError:
        return False
    return True


def have_changed(site: Site, times: int) -> bool:
    """Whether every instance uses the data keys that its file was given last."""
    lines = [instance.log.text().splitlines() for instance in site.instances]
    changed = [[line for line in each if "secret_changed" in line and "DATA_KEYS" in line] for each in lines]
    return all(len(each) >= times for each in changed)


def leaked_kid_in(site: Site) -> Iterator[bool]:
    """Whether the snapshot that each instance keeps was sealed with the leaked key, whose name begins every frame."""
    kid = KEYS["GATEKEEPER_DATA_KEYS"].partition(":")[0].encode()
    for instance in site.instances:
        yield bytes([len(kid)]) + kid in (instance.data_dir / "snapshot").read_bytes()
