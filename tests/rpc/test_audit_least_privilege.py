"""A server whose database role owns nothing: everything works, and the role cannot rewrite the audit log."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Value
from psycopg import errors as pg
from psycopg import sql

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_VIEWER, AdminUser
from gatekeeper_client.v1.api_token_pb2 import ApiToken
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_SIGNING, RATE_TIER_STANDARD, ClientKey
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EQUALS, Condition, Segment
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.auth.passwords import Passwords
from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.lifecycle.prepare_database import prepare_database
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.audit.reconcile import reconcile
from gatekeeper_grpc.store.maintenance import Maintenance
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.privileges import TABLE_PRIVILEGES, grants, rewriting_powers
from tests.support.clients import SERVICE, TIMEOUT_S, send
from tests.support.operators import in_s
from tests.support.servers import KEYS, connect, settings_for_tests, token_for

pytestmark = pytest.mark.promise("D8")

PASSWORD = "canary-password"
NEW_PASSWORD = "another canary-password"


@pytest.fixture
def role(postgres: str) -> Iterator[str]:
    """A role that owns nothing and may nothing; with a name that must be quoted."""
    name = f"Serving {uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        yield name
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def serving_dsn(role: str, dsn: str) -> Iterator[str]:
    """The DSN for a role with exactly what `gatekeeper grants` gives it."""
    run(dsn, grants(role))
    yield psycopg.conninfo.make_conninfo(dsn, user=role)
    run(dsn, "DROP OWNED BY {} CASCADE", role)


@pytest.fixture
def serving(serving_dsn: str) -> Iterator[GatekeeperServer]:
    """A server that serves with the lesser role."""
    server = GatekeeperServer(settings_for_tests(), dsn=serving_dsn, keys=KEYS)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def admin(serving: GatekeeperServer, dsn: str) -> Iterator[AdminServiceStub]:
    """A client with role admin of `serving`."""
    token = token_for(dsn, Role.ADMIN)
    password_hash = Passwords(cost=10).hash(PASSWORD)
    with psycopg.connect(dsn) as conn:
        conn.execute("UPDATE admin_user SET password_hash = %s", (password_hash,))
    with connect(serving, token=token) as channel:
        yield AdminServiceStub(channel)


_FLAG = Flag(key="alpha")
_FLAG_ON = Flag(key="alpha", enabled=True, segment_targets=[SegmentTarget(segment_key="beta", value=True)])
_ANNA = User(user_id="anna")
_ANNA.attributes["plan"] = "pro"
_CONDITION = Condition(attribute="plan", operator=CONDITION_OPERATOR_EQUALS, values=[Value(string_value="pro")])

# In an order in which each succeeds; ChangePassword last, for it ends the session.
MUTATIONS: tuple[tuple[str, Any], ...] = (
    ("CreateSegment", pb.CreateSegmentRequest(segment=Segment(key="beta", conditions=[_CONDITION]))),
    ("AddSegmentMembers", pb.AddSegmentMembersRequest(segment_key="beta", user_ids=["anna"])),
    ("RemoveSegmentMembers", pb.RemoveSegmentMembersRequest(segment_key="beta", user_ids=["anna"])),
    (
        "UpdateSegment",
        pb.UpdateSegmentRequest(
            segment=Segment(key="beta", description="b"), update_mask=FieldMask(paths=["description"])
        ),
    ),
    ("CreateFlag", pb.CreateFlagRequest(flag=_FLAG, request_id=str(uuid4()))),
    (
        "UpdateFlag",
        pb.UpdateFlagRequest(flag=_FLAG_ON, update_mask=FieldMask(paths=["enabled", "segment_targets"])),
    ),
    ("AddTargets", pb.AddTargetsRequest(flag_key="alpha", user_ids=["anna", "bob"], value=True)),
    ("RemoveTargets", pb.RemoveTargetsRequest(flag_key="alpha", user_ids=["bob"])),
    ("ImportTargets", pb.ImportTargetsRequest(flag_key="alpha", user_ids=["bob"], value=False)),
    (
        "ApplyConfiguration",
        pb.ApplyConfigurationRequest(
            flags=[Flag(key="alpha"), Flag(key="gamma", segment_targets=_FLAG_ON.segment_targets)],
            segments=[Segment(key="beta"), Segment(key="delta")],
            members=[pb.ConfiguredMembers(segment_key="beta", user_ids=["dan"], remove_others=True)],
            targets=[pb.ConfiguredTargets(flag_key="alpha", value=True, user_ids=["eve"], remove_others=True)],
            users=[User(user_id="eve"), User(user_id="fay")],
        ),
    ),
    (
        "ApplyConfiguration",
        pb.ApplyConfigurationRequest(
            flag_deletions=[pb.ConfigurationDeletion(key="gamma")],
            segment_deletions=[pb.ConfigurationDeletion(key="delta")],
            user_deletions=[pb.ConfigurationDeletion(key="fay")],
        ),
    ),
    ("CreateUser", pb.CreateUserRequest(user=_ANNA)),
    ("UpdateUser", pb.UpdateUserRequest(user=User(user_id="anna"), update_mask=FieldMask(paths=["attributes"]))),
    ("DeleteUser", pb.DeleteUserRequest(user_id="anna")),
    ("EraseUser", pb.EraseUserRequest(user_id="bob")),
    ("DeleteFlag", pb.DeleteFlagRequest(key="alpha")),
    ("DeleteSegment", pb.DeleteSegmentRequest(key="beta")),
    (
        "CreateClientKey",
        pb.CreateClientKeyRequest(
            client_key=ClientKey(name="shop", tier=RATE_TIER_STANDARD, type=CLIENT_KEY_TYPE_SIGNING)
        ),
    ),
    ("RevokeClientKey", lambda admin: pb.RevokeClientKeyRequest(key_id=_only_key_id(admin))),
    (
        "CreateApiToken",
        pb.CreateApiTokenRequest(api_token=ApiToken(name="deploy", role=ROLE_VIEWER, expire_time=in_s(3_600))),
    ),
    ("RevokeApiToken", lambda admin: pb.RevokeApiTokenRequest(token_id=_only_token_id(admin))),
    (
        "CreateAdminUser",
        pb.CreateAdminUserRequest(
            admin_user=AdminUser(username="eve", role=ROLE_VIEWER, enabled=True), password=PASSWORD
        ),
    ),
    (
        "UpdateAdminUser",
        pb.UpdateAdminUserRequest(
            admin_user=AdminUser(username="eve"), update_mask=FieldMask(paths=["password"]), password=NEW_PASSWORD
        ),
    ),
    ("DeleteAdminUser", pb.DeleteAdminUserRequest(username="eve")),
    ("ChangePassword", pb.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW_PASSWORD)),
)


def query(dsn: str, text: LiteralString) -> list[Any]:
    """Read rows as the owner of the database."""
    with psycopg.connect(dsn) as conn:
        return conn.execute(text).fetchall()


def run(dsn: str, statement: str, *roles: str) -> None:
    """Run a statement, or a script, in which {} stands for the name of a role."""
    with psycopg.connect(dsn) as conn:
        names = [sql.Identifier(role).as_string(conn) for role in roles]
        conn.execute(statement.format(*names).encode())


def _only_key_id(admin: AdminServiceStub) -> str:
    (key,) = admin.ListClientKeys(pb.ListClientKeysRequest(), timeout=TIMEOUT_S).client_keys
    return key.key_id


def _only_token_id(admin: AdminServiceStub) -> str:
    (token,) = admin.ListApiTokens(pb.ListApiTokensRequest(), timeout=TIMEOUT_S).api_tokens
    return token.token_id


def test_every_mutation_works_with_the_least_privileges(admin: AdminServiceStub, dsn: str) -> None:
    mutations = {method.name for method in SERVICE.methods if "change_reason" in method.input_type.fields_by_name}
    assert {rpc for rpc, _ in MUTATIONS} == mutations

    entries = 0
    for rpc, request in MUTATIONS:
        answer = send(admin, rpc, request(admin) if callable(request) else request)
        entries += len(answer.changes) if rpc == "ApplyConfiguration" else 1

    assert query(dsn, "SELECT count(*) FROM audit_log") == [(entries,)]


def test_the_log_is_verified_and_maintained_with_the_least_privileges(serving_dsn: str) -> None:
    database = Database(serving_dsn)
    database.open()
    try:
        server = GatekeeperServer(settings_for_tests(), dsn=serving_dsn, keys=KEYS)
        maintained = Maintenance(database, server.stores.logins, server.stores.usage)
        server.start()
        maintained.run()
        server.stop()
        assert [report.complete for report in AuditStore(database).verify()] == [True]
    finally:
        database.close()


def test_usage_is_written_read_and_pruned_with_the_least_privileges(
    admin: AdminServiceStub, serving: GatekeeperServer, dsn: str
) -> None:
    admin.CreateFlag(pb.CreateFlagRequest(flag=_FLAG), timeout=TIMEOUT_S)
    run(dsn, "UPDATE usage_coverage SET since = since - interval '1 day'")
    with connect(serving) as channel:
        for keys in (["alpha", "missing"], []):
            request = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"), flag_keys=keys)
            EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S)

    serving.usage.finish(within_s=TIMEOUT_S)

    usage = admin.GetFlagUsage(pb.GetFlagUsageRequest(key="alpha"), timeout=TIMEOUT_S)
    assert sum(count.decisions for hour in usage.usage for count in hour.counts) == 2
    unknown = admin.ListUnknownFlagKeys(pb.ListUnknownFlagKeysRequest(), timeout=TIMEOUT_S).unknown_flag_keys
    assert [key.key for key in unknown] == ["missing"]
    assert not admin.ListFlags(pb.ListFlagsRequest(stale_for=Duration(seconds=3_600)), timeout=TIMEOUT_S).flags
    run(dsn, "UPDATE flag_usage SET start_time = start_time - interval '9 days'")
    assert serving.stores.usage.prune() == 2


def test_the_least_privileges_are_enough_to_reconcile(admin: AdminServiceStub, serving_dsn: str, dsn: str) -> None:
    admin.CreateFlag(pb.CreateFlagRequest(flag=_FLAG), timeout=TIMEOUT_S)
    send(admin, "AddTargets", pb.AddTargetsRequest(flag_key="alpha", user_ids=["anna"], value=True))
    with closing(Database(serving_dsn)) as database:
        database.open()
        with database.read() as conn:
            before = list(reconcile(conn))
        run(serving_dsn, "DELETE FROM targeted_users")
        with database.read() as conn:
            after = list(reconcile(conn))

    assert [result.key for result in before if result.faults] == []
    assert [(result.resource, result.key) for result in after if result.faults] == [("targets", "alpha")]


def test_every_table_has_its_row_of_privileges(dsn: str) -> None:
    tables = query(
        dsn,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        " AND NOT relispartition",
    )

    assert {name for (name,) in tables} == set(TABLE_PRIVILEGES)


_ENTRY = "1, 1, 1, now(), 'admin:eve', 'x', '', 'flag', 'x', '\\x00', '\\x00', '\\x00'"

_HASH = "sha256('x')"

TAMPERING = (
    "UPDATE audit_log SET actor = 'admin:eve'",
    "UPDATE audit_log_p000000 SET actor = 'admin:eve'",
    "DELETE FROM audit_log",
    "DELETE FROM audit_log_p000000",
    "TRUNCATE audit_log",
    "TRUNCATE audit_log_p000000",
    "DROP TABLE audit_log_p000000",
    "ALTER TABLE audit_log DISABLE TRIGGER ALL",
    "ALTER TABLE audit_log_p000000 DISABLE TRIGGER audit_no_change",
    "ALTER TABLE audit_log DETACH PARTITION audit_log_p000000",
    "ALTER TABLE audit_log OWNER TO current_user",
    "DROP TRIGGER audit_no_change ON audit_log",
    "CREATE TRIGGER mine BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()",
    "CREATE RULE mine AS ON INSERT TO audit_log DO INSTEAD NOTHING",
    "CREATE OR REPLACE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE sql AS 'SELECT NULL'",
    "CREATE FUNCTION public.format(text, text, bigint, bigint) RETURNS text LANGUAGE sql AS 'SELECT NULL'",
    "CREATE TABLE audit_log_p000009 PARTITION OF audit_log FOR VALUES FROM (9000000) TO (10000000)",
    "SET session_replication_role = replica",
    "SET ROLE {owner}",
    "SET SESSION AUTHORIZATION {owner}",
    "MERGE INTO audit_log a USING (SELECT 1 AS seq) s ON a.seq = s.seq WHEN MATCHED THEN DELETE",
    f"INSERT INTO audit_log VALUES ({_ENTRY}) ON CONFLICT (seq) DO UPDATE SET actor = 'admin:eve'",
    f"INSERT INTO audit_log_p000000 VALUES ({_ENTRY})",
    "COPY audit_log FROM PROGRAM 'cat /dev/null'",
    "COPY audit_log TO '/tmp/audit_log'",
    "SELECT make_audit_partitions(2, 7)",
    "SELECT guard_audit_table('audit_log', '')",
    "UPDATE audit_documents SET document = 'x'",
    "DELETE FROM audit_documents",
    # An erasure that is not being recorded, and one that is not recorded in the end.
    "SELECT redact_audit_documents(2, '{1}', '{x}', '{x}')",
    "SELECT redact_audit_documents(3, '{1}', '{x}', '{x}')",
    "SELECT redact_audit_documents(NULL, '{1}', '{x}', '{x}')",
    f"INSERT INTO audit_redactions VALUES (3, 1, {_HASH}, {_HASH})",
    f"UPDATE audit_redactions SET new_hash = {_HASH}",
    "DELETE FROM audit_redactions",
    "TRUNCATE audit_redactions",
    f"UPDATE subject_commitments SET commitment = {_HASH}",
    "DELETE FROM subject_commitments",
    "TRUNCATE subject_commitments",
    "CREATE OR REPLACE FUNCTION require_erasure() RETURNS trigger LANGUAGE sql AS 'SELECT NULL'",
    "TRUNCATE audit_documents",
    "INSERT INTO audit_archives VALUES (1, 1, '\\x00', '\\x00', now())",
    "DELETE FROM audit_archives",
    "DROP SCHEMA public CASCADE",
)


@pytest.fixture
def tampered_log(admin: AdminServiceStub, dsn: str) -> list[Any]:
    """The log before anybody tampers with it: of two entries."""
    for key in ("alpha", "beta"):
        admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=key)), timeout=TIMEOUT_S)
    return log_of(dsn)


def log_of(dsn: str) -> list[Any]:
    return query(dsn, "SELECT a::text, d::text FROM audit_log a JOIN audit_documents d USING (seq) ORDER BY seq")


def test_every_tampering_by_the_serving_role_is_refused(serving_dsn: str, dsn: str, tampered_log: list[Any]) -> None:
    ((owner,),) = query(dsn, "SELECT quote_ident(current_user)")
    not_refused = []
    with psycopg.connect(serving_dsn, autocommit=True) as conn:
        for statement in TAMPERING:
            try:
                conn.execute(statement.replace("{owner}", owner).encode())
                not_refused.append(statement)
            except pg.InsufficientPrivilege:
                pass

    assert not_refused == []
    assert log_of(dsn) == tampered_log


def test_twin_an_erasure_that_the_log_records_rewrites_documents(
    admin: AdminServiceStub, dsn: str, tampered_log: list[Any]
) -> None:
    admin.CreateUser(pb.CreateUserRequest(user=_ANNA, change_reason="anna asked"), timeout=TIMEOUT_S)

    admin.EraseUser(pb.EraseUserRequest(user_id="anna"), timeout=TIMEOUT_S)

    assert query(dsn, "SELECT erasure_seq, seq FROM audit_redactions") == [(4, 3)]
    assert log_of(dsn)[:2] == tampered_log
    *_, last = admin.VerifyAuditLog(pb.VerifyAuditLogRequest(), timeout=TIMEOUT_S)
    assert (last.complete, last.redacted_documents) == (True, 1)


@pytest.mark.parametrize("seq", [0, 3, 4, 999_999])
def test_an_entry_that_the_serving_role_forges_is_found(
    seq: int, admin: AdminServiceStub, serving_dsn: str, tampered_log: list[Any]
) -> None:
    columns = "format, revision, now(), 'admin:eve', action, '', resource_type, 'x', document_hash, prev_hash, hash"
    run(serving_dsn, f"INSERT INTO audit_log SELECT {seq}, {columns} FROM audit_log WHERE seq = 2")

    *_, last = admin.VerifyAuditLog(pb.VerifyAuditLogRequest(), timeout=TIMEOUT_S)

    assert (last.complete, last.faulty_seq) == (False, seq)


# --- Knowing what the role could do -----------------------------------------------------------------------------------


def powers(dsn: str) -> tuple[str, ...]:
    with closing(Database(dsn)) as database:
        database.open()
        return rewriting_powers(database)


def test_the_serving_role_has_no_power_to_rewrite_the_log(serving_dsn: str) -> None:
    assert powers(serving_dsn) == ()


def test_the_owner_has_and_a_superuser_has(dsn: str) -> None:
    assert powers(dsn) == ("it is a superuser",)


@pytest.mark.parametrize(
    ("more", "power"),
    [
        ("GRANT UPDATE ON audit_log TO {}", "it may UPDATE audit_log"),
        ("GRANT UPDATE (actor) ON audit_log TO {}", "it may UPDATE audit_log"),
        ("GRANT DELETE ON audit_log_p000001 TO {}", "it may DELETE audit_log_p000001"),
        ("GRANT TRUNCATE ON audit_documents TO {}", "it may TRUNCATE audit_documents"),
        ("GRANT DELETE ON audit_documents TO {}", "it may DELETE audit_documents"),
        ("GRANT UPDATE ON audit_redactions TO {}", "it may UPDATE audit_redactions"),
        ("GRANT DELETE ON subject_commitments TO {}", "it may DELETE subject_commitments"),
        ("ALTER FUNCTION require_erasure() OWNER TO {}", "it can replace the function require_erasure"),
        ("GRANT TRIGGER ON audit_log TO {}", "it may TRIGGER audit_log"),
        ("ALTER TABLE audit_log_p000001 OWNER TO {}", "it is the owner of audit_log_p000001, or can act as the owner"),
        ("ALTER FUNCTION refuse_audit_change() OWNER TO {}", "it can replace the function refuse_audit_change"),
        ("GRANT CREATE ON SCHEMA public TO {}", "it owns, or may create in, the schema public"),
        ("ALTER ROLE {} CREATEROLE", "it may create roles"),
        ("ALTER ROLE {} SUPERUSER", "it is a superuser"),
        ("GRANT pg_write_all_data TO {}", "it may UPDATE audit_log"),
        ("GRANT pg_execute_server_program TO {}", "it is a member of pg_execute_server_program"),
        ("GRANT SET ON PARAMETER session_replication_role TO {}", "it may set session_replication_role"),
    ],
)
def test_every_power_to_rewrite_the_log_is_told(more: str, power: str, role: str, serving_dsn: str, dsn: str) -> None:
    run(dsn, more, role)

    assert power in powers(serving_dsn)


def test_a_member_of_the_owner_can_act_as_the_owner(role: str, serving_dsn: str, dsn: str) -> None:
    ((owner,),) = query(dsn, "SELECT current_user")
    run(dsn, "GRANT {} TO {}", owner, role)

    assert "it is the owner of audit_log, or can act as the owner" in powers(serving_dsn)


def test_grants_take_back_what_is_beyond_them(role: str, serving_dsn: str, dsn: str) -> None:
    run(dsn, "GRANT ALL ON ALL TABLES IN SCHEMA public TO {}", role)
    before = powers(serving_dsn)

    run(dsn, grants(role))

    assert before
    assert powers(serving_dsn) == ()


def prepared(dsn: str, **settings: object) -> Callable[[], None]:
    loaded: Settings = settings_for_tests(database_url=dsn, **settings)
    return lambda: prepare_database(loaded, dsn, KEYS, demo=False)


def test_a_server_that_requires_least_privilege_refuses_to_start_with_more(serving_dsn: str, dsn: str) -> None:
    prepared(serving_dsn, require_least_privilege=True)()
    prepared(dsn)()
    with pytest.raises(FailedPrecondition, match="the database role can rewrite the audit log: it is a superuser"):
        prepared(dsn, require_least_privilege=True)()


def test_a_server_knows_whether_its_role_could_rewrite_the_log(serving_dsn: str, dsn: str) -> None:
    known = []
    for url in (serving_dsn, dsn):
        server = GatekeeperServer(settings_for_tests(), dsn=url, keys=KEYS)
        server.database.open()
        server.audit_head.run()
        known.append(server.audit_head.can_rewrite)
        server.database.close()

    assert known == [False, True]
