"""`gatekeeper audit reconcile` finds whatever was changed behind the audit log, and nothing else."""

import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import grpc
import psycopg
import pytest
from click.testing import CliRunner, Result
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_ADMIN, ROLE_EDITOR, ROLE_VIEWER, AdminUser
from gatekeeper_client.v1.api_token_pb2 import ApiToken
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_SIGNING, RATE_TIER_HIGH, ClientKey
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_IN, CONDITION_OPERATOR_STARTS_WITH, Condition, Segment
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.cli.audit import audit
from gatekeeper_grpc.domain.admin_user import FIRST_ADMIN
from gatekeeper_grpc.domain.set_hash import EMPTY, target_element
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store import erasure, hashed_sets
from tests.support.clients import SERVICE, send
from tests.support.databases import database_name, new_database
from tests.support.operators import in_s
from tests.support.servers import KEYS, access_token, connect, settings_for_tests

pytestmark = pytest.mark.promise("D8")

PASSWORD = "correct horse battery staple"
ANNA = User(user_id="anna")
ANNA.attributes["plan"] = "pro"


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A database with an audit log, and the command."""

    dsn: str

    def tamper(self, statement: str) -> None:
        """Change the database as somebody with a password for it can."""
        with psycopg.connect(self.dsn) as conn:
            assert conn.execute(statement.encode()).rowcount

    def reconcile(self, *arguments: str) -> Result:
        loaded = settings_for_tests(database_url=self.dsn)
        return CliRunner().invoke(audit, ["reconcile", *arguments], obj=loaded, catch_exceptions=False)

    def faults(self, *arguments: str) -> list[str]:
        """Return the lines that name faults; the exit code must fit."""
        result = self.reconcile(*arguments)
        # On a busy machine a warning of the pool stands there as well.
        lines = [line for line in result.stderr.splitlines() if "behind the log" in line]
        assert result.exit_code == bool(lines), result.output
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class House(Log):
    """A log, and a server that writes it, with a first admin user."""

    server: GatekeeperServer

    def call(self, rpc: str, *, caller: str = FIRST_ADMIN, **fields: Any) -> Any:
        """Call an RPC with these fields; a stream of messages has two of them."""
        request = getattr(pb, f"{rpc}Request")(**fields)
        is_stream = SERVICE.methods_by_name[rpc].client_streaming
        with connect(self.server, token=access_token(self.dsn, caller)) as channel:
            return send(AdminServiceStub(channel), rpc, *[request] * (2 if is_stream else 1))


@contextmanager
def house_on(dsn: str) -> Iterator[House]:
    server = GatekeeperServer(settings_for_tests(), dsn=dsn, keys=KEYS)
    server.start()
    server.stores.logins.ensure_first_admin(FIRST_ADMIN, "x")
    yield House(dsn=dsn, server=server)
    server.stop()


@pytest.fixture
def house(dsn: str) -> Iterator[House]:
    with house_on(dsn) as house:
        yield house


@pytest.fixture(scope="module")
def template(postgres: str) -> Iterator[str]:
    """The name of a database with one resource of each kind, and two sets of three people."""
    with new_database(postgres) as dsn:
        with house_on(dsn) as house:
            furnish(house)
        yield database_name(dsn)


def furnish(house: House) -> None:
    plan = Condition(attribute="plan", operator=CONDITION_OPERATOR_IN, values=[Value(string_value="pro")])
    house.call("CreateSegment", segment=Segment(key="beta", conditions=[plan]))
    aimed = [SegmentTarget(segment_key="beta", value=True)]
    house.call("CreateFlag", flag=Flag(key="checkout", rollout_percentage=10, segment_targets=aimed, tags=["a"]))
    house.call("CreateUser", user=ANNA)
    house.call("CreateAdminUser", admin_user=AdminUser(username="ops", role=ROLE_EDITOR), password=PASSWORD)
    house.call("CreateClientKey", client_key=ClientKey(name="shop", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING))
    house.call("CreateApiToken", api_token=ApiToken(name="ci", role=ROLE_VIEWER, expire_time=in_s(3_600)))
    for people in (["anna", "bob"], ["carl"]):
        house.call("AddTargets", flag_key="checkout", user_ids=people, value=True)
        house.call("AddSegmentMembers", segment_key="beta", user_ids=people)


@pytest.fixture
def log(postgres: str, template: str) -> Iterator[Log]:
    """A furnished database."""
    with new_database(postgres, like=template) as dsn:
        yield Log(dsn=dsn)


@pytest.fixture
def furnished(log: Log) -> Iterator[House]:
    """A furnished database, and a server."""
    with house_on(log.dsn) as house:
        yield house


def test_what_nobody_touched_behind_the_log_agrees(log: Log) -> None:
    result = log.reconcile()

    assert result.exit_code == 0
    assert result.stdout == "reconciled with the log up to entry 10: 9 agree, 0 differ\n"


EVE = "WITH new AS (INSERT INTO subjects (user_id) VALUES ('eve') RETURNING subject_id)"
IS_BOB = "subject_id = (SELECT subject_id FROM subjects WHERE user_id = 'bob')"
BEHIND_THE_LOG: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "a flag's rollout": ("UPDATE feature_flags SET rollout_percentage = 100", "flag checkout: changed*percentage"),
        "a flag's times": ("UPDATE feature_flags SET create_time = 'infinity'", "flag checkout: changed*"),
        "a flag's tags": ("UPDATE feature_flags SET tags = '{}'", "flag checkout: changed*: tags"),
        "a flag's segment": ("DELETE FROM flag_segments", "flag checkout: changed*: segment_targets"),
        "a flag's revision": ("UPDATE feature_flags SET revision = 1", "flag checkout: changed*: revision"),
        "a flag's place": ("UPDATE feature_flags SET environment = 'x'", "flag checkout: deleted*"),
        "a whole flag": ("DELETE FROM feature_flags", "flag checkout: deleted behind the log after entry 2"),
        "a flag too many": (
            """
        INSERT INTO feature_flags
            (key, enabled, default_variant, rollout_percentage, create_time, update_time, revision)
        VALUES ('backdoor', true, 'on', 100, now(), now(), 1)
        """,
            "flag backdoor: created behind the log after its beginning",
        ),
        "a segment's condition": (
            "UPDATE segments SET conditions = jsonb_set(conditions, '{0,values}', '[\"free\"]')",
            "segment beta: changed*: conditions",
        ),
        "a segment's condition, broken": ("UPDATE segments SET conditions = '[{}]'", "segment beta: changed*"),
        "a segment's attributes": ("UPDATE segments SET attribute_names = '{}'", "segment beta: changed*conditions*"),
        "a segment's match": ("UPDATE segments SET match = 'ANY'", "segment beta: changed*: match"),
        "a user's attribute": ('UPDATE users SET attributes = \'{"plan": "free"}\'', "user *: changed*: attributes"),
        "a user's deletion": ("DELETE FROM users", "user *: deleted*"),
        "an admin's role": (
            "UPDATE admin_user SET role = 'admin' WHERE username = 'ops'",
            "admin_user ops: changed*: role",
        ),
        "an admin's duty to change the password": (
            "UPDATE admin_user SET must_change_password = true WHERE username = 'ops'",
            "admin_user ops: changed*: must_change_password",
        ),
        "the first admin's role": (
            "UPDATE admin_user SET role = 'viewer' WHERE username = 'admin'",
            "admin_user admin: changed*: role",
        ),
        "an admin's name": (
            "UPDATE admin_user SET username = 'eve' WHERE username = 'ops'",
            "admin_user eve: created*",
        ),
        "an admin too many": (
            """
        INSERT INTO admin_user (username, password_hash, role, create_time, update_time)
        VALUES ('eve', 'x', 'admin', now(), now())
        """,
            "admin_user eve: created*",
        ),
        "a client key's state": ("UPDATE client_keys SET revoke_time = now()", "client_key *: changed*: revoke_time"),
        "a client key's tier": ("UPDATE client_keys SET tier = 'unlimited'", "client_key *: changed*: tier"),
        "a target too many": (
            EVE + " INSERT INTO targeted_users SELECT flag_id, subject_id, 'on' FROM new, feature_flags",
            "targets checkout: changed*: count, hash",
        ),
        "a target too few": (
            "DELETE FROM targeted_users WHERE " + IS_BOB,
            "targets checkout: changed*: count, hash",
        ),
        "a target's variant": (
            "UPDATE targeted_users SET variant = 'off' WHERE " + IS_BOB,
            "targets checkout: changed*: hash",
        ),
        "a member too many": (
            EVE + " INSERT INTO segment_members SELECT segment_id, subject_id FROM new, segments",
            "members beta: changed*: count, hash",
        ),
        "a member too few": ("DELETE FROM segment_members", "members beta: changed*: count, hash"),
        "a member exchanged": (
            EVE + " UPDATE segment_members m SET subject_id = new.subject_id FROM new WHERE m." + IS_BOB,
            "members beta: changed*: hash",
        ),
    }
)


@pytest.mark.parametrize(("statement", "pattern"), BEHIND_THE_LOG.values(), ids=BEHIND_THE_LOG)
def test_whatever_is_changed_behind_the_log_is_named(log: Log, statement: str, pattern: str) -> None:
    log.tamper(statement)

    faults = log.faults()

    assert any(fnmatchcase(line, pattern) for line in faults), faults


def test_a_duty_to_change_the_password_cannot_be_lifted_behind_the_log(furnished: House) -> None:
    new = AdminUser(username="new", role=ROLE_EDITOR, must_change_password=True)
    furnished.call("CreateAdminUser", admin_user=new, password=PASSWORD)
    assert furnished.faults() == []

    furnished.tamper("UPDATE admin_user SET must_change_password = false")

    (fault,) = furnished.faults()
    assert fnmatchcase(fault, "admin_user new: changed*: must_change_password")


# --- A later change does not hide an earlier one ---------------------------------------------------------------------


def change_all(house: House) -> None:
    """Change the flag, the segment, the user, the admin user, and both sets through the API."""
    paths = FieldMask(paths=["description"])
    house.call("UpdateFlag", flag=Flag(key="checkout", description="x"), update_mask=paths)
    house.call("UpdateSegment", segment=Segment(key="beta", description="x"), update_mask=paths)
    user = User(user_id="anna")
    user.attributes["country"] = "DE"
    house.call("UpdateUser", user=user, update_mask=FieldMask(paths=["attributes.country"]))
    disabled = AdminUser(username="ops", enabled=False)
    house.call("UpdateAdminUser", admin_user=disabled, update_mask=FieldMask(paths=["enabled"]))
    house.call("AddTargets", flag_key="checkout", user_ids=["dora"], value=True)
    house.call("RemoveSegmentMembers", segment_key="beta", user_ids=["anna"])


LAUNDERED = {
    name: BEHIND_THE_LOG[name]
    for name in (
        "a flag's rollout",
        "a segment's match",
        "a user's attribute",
        "an admin's role",
        "a target too many",
        "a target's variant",
        "a member exchanged",
    )
}


@pytest.mark.parametrize(("statement", "pattern"), LAUNDERED.values(), ids=LAUNDERED)
def test_a_change_behind_the_log_is_found_after_the_next_change_too(
    furnished: House, statement: str, pattern: str
) -> None:
    furnished.tamper(statement)
    change_all(furnished)

    (fault,) = furnished.faults()

    assert fnmatchcase(fault, f"{pattern}*")
    assert "between entry" in fault


def test_what_was_looked_into_is_not_reported_again(furnished: House) -> None:
    furnished.tamper(BEHIND_THE_LOG["a flag's rollout"][0])
    change_all(furnished)

    assert len(furnished.faults()) == 1
    assert furnished.faults("--trust-until", "15") == []
    furnished.tamper("UPDATE feature_flags SET rollout_percentage = 99")
    assert len(furnished.faults("--trust-until", "15")) == 1


def test_a_hash_that_was_forged_with_the_set_is_found(furnished: House) -> None:
    with psycopg.connect(furnished.dsn) as conn:
        conn.execute("SET gatekeeper.counts_sets = 'on'")
        conn.execute("DELETE FROM targeted_users WHERE subject_id = (SELECT min(subject_id::text)::uuid FROM subjects)")
        rows = conn.execute("SELECT subject_id, variant FROM targeted_users").fetchall()
        forged = EMPTY.changed(added=[target_element(*row) for row in rows])
        conn.execute("UPDATE feature_flags SET targets_count = %s, targets_sum = %s", (forged.count, forged.state))
    change_all(furnished)

    (fault,) = furnished.faults()

    assert fault.startswith("targets checkout: changed behind the log between entry ")


# --- Sets whose hash is not known ------------------------------------------------------------------------------------


def test_a_set_that_was_changed_without_its_hash_is_hashed_again(furnished: House) -> None:
    """As the release before this one changes it, on the instances that are not replaced yet."""
    furnished.tamper("DELETE FROM targeted_users")
    furnished.tamper("INSERT INTO targeted_users SELECT flag_id, subject_id, 'on' FROM feature_flags, subjects")
    with psycopg.connect(furnished.dsn) as conn:
        assert conn.execute("SELECT targets_count, targets_sum FROM feature_flags").fetchall() == [(None, None)]

    change_all(furnished)

    assert furnished.faults() == []


def test_twin_without_the_triggers_the_kept_hash_is_wrong(furnished: House) -> None:
    furnished.tamper("UPDATE feature_flags SET targets_count = targets_count")
    with psycopg.connect(furnished.dsn) as conn:
        conn.execute("ALTER TABLE targeted_users DISABLE TRIGGER targeted_users_uncounted")
    furnished.tamper("DELETE FROM targeted_users")
    furnished.tamper("INSERT INTO targeted_users SELECT flag_id, subject_id, 'off' FROM feature_flags, subjects")
    furnished.tamper("DELETE FROM targeted_users WHERE variant = 'off'")

    change_all(furnished)

    assert any(fault.startswith("targets checkout: ") for fault in furnished.faults())


def test_sets_without_a_hash_in_the_log_are_not_called_complete(
    furnished: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashed_sets.SetChange, "document", lambda _: {})
    change_all(furnished)
    furnished.tamper("DELETE FROM targeted_users")

    result = furnished.reconcile()

    assert result.exit_code == 0
    assert "2 not comparable (written by an earlier version)" in result.stdout


# --- Erasure, deletion, creation again -------------------------------------------------------------------------------


def test_an_erasure_accounts_for_the_sets_that_lose_a_person(furnished: House) -> None:
    for person in ("bob", "anna"):
        furnished.call("EraseUser", user_id=person)

    assert furnished.faults() == []
    furnished.tamper("DELETE FROM targeted_users")
    assert len(furnished.faults()) == 1


def test_twin_an_erasure_that_does_not_say_so_is_found(furnished: House, monkeypatch: pytest.MonkeyPatch) -> None:
    leave = hashed_sets.leave_sets
    monkeypatch.setattr(erasure, "leave_sets", lambda *args: replace(leave(*args), documents=[]))

    furnished.call("EraseUser", user_id="bob")

    assert [fault.partition(":")[0] for fault in furnished.faults()] == ["targets checkout", "members beta"]


def test_a_key_that_is_used_again_begins_empty(furnished: House) -> None:
    furnished.call("DeleteFlag", key="checkout")
    furnished.call("DeleteSegment", key="beta")
    furnished.call("DeleteUser", user_id="anna")
    furnished.call("DeleteAdminUser", username="ops")
    assert furnished.faults() == []

    furnished.call("CreateSegment", segment=Segment(key="beta"))
    furnished.call("CreateFlag", flag=Flag(key="checkout"))
    furnished.call("CreateUser", user=User(user_id="anna"))
    furnished.call("CreateAdminUser", admin_user=AdminUser(username="ops", role=ROLE_VIEWER), password=PASSWORD)
    assert furnished.faults() == []

    furnished.tamper("INSERT INTO targeted_users SELECT flag_id, subject_id, 'on' FROM feature_flags, subjects")
    assert [fault.partition(":")[0] for fault in furnished.faults()] == ["targets checkout"]


def test_redacted_documents_are_not_comparable_and_no_fault(furnished: House) -> None:
    paths = FieldMask(paths=["description"])
    furnished.call("UpdateFlag", flag=Flag(key="checkout", description="ask carl"), update_mask=paths)
    # Otherwise the erasure is refused: the flag still names the person.
    furnished.tamper("UPDATE feature_flags SET description = 'ask someone'")
    furnished.call("EraseUser", user_id="carl")

    result = furnished.reconcile()

    assert result.exit_code == 0
    assert "1 not comparable (redacted)" in result.stdout


# --- Everything that the API can do ----------------------------------------------------------------------------------

STEPS = 150
_KEYS = ("a", "b", "c")
_PEOPLE = tuple(f"person-{number}" for number in range(12))
_NAMES = ("ann", "ben")


def _some(choice: random.Random) -> list[str]:
    return choice.sample(_PEOPLE, choice.randint(1, 5))


def _flag(choice: random.Random) -> Flag:
    key, segment = choice.choice(_KEYS), choice.choice(_KEYS)
    aimed = [SegmentTarget(segment_key=segment, value=True)] if choice.random() < 0.3 else []
    return Flag(
        key=key,
        enabled=choice.random() < 0.5,
        rollout_percentage=choice.randint(0, 100),
        description=choice.choice(("", "a text", "für Zoë")),
        segment_targets=aimed,
        tags=choice.sample(["x", "y", "z"], 2),
    )


def _segment(choice: random.Random) -> Segment:
    values = [Value(string_value=text) for text in choice.sample(["p", "q", "r"], 2)]
    operator = choice.choice((CONDITION_OPERATOR_IN, CONDITION_OPERATOR_STARTS_WITH))
    return Segment(key=choice.choice(_KEYS), conditions=[Condition(attribute="plan", operator=operator, values=values)])


def _user(choice: random.Random) -> User:
    user = User(user_id=choice.choice(_PEOPLE))
    for name in choice.sample(["plan", "age", "vip"], 2):
        user.attributes[name] = choice.choice(["p", 1.0, 1e300, 0.1, True, None])
    return user


def _configuration(choice: random.Random) -> dict[str, Any]:
    """Mostly makes a flag and a segment with people, and now and then deletes a flag."""
    flag, segment, people = _flag(choice), _segment(choice), choice.sample(_PEOPLE, 6)
    spare = [key for key in _KEYS if key != flag.key]
    closes = choice.random() < 0.5
    return {
        "flags": [flag],
        "segments": [segment],
        "members": [pb.ConfiguredMembers(segment_key=segment.key, user_ids=people[::2], remove_others=closes)],
        "targets": [
            pb.ConfiguredTargets(flag_key=flag.key, value=True, user_ids=people[:3], remove_others=closes),
            pb.ConfiguredTargets(flag_key=flag.key, value=False, user_ids=people[3:]),
        ],
        "flag_deletions": [pb.ConfigurationDeletion(key=choice.choice(spare))] if choice.random() < 0.2 else [],
        "users": [_user(choice)],
    }


_MASK = {
    "flag": FieldMask(paths=["rollout_percentage", "segment_targets", "tags"]),
    "segment": FieldMask(paths=["conditions"]),
    "user": FieldMask(paths=["attributes"]),
    "admin_user": FieldMask(paths=["role", "enabled"]),
}

# For each RPC the fields of a request. Roles stay below admin, so that the last admin is never in question.
RANDOM: Mapping[str, Callable[[random.Random], dict[str, Any]]] = MappingProxyType(
    {
        "CreateFlag": lambda choice: {"flag": _flag(choice)},
        "UpdateFlag": lambda choice: {"flag": _flag(choice), "update_mask": _MASK["flag"]},
        "DeleteFlag": lambda choice: {"key": choice.choice(_KEYS)},
        "AddTargets": lambda choice: {
            "flag_key": choice.choice(_KEYS),
            "user_ids": _some(choice),
            "value": choice.random() < 0.5,
        },
        "RemoveTargets": lambda choice: {"flag_key": choice.choice(_KEYS), "user_ids": _some(choice)},
        "ImportTargets": lambda choice: {"flag_key": choice.choice(_KEYS), "user_ids": _some(choice), "value": True},
        "CreateSegment": lambda choice: {"segment": _segment(choice)},
        "UpdateSegment": lambda choice: {"segment": _segment(choice), "update_mask": _MASK["segment"]},
        "DeleteSegment": lambda choice: {"key": choice.choice(_KEYS)},
        "AddSegmentMembers": lambda choice: {"segment_key": choice.choice(_KEYS), "user_ids": _some(choice)},
        "RemoveSegmentMembers": lambda choice: {"segment_key": choice.choice(_KEYS), "user_ids": _some(choice)},
        "ApplyConfiguration": _configuration,
        "CreateUser": lambda choice: {"user": _user(choice)},
        "UpdateUser": lambda choice: {"user": _user(choice), "update_mask": _MASK["user"]},
        "DeleteUser": lambda choice: {"user_id": choice.choice(_PEOPLE)},
        "EraseUser": lambda choice: {"user_id": choice.choice(_PEOPLE)},
        "CreateAdminUser": lambda choice: {
            "admin_user": AdminUser(username=choice.choice(_NAMES), role=ROLE_VIEWER),
            "password": PASSWORD,
        },
        "UpdateAdminUser": lambda choice: {
            "admin_user": AdminUser(
                username=choice.choice((*_NAMES, "ops")), role=choice.choice([ROLE_VIEWER, ROLE_EDITOR]), enabled=True
            ),
            "update_mask": _MASK["admin_user"],
        },
        "DeleteAdminUser": lambda choice: {"username": choice.choice(_NAMES)},
        "ChangePassword": lambda _: {"current_password": PASSWORD, "new_password": PASSWORD[::-1]},
        "CreateClientKey": lambda _: {
            "client_key": ClientKey(name="shop", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING)
        },
        "RevokeClientKey": lambda _: {"key_id": ""},
        "CreateApiToken": lambda _: {"api_token": ApiToken(name="ci", role=ROLE_VIEWER, expire_time=in_s(3_600))},
        "RevokeApiToken": lambda _: {"token_id": ""},
    }
)
# Each hashes a password.
_SLOW = {"CreateAdminUser": 3, "ChangePassword": 1}


def test_every_mutation_is_in_the_random_run() -> None:
    mutations = {method.name for method in SERVICE.methods if "change_reason" in method.input_type.fields_by_name}
    assert set(RANDOM) == mutations


def run_randomly(house: House, seed: int) -> None:
    """Make random mutations, most of which succeed; refusals change nothing."""
    choice = random.Random(seed)
    house.call("CreateAdminUser", admin_user=AdminUser(username="ops", role=ROLE_EDITOR), password=PASSWORD)
    key = house.call(
        "CreateClientKey", client_key=ClientKey(name="app", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING)
    ).client_key.key_id
    house.call(
        "UpdateAdminUser",
        admin_user=AdminUser(username=FIRST_ADMIN, role=ROLE_ADMIN, enabled=True),
        update_mask=_MASK["admin_user"],
    )
    token = house.call("CreateApiToken", **RANDOM["CreateApiToken"](choice)).api_token.token_id
    weights = [_SLOW.get(rpc, 10) for rpc in RANDOM]
    for rpc in choice.choices(tuple(RANDOM), weights, k=STEPS):
        fields = RANDOM[rpc](choice)
        if rpc == "RevokeClientKey":
            fields = {"key_id": key}
        if rpc == "RevokeApiToken":
            fields = {"token_id": token}
        try:
            house.call(rpc, caller="ops" if rpc == "ChangePassword" else FIRST_ADMIN, **fields)
        except grpc.RpcError as error:
            if error.code() not in REFUSALS:
                raise


REFUSALS = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}


@pytest.mark.parametrize("seed", [1, 2])
def test_no_run_of_mutations_differs_from_its_log(house: House, seed: int) -> None:
    run_randomly(house, seed)

    result = house.reconcile()

    assert result.exit_code == 0
    assert "0 differ" in result.stdout
    assert "earlier version" not in result.stdout
    assert house.server.stores.audit.head().anchor.seq > STEPS / 3


# --- A million members ------------------------------------------------------------------------------------------------

MEMBERS = 50_000


def test_members_are_not_held_in_memory(log: Log) -> None:
    log.tamper(f"INSERT INTO subjects (user_id) SELECT 'user-' || n FROM generate_series(1, {MEMBERS}) AS n")
    log.tamper(
        "INSERT INTO segment_members SELECT segment_id, subject_id FROM segments, subjects WHERE user_id LIKE '%-%'"
    )
    tracemalloc.start()
    try:
        assert len(log.faults()) == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < MEMBERS * 100
