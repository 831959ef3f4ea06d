"""Secrets in files are rotated while calls go on: passwords of database and Redis, the keys of tokens and of data."""

import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import grpc
import pytest

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest, ListFlagsRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.processes import KEYS, TIMEOUT_S, Gatekeeper, start, stop
from tests.support.scram import PasswordDatabase, password_database, replace
from tests.support.servers import Bearer
from tests.support.valkey import Valkey, valkey
from tests.support.waiting import eventually

pytestmark = [pytest.mark.timeout(600), pytest.mark.promise("D2")]

PASSWORD = "first-password-of-the-role"
ADMIN_PASSWORD = "correct horse battery"
ALICE = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))
OLD, NEW = "old:0123456789abcdef0123456789abcdef", "new:fedcba9876543210fedcba9876543210"
# Runs a `gatekeeper` command that does not check files by itself.
NEVER = """
from gatekeeper_grpc.cli import main as cli
from gatekeeper_grpc.lifecycle import secret_watch
secret_watch._INTERVAL_S = 3600.0
cli.main()
"""
# The same, and a password that is refused is the end of it.
FORGETS = f"""
from gatekeeper_grpc.store.postgres.servers import Servers
Servers._next = property(lambda _servers: None, lambda _servers, _target: None)
{NEVER}
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PasswordDatabase]:
    with password_database(tmp_path_factory.mktemp("postgres"), PASSWORD) as database:
        yield database


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A server whose secrets are in files."""

    server: Gatekeeper
    database: PasswordDatabase
    folder: Path

    def rotate(self, name: str, content: str) -> None:
        """Replace a file, and wait until it is used."""
        with self.logs("secret_changed"):
            replace(self.folder / name, content)

    @contextmanager
    def logs(self, event: str) -> Iterator[None]:
        """Wait, after the block, until it has had that event logged."""
        before = self.server.log.text().count(f'"{event}"')
        yield
        assert eventually(lambda: self.server.log.text().count(f'"{event}"') > before)

    def token(self) -> str:
        with self.server.channel() as channel:
            request = LoginRequest(username="admin", password=ADMIN_PASSWORD)
            return AuthServiceStub(channel).Login(request, timeout=TIMEOUT_S).access_token

    @contextmanager
    def admin(self, token: str) -> Iterator[AdminServiceStub]:
        with self.server.channel() as channel:
            yield AdminServiceStub(grpc.intercept_channel(channel, Bearer(token)))


@contextmanager
def installed(
    database: PasswordDatabase, folder: Path, *, program: tuple[str, ...] = ("gatekeeper_grpc",), **secrets: str
) -> Iterator[Installation]:
    database.set_password(PASSWORD)
    contents = {
        "DATABASE_URL": database.dsn(PASSWORD),
        **KEYS,
        "GATEKEEPER_JWT_KEYS": OLD,
        "GATEKEEPER_ADMIN_PASSWORD": ADMIN_PASSWORD,
        **secrets,
    }
    files = {f"{name}_FILE": str(replace(folder / name, content)) for name, content in contents.items()}
    with start("serve", data_dir=folder / "data", program=program, **files) as process:
        try:
            yield Installation(server=Gatekeeper(process, folder / "data"), database=database, folder=folder)
        finally:
            stop(process)


@contextmanager
def load(installation: Installation) -> Iterator[Counter[str]]:
    """Evaluate, read and write for the length of the block; yields how many calls of each kind ended how."""
    ended, done = Counter[str](), threading.Event()
    with ExitStack() as stack:
        admin = stack.enter_context(installation.admin(installation.token()))
        evaluation = EvaluationServiceStub(stack.enter_context(installation.server.channel()))
        calls: dict[str, Callable[[], object]] = {
            "evaluate": lambda: evaluation.EvaluateFlags(ALICE, timeout=TIMEOUT_S),
            "read": lambda: admin.ListFlags(ListFlagsRequest(), timeout=TIMEOUT_S),
            "write": lambda: admin.CreateFlag(CreateFlagRequest(flag=Flag(key=f"f{uuid4().hex}")), timeout=TIMEOUT_S),
        }
        threads = [threading.Thread(target=repeated, args=(name, call, ended, done)) for name, call in calls.items()]
        for thread in threads:
            thread.start()
        try:
            yield ended
        finally:
            done.set()
            for thread in threads:
                thread.join()


def repeated(name: str, call: Callable[[], object], ended: Counter[str], done: threading.Event) -> None:
    while not done.wait(0.01):
        call_once(name, call, ended)


def call_once(name: str, call: Callable[[], object], ended: Counter[str]) -> None:
    try:
        call()
        ended[name] += 1
    except grpc.RpcError as error:
        ended[f"{name}: {error.code().name}"] += 1


def test_rotating_the_password_of_the_database_fails_no_call(database: PasswordDatabase, tmp_path: Path) -> None:
    with installed(database, tmp_path) as installation, load(installation) as ended:
        for number in range(3):
            before = database.sessions()
            with installation.logs("secret_not_used"):
                replace(tmp_path / "DATABASE_URL", database.dsn(f"password-{number}"))
            with installation.logs("secret_changed"):
                database.set_password(f"password-{number}")
            # All that serve calls are new, so made with the new password. Those that watch and listen stay.
            assert eventually(lambda before=before: len(database.sessions() - before) >= 2)  # type: ignore[misc]
        served = ended.copy()
        assert eventually(lambda: all(ended[kind] > served[kind] + 10 for kind in ("evaluate", "read", "write")))

    assert set(ended) == {"evaluate", "read", "write"}


@pytest.mark.promise("B3")
@pytest.mark.parametrize("replaces_file", [True, False], ids=["rotated", "twin: the file stays"])
def test_rotating_the_password_of_redis_fails_no_call(
    database: PasswordDatabase, tmp_path: Path, *, replaces_file: bool
) -> None:
    with (
        valkey(tmp_path / "valkey", "--requirepass", "canary7f3a-first") as redis,
        installed(database, tmp_path, REDIS_URL=f"redis://:canary7f3a-first@{redis.address}") as installation,
        load(installation) as ended,
    ):
        log = installation.server.log
        if replaces_file:  # Before the server knows the password, so that the old one is in use for a while.
            replace(tmp_path / "REDIS_URL", f"redis://:canary7f3a-second@{redis.address}")
            assert "Redis is away" in installation.server.logged("secret_not_used")["error"]
        redis.set_password("canary7f3a-second")
        if replaces_file:
            installation.server.logged("secret_changed", variable="REDIS_URL_FILE")
        redis.end_connections()

        assert eventually(lambda: announces(redis)) if replaces_file else installation.server.logged("redis_away")
        served = ended.copy()
        assert eventually(lambda: all(ended[kind] > served[kind] + 10 for kind in ("evaluate", "read", "write")))

    assert set(ended) == {"evaluate", "read", "write"}
    assert "canary7f3a" not in log.text()


def announces(redis: Valkey) -> bool:
    """Whether a revision is published soon."""
    with redis.client() as client, client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
        pubsub.psubscribe("gatekeeper:*:revision")
        received = [pubsub.get_message(timeout=1.0) for _ in range(2)]  # The first one confirms the subscription.
        return any(message and message["type"] == "pmessage" for message in received)


def test_rotating_the_keys_of_tokens_and_data_fails_no_call(database: PasswordDatabase, tmp_path: Path) -> None:
    data = KEYS["GATEKEEPER_DATA_KEYS"]
    with installed(database, tmp_path) as installation, load(installation) as ended:
        for ring in (f"{OLD},{NEW}", f"{NEW},{OLD}"):
            installation.rotate("GATEKEEPER_JWT_KEYS", ring)
        for ring in (f"{data},{NEW}", f"{NEW},{data}"):
            installation.rotate("GATEKEEPER_DATA_KEYS", ring)
        served = ended.copy()
        assert eventually(lambda: all(ended[kind] > served[kind] + 10 for kind in ("evaluate", "read", "write")))

    assert set(ended) == {"evaluate", "read", "write"}


def test_a_key_that_is_dropped_from_the_file_is_refused(database: PasswordDatabase, tmp_path: Path) -> None:
    with installed(database, tmp_path) as installation:
        old = installation.token()
        installation.rotate("GATEKEEPER_JWT_KEYS", NEW)
        new = installation.token()

        with installation.admin(new) as admin:
            admin.ListFlags(ListFlagsRequest(), timeout=TIMEOUT_S)
        with installation.admin(old) as admin, pytest.raises(grpc.RpcError) as refused:
            admin.ListFlags(ListFlagsRequest(), timeout=TIMEOUT_S)

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("GATEKEEPER_JWT_KEYS", "canary7f3a", "key 1 must be written kid:secret"),
        ("GATEKEEPER_ERASURE_KEY", "canary7f3a" * 4, "has another secret than before"),
        ("DATABASE_URL", "canary7f3a://nowhere", "cannot be read"),
    ],
    ids=["keys", "erasure key", "URL"],
)
def test_a_broken_file_keeps_the_old_value_and_is_reported(
    database: PasswordDatabase, tmp_path: Path, name: str, content: str, fault: str
) -> None:
    with installed(database, tmp_path) as installation:
        token = installation.token()
        replace(tmp_path / name, content)
        reported = installation.server.logged("secret_not_used")
        ready = urlopen(f"http://127.0.0.1:{installation.server.ops_port}/readyz").read().decode()
        metrics = urlopen(f"http://127.0.0.1:{installation.server.ops_port}/metrics").read().decode()
        with installation.admin(token) as admin:
            admin.CreateFlag(CreateFlagRequest(flag=Flag(key=f"f{uuid4().hex}")), timeout=TIMEOUT_S)
        said = installation.server.log.text() + ready

    assert reported["error"].startswith(f"{name}_FILE: '{tmp_path / name}' has a new value, which cannot be used: ")
    assert fault in reported["error"]
    assert f"an old secret is in use: {name}_FILE" in ready
    assert re.search(r"^gatekeeper_secret_file_faults 1.0$", metrics, re.MULTILINE)
    assert "canary7f3a" not in said + metrics


@pytest.mark.parametrize("remembers", [True, False], ids=["remembered", "twin: forgotten"])
def test_a_refused_password_makes_the_one_in_the_file_be_tried_at_once(
    database: PasswordDatabase, tmp_path: Path, *, remembers: bool
) -> None:
    """Between the new password of the role and the next check of the file, no call fails for want of a connection."""
    with installed(database, tmp_path, program=("-c", NEVER if remembers else FORGETS)) as installation:
        token = installation.token()
        with installation.logs("secret_not_used"):
            replace(tmp_path / "DATABASE_URL", database.dsn("another-password"))
            installation.server.process.send_signal(signal.SIGHUP)
        database.set_password("another-password")
        database.end_sessions()
        ended = Counter[str]()
        with installation.admin(token) as admin:
            read = lambda: admin.ListFlags(ListFlagsRequest(), timeout=TIMEOUT_S)  # noqa: E731
            call_once("read", read, ended)

    assert ended.keys() == {"read" if remembers else "read: UNAVAILABLE"}


def test_at_sighup_a_single_process_rereads_its_files(database: PasswordDatabase, tmp_path: Path) -> None:
    with installed(database, tmp_path, program=("-c", NEVER)) as installation:
        token = installation.token()
        database.set_password("another-password")
        replace(tmp_path / "DATABASE_URL", database.dsn("another-password"))
        database.end_sessions()
        with installation.admin(token) as admin:
            # The twin: without a check, the old password is used, which the server refuses.
            with pytest.raises(grpc.RpcError) as refused:
                admin.ListFlags(ListFlagsRequest(), timeout=TIMEOUT_S)
            installation.server.process.send_signal(signal.SIGHUP)
            installation.server.logged("secret_changed")
            admin.ListFlags(ListFlagsRequest(), timeout=TIMEOUT_S)

        assert installation.server.process.poll() is None

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
