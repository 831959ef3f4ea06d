"""No secret that an operator gives shows anywhere: not in a log, an answer, a metric, an export, or in a child."""

import signal
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_client.v1.user_pb2 import User
from tests.support.processes import TIMEOUT_S, Gatekeeper, run, start, stop
from tests.support.scram import password_database, replace
from tests.support.servers import Bearer
from tests.support.valkey import valkey

pytestmark = [pytest.mark.timeout(600), pytest.mark.promise("D7")]

DATABASE_PASSWORD = "canary-of-the-database-0123456789"
REDIS_PASSWORD = "canary-of-redis-0123456789"
ADMIN_PASSWORD = "canary-of-the-first-one"
METRICS_TOKEN = "canary-of-the-metrics-0123456789"
TOKEN_KEY = "canary-of-tokens-0123456789abcdef0123456789"  # pragma: allowlist secret
DATA_KEY = "canary-of-data-0123456789abcdef0123456789"
ERASURE_KEY = "canary-of-erasures-0123456789abcdef"
AUDIT_KEY = b64encode(b"canary-of-checkpoints-0123456789").decode()  # pragma: allowlist secret
CANARIES = (
    *(DATABASE_PASSWORD, REDIS_PASSWORD, ADMIN_PASSWORD, METRICS_TOKEN, TOKEN_KEY, DATA_KEY, ERASURE_KEY, AUDIT_KEY),
)
PERSON = "somebody"


@dataclass(kw_only=True)
class Seen:
    """What anybody but the operator can see, by where."""

    texts: dict[str, str] = field(default_factory=dict)

    def note(self, where: str, text: object) -> None:
        self.texts[where] = self.texts.get(where, "") + str(text)

    def leaks(self) -> list[tuple[str, str]]:
        # The beginning is enough: renderers cut long values.
        return [(where, canary) for where, text in self.texts.items() for canary in CANARIES if canary[:14] in text]


@contextmanager
def given(folder: Path, *, in_files: bool) -> Iterator[dict[str, str]]:
    """The variables of an operator, whose secrets are in the environment or in files."""
    with password_database(folder / "postgres", DATABASE_PASSWORD) as database, ExitStack() as stack:
        redis = stack.enter_context(valkey(folder / "valkey", "--requirepass", REDIS_PASSWORD))
        secrets = {
            "DATABASE_URL": database.dsn(DATABASE_PASSWORD),
            "READ_DATABASE_URL": database.dsn(DATABASE_PASSWORD),
            "REDIS_URL": f"redis://:{REDIS_PASSWORD}@{redis.address}",
            "GATEKEEPER_JWT_KEYS": f"k1:{TOKEN_KEY}",
            "GATEKEEPER_DATA_KEYS": f"d1:{DATA_KEY}",
            "GATEKEEPER_ERASURE_KEY": ERASURE_KEY,
            "GATEKEEPER_AUDIT_SIGNING_KEY": AUDIT_KEY,
            "GATEKEEPER_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "GATEKEEPER_METRICS_TOKEN": METRICS_TOKEN,
        }
        if in_files:
            secrets = {f"{name}_FILE": str(replace(folder / name, text)) for name, text in secrets.items()}
        yield {**secrets, "GATEKEEPER_LOG_LEVEL": "DEBUG"}


@pytest.mark.parametrize(("workers", "in_files"), [(1, True), (2, False)], ids=["alone-files", "fleet-environment"])
def test_no_secret_shows_anywhere(tmp_path: Path, *, in_files: bool, workers: int) -> None:
    seen = Seen()
    with given(tmp_path, in_files=in_files) as variables:
        command = {"data_dir": tmp_path / "data", **variables, "GATEKEEPER_WORKERS": str(workers)}
        with start("serve", **command) as process:  # type: ignore[arg-type]
            try:
                gatekeeper = Gatekeeper(process, tmp_path / "data")
                call_everything(gatekeeper, seen)
                note_processes(process.pid, seen, with_own=in_files)
                note_pages(gatekeeper, seen)
                if in_files:
                    break_a_file(gatekeeper, tmp_path, seen)
                process.send_signal(signal.SIGHUP)
                gatekeeper.logged("roll_finished" if workers > 1 else "secrets_reread")
                note_processes(process.pid, seen, with_own=in_files)
            finally:
                stop(process)
            seen.note("log", gatekeeper.log.whole())
            seen.note("output", gatekeeper.printed.whole())
        for arguments in (
            ("config",),
            ("config", "--check"),
            ("keys", "rotate"),
            ("audit", "export"),
            ("audit", "checkpoint"),
        ):
            seen.note(" ".join(arguments), run(*arguments, **command))  # type: ignore[arg-type]

    assert seen.leaks() == []
    assert {"log", "answers", "errors", "metrics", "audit entries", "export", "children"} <= seen.texts.keys() | (
        {"children"} if workers == 1 else set()
    )


def call_everything(gatekeeper: Gatekeeper, seen: Seen) -> None:
    """Call what succeeds and what fails, and note what is answered."""
    with gatekeeper.channel() as channel:
        auth, evaluation = AuthServiceStub(channel), EvaluationServiceStub(channel)
        token = auth.Login(LoginRequest(username="admin", password=ADMIN_PASSWORD), timeout=TIMEOUT_S).access_token
        admin = AdminServiceStub(grpc.intercept_channel(channel, Bearer(token)))
        admin.CreateUser(pb.CreateUserRequest(user=User(user_id=PERSON)), timeout=TIMEOUT_S)
        seen.note("answers", admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="checkout")), timeout=TIMEOUT_S))
        context = EvaluationContext(user_id=PERSON)
        seen.note("answers", evaluation.EvaluateFlags(EvaluateFlagsRequest(context=context), timeout=TIMEOUT_S))
        seen.note("answers", admin.GetAuditCheckpoint(pb.GetAuditCheckpointRequest(), timeout=TIMEOUT_S))
        seen.note("audit entries", admin.ListAuditEntries(pb.ListAuditEntriesRequest(), timeout=TIMEOUT_S))
        seen.note("export", list(admin.ExportUserData(pb.ExportUserDataRequest(user_id=PERSON), timeout=TIMEOUT_S)))
        seen.note("answers", admin.EraseUser(pb.EraseUserRequest(user_id=PERSON), timeout=TIMEOUT_S))
        failures: list[Callable[[], object]] = [
            lambda: auth.Login(LoginRequest(username="admin", password=f"{ADMIN_PASSWORD}-typo"), timeout=TIMEOUT_S),
            lambda: admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="checkout")), timeout=TIMEOUT_S),
            lambda: AdminServiceStub(channel).ListFlags(
                pb.ListFlagsRequest(), metadata=(("authorization", f"Bearer {TOKEN_KEY}"),), timeout=TIMEOUT_S
            ),
        ]
        for fail in failures:
            with pytest.raises(grpc.RpcError) as failed:
                fail()
            seen.note("errors", failed.value)


def note_processes(pid: int, seen: Seen, *, with_own: bool) -> None:
    """Note the environment of all children, and of the process itself where no secret is in it; and command lines."""
    children = descendants(pid)
    for child in [*children, *([pid] if with_own else [])]:
        seen.note("children", Path(f"/proc/{child}/environ").read_bytes().decode(errors="replace"))
    for each in [pid, *children]:
        seen.note("command lines", Path(f"/proc/{each}/cmdline").read_bytes().decode(errors="replace"))


def descendants(pid: int) -> list[int]:
    children = [int(child) for thread in Path(f"/proc/{pid}/task").iterdir() for child in children_of(thread)]
    return [found for child in children for found in (child, *descendants(child))]


def children_of(thread: Path) -> list[str]:
    try:
        return (thread / "children").read_text().split()
    except FileNotFoundError:  # It has ended since it was listed.
        return []


def note_pages(gatekeeper: Gatekeeper, seen: Seen) -> None:
    """Note what the operations port says, and that it asks for the token."""
    pages = f"http://127.0.0.1:{gatekeeper.ops_port}"
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{pages}/metrics", timeout=TIMEOUT_S)
    seen.note("errors", f"{refused.value.headers} {refused.value.read()!r}")
    asked = Request(f"{pages}/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
    metrics = urlopen(asked, timeout=TIMEOUT_S).read().decode()
    assert "gatekeeper_snapshot_revision" in metrics
    seen.note("metrics", metrics)
    seen.note("metrics", urlopen(f"{pages}/readyz", timeout=TIMEOUT_S).read().decode())


def break_a_file(gatekeeper: Gatekeeper, folder: Path, seen: Seen) -> None:
    """Put secrets where others belong, wait until that is reported, and put the right ones back."""
    for name, wrong in {"DATABASE_URL": f"{DATABASE_PASSWORD}:x", "GATEKEEPER_JWT_KEYS": TOKEN_KEY}.items():
        right = (folder / name).read_text().rstrip()
        replace(folder / name, wrong)
        gatekeeper.log.first(lambda line, name=name: "secret_not_used" in line and f"{name}_FILE" in line)  # type: ignore[misc]
        note_pages(gatekeeper, seen)
        replace(folder / name, right)
