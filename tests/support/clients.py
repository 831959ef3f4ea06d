"""What the tests of RPCs share: an installation, who may call what, what is stored, what a refusal says."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from threading import Barrier
from types import MappingProxyType
from typing import Any, LiteralString, TypeVar

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # Published without py.typed.
from grpc_status import rpc_status
from psycopg import sql

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.audit_pb2 import AuditAnchor
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext, EvaluationDetail
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from tests.support.databases import new_database
from tests.support.servers import KEYS, connect, settings_for_tests, token_for

SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"]
# Said here once more: a row of the policy table that changes by mistake turns tests red.
LEAST_ROLE: Mapping[str, Role] = MappingProxyType(
    dict.fromkeys(
        (
            *("GetFlag", "ListFlags", "ListTargets", "GetSegment", "ListSegments", "ListSegmentMembers"),
            *("GetUser", "ListUsers", "ListAuditEntries", "VerifyAuditLog", "GetAuditCheckpoint", "ChangePassword"),
            *("ListSessions", "RevokeSession", "CreateApiToken", "ListApiTokens", "RevokeApiToken"),
            *("GetFlagUsage", "ListUnknownFlagKeys", "PreviewFlagChange"),
        ),
        Role.VIEWER,
    )
    | dict.fromkeys(
        (
            *("CreateFlag", "UpdateFlag", "DeleteFlag", "AddTargets", "RemoveTargets", "ImportTargets"),
            *("CreateSegment", "UpdateSegment", "DeleteSegment", "AddSegmentMembers", "RemoveSegmentMembers"),
            "ApplyConfiguration",
            *("CreateUser", "UpdateUser", "DeleteUser"),
        ),
        Role.EDITOR,
    )
    | dict.fromkeys(
        (
            *("CreateAdminUser", "ListAdminUsers", "UpdateAdminUser", "DeleteAdminUser", "ListAuthEvents"),
            *("CreateClientKey", "ListClientKeys", "RevokeClientKey", "ExportUserData", "EraseUser"),
        ),
        Role.ADMIN,
    )
)
# What only a person does: a token makes no credentials, and ends none.
NOT_FOR_API_TOKENS = frozenset(
    (
        *("CreateApiToken", "RevokeApiToken", "CreateClientKey", "RevokeSession"),
        *("CreateAdminUser", "UpdateAdminUser", "DeleteAdminUser", "ChangePassword"),
    )
)
SEGMENT_KEYS = tuple(f"segment-{number:02}" for number in range(64))
TIMEOUT_S = 60.0

_T = TypeVar("_T")
_numbers = count()


# --- An installation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A server on a database of its own, and a channel for each kind of caller; None is a caller without a token."""

    dsn: str
    server: GatekeeperServer
    channels: Mapping[Role | None, grpc.Channel]

    @property
    def admin(self) -> AdminServiceStub:
        """The AdminService for an editor."""
        return self.admin_as(Role.EDITOR)

    def admin_as(self, caller: Role | None) -> AdminServiceStub:
        """The AdminService for the admin user of a role; None: without a token."""
        return AdminServiceStub(self.channels[caller])

    def evaluate(self, flag_key: str, user_id: str) -> EvaluationDetail:
        """Evaluate one flag for one user; the answer for an unknown flag is empty."""
        request = EvaluateFlagsRequest(
            context=EvaluationContext(user_id=user_id), flag_keys=[flag_key], include_details=True
        )
        return EvaluationServiceStub(self.channels[None]).EvaluateFlags(request, timeout=TIMEOUT_S).details[flag_key]

    def revision(self) -> int:
        """Read the revision of the head."""
        ((revision,),) = self.query("SELECT revision FROM revision_head")
        return int(revision)

    def audit_anchor(self) -> AuditAnchor:
        """Read where the audit log stands."""
        ((seq, digest),) = self.query("SELECT audit_seq, audit_hash FROM revision_head")
        return AuditAnchor(seq=seq, hash=digest)

    def query(self, text: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """Read rows, through the server's own connections: they are warm, a new one would cost more than the test."""
        with self.server.database.read() as conn:
            return conn.execute(text, parameters).fetchall()

    def execute(self, text: LiteralString, *parameters: object) -> None:
        with self.server.database.write() as conn:
            conn.execute(text, parameters)

    def contents(self, *, but: str = "") -> dict[str, list[str]]:
        """Everything that the database holds, but for one table: the rows of each table as text, sorted."""
        select = sql.SQL("SELECT {}, t::text FROM {} AS t")
        held: dict[str, list[str]] = {}
        with self.server.database.read() as conn:
            selects = [
                select.format(sql.Literal(table), sql.Identifier(table)) for (table,) in conn.execute(_TABLES, [but])
            ]
            for table, row in conn.execute(sql.SQL(" UNION ALL ").join(selects) + sql.SQL(" ORDER BY 1, 2")):
                held.setdefault(table, []).append(row)
        return held


_TABLES = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
    AND relname <> %s
    -- Written in the background, whatever a call does.
    AND relname NOT IN ('usage_coverage', 'flag_last_named', 'flag_usage', 'unknown_flag_keys')
"""


@contextmanager
def installed(
    postgres: str, *, through: Callable[[str], AbstractContextManager[str]] = nullcontext
) -> Iterator[Installation]:
    """Run an installation that knows the segments of `SEGMENT_KEYS` and one admin user of each role.

    `through` leads the server to the database of a DSN by another one.
    """
    with ExitStack() as stack:
        dsn = stack.enter_context(new_database(postgres))
        server_dsn = stack.enter_context(through(dsn))
        with psycopg.connect(dsn) as conn:
            conn.execute(_INSERT_SEGMENTS, [list(SEGMENT_KEYS)])
        # A short poll ends the server's threads soon.
        server = GatekeeperServer(settings_for_tests(refresh_interval_s=0.1), dsn=server_dsn, keys=KEYS)
        server.start()
        stack.callback(server.stop)
        tokens = {None: ""} | {role: token_for(dsn, role) for role in Role}
        channels = {role: stack.enter_context(connect(server, token=token)) for role, token in tokens.items()}
        yield Installation(dsn=dsn, server=server, channels=channels)


_INSERT_SEGMENTS = """
    INSERT INTO segments (key, match, create_time, update_time, revision)
    SELECT unnest(%s::text[]), 'ALL', now(), now(), 0
"""


# --- Asking ----------------------------------------------------------------------------------------------------------


def new_key() -> str:
    """Make a flag key that no other test uses, nor a prefix of its keys."""
    return f"flag-{next(_numbers)}."


def created(admin: AdminServiceStub, **fields: Any) -> Flag:
    """Create a flag, under a new key unless `fields` has one."""
    return admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(**{"key": new_key(), **fields})), timeout=TIMEOUT_S).flag


def targets_of(admin: AdminServiceStub, key: str) -> dict[str, bool]:
    """Read the targets of a flag: user ids, and what each gets."""
    page = send(admin, "ListTargets", pb.ListTargetsRequest(flag_key=key, page_size=1_000))
    return {target.user_id: target.value for target in page.targets}


def send(admin: AdminServiceStub, rpc: str, *requests: Any) -> Any:
    """Call an RPC by its name. Only a stream takes other than one request; what is streamed back comes as a list."""
    method = SERVICE.methods_by_name[rpc]
    answer = getattr(admin, rpc)(iter(requests) if method.client_streaming else requests[0], timeout=TIMEOUT_S)
    return list(answer) if method.server_streaming else answer


def race(acts: list[Callable[[], _T]]) -> list[_T]:
    """Do all acts at the same moment, each on a thread of its own, and return what each returned."""
    start = Barrier(len(acts))

    def run(act: Callable[[], _T]) -> _T:
        start.wait(TIMEOUT_S)
        return act()

    with ThreadPoolExecutor(len(acts)) as threads:
        return list(threads.map(run, acts))


# --- Refusals --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """All that a program can read in a failed call."""

    code: grpc.StatusCode
    reason: str
    metadata: Mapping[str, str]
    fields: tuple[str, ...] = ()

    def after(self, *, applied_messages: int, applied_revision: int) -> "Refusal":
        """Return the refusal as a stream words it that had come so far."""
        progress = {"applied_messages": str(applied_messages), "applied_revision": str(applied_revision)}
        return replace(self, metadata={**self.metadata, **progress})


def refusal_of(act: Callable[[], object]) -> Refusal:
    """Make a call that must fail, and return why it did."""
    with pytest.raises(grpc.RpcError) as failure:
        act()
    return _refusal(failure.value)


def outcome_of(act: Callable[[], object]) -> object:
    """Make a call and return its answer or why it failed."""
    try:
        return act()
    except grpc.RpcError as error:
        return _refusal(error)


def _refusal(error: Any) -> Refusal:
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)
    assert status is not None, f"an error without details: {error}"
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
    assert info.domain == "gatekeeper"
    fields = tuple(violation.field for violation in bad_request.field_violations)
    return Refusal(error.code(), info.reason, dict(info.metadata), fields)


def refused_by(rpc: str, refusal: Refusal) -> Refusal:
    """Return a refusal as an RPC words it that has done nothing.

    An import tells how far it had come, and a configuration in which part of it the fault is.
    """
    if rpc == "ApplyConfiguration" and refusal.code is grpc.StatusCode.NOT_FOUND:
        return replace(refusal, metadata={**refusal.metadata, "field": "flag_deletions[0]"})
    method = SERVICE.methods_by_name[rpc]
    is_import = method.client_streaming and not method.server_streaming
    return refusal.after(applied_messages=0, applied_revision=0) if is_import else refusal


def invalid(field: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", {"field": field}, (field,))


def denial(role: Role, required: Role) -> Refusal:
    roles = {"role": role.name, "required_role": required.name}
    return Refusal(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", roles)


def not_found(kind: str, **key: str) -> Refusal:
    """Return the refusal that names the key of a thing that is not there, such as `flag_key`."""
    return Refusal(grpc.StatusCode.NOT_FOUND, f"{kind}_NOT_FOUND", key)


def already_exists(**key: str) -> Refusal:
    """Return the refusal that names a key that is taken, such as `flag_key`."""
    return Refusal(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS", key)


def no_flag(key: str) -> Refusal:
    return not_found("FLAG", flag_key=key)


def no_segment(key: str) -> Refusal:
    return not_found("SEGMENT", segment_key=key)


def no_user(user_id: str) -> Refusal:
    return not_found("USER", user_id=user_id)


def no_admin_user(username: str) -> Refusal:
    return not_found("ADMIN_USER", username=username)


def no_client_key(key_id: str) -> Refusal:
    return not_found("CLIENT_KEY", key_id=key_id)


def no_api_token(token_id: str) -> Refusal:
    return not_found("API_TOKEN", token_id=token_id)


def changed_since_read(*, current_etag: str) -> Refusal:
    return Refusal(grpc.StatusCode.ABORTED, "ETAG_MISMATCH", {"current_etag": current_etag})


UNAUTHENTICATED = Refusal(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", {})
NOT_FOR_TOKENS = Refusal(grpc.StatusCode.PERMISSION_DENIED, "API_TOKEN_NOT_ALLOWED", {})
NOT_A_MESSAGE = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", {})
