"""A change locks the head of the database for few round trips: what it costs far from the database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from uuid import uuid4

import pytest

from gatekeeper_grpc.domain.api_token import ApiTokenConfig
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.client_key import ClientKeyConfig, RateTier
from gatekeeper_grpc.domain.commands import (
    AdminUserUpdate,
    FlagUpdate,
    MemberEdit,
    NewAdminUser,
    SegmentUpdate,
    TargetEdit,
    UserUpdate,
)
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.flag import OFF, ON, FlagConfig, SegmentTarget
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.domain.segment import SegmentConfig
from gatekeeper_grpc.domain.user import UserProfile
from gatekeeper_grpc.store.admin_users import AdminUserStore
from gatekeeper_grpc.store.api_tokens import ApiTokenStore
from gatekeeper_grpc.store.client_keys import ClientKeyStore
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.members import MemberStore
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres import database as database_module
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.segments import SegmentStore
from gatekeeper_grpc.store.targets import TargetStore
from gatekeeper_grpc.store.users import UserStore
from tests.support.replication import Node, running_node
from tests.support.round_trips import RoundTrips, counting_proxy
from tests.support.servers import KEYS

MOST = 6
# psycopg prepares a statement when it is used for the sixth time on a connection.
REPEATS = 8
_numbers = count()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running_node() as node:
        Migrator(node.dsn).up()
        yield node


@contextmanager
def far_database(node: Node) -> Iterator[tuple[Database, RoundTrips]]:
    trips = RoundTrips()
    with counting_proxy(node.dsn, trips) as dsn:
        database = Database(dsn, pool_size=2)
        database.open()
        yield database, trips
        database.close()


MAKER = Caller(admin_id=1, username="admin", role=Role.ADMIN, token_epoch=1)


def intent() -> Intent:
    return Intent(caller=None, action="Test", request_id=uuid4(), request_hash=bytes(32))


def change_token(tokens: ApiTokenStore, new: Callable[[], str]) -> object:
    token_id = new()
    config = ApiTokenConfig(name=token_id, role=Role.VIEWER, expire_time=datetime.now(UTC) + timedelta(hours=1))
    tokens.create(config, MAKER, token_id=token_id, secret="s", secret_hash=bytes(32), intent=intent())
    return tokens.revoke(token_id, owner_id=MAKER.admin_id, intent=intent())


def changes(database: Database) -> dict[str, Callable[[], object]]:
    """One change of each kind, on resources of its own; each may be repeated."""
    mutations = MutationRunner(database, KEYS.data)
    flags, targets = FlagStore(database, mutations), TargetStore(database, mutations)
    segments, members = SegmentStore(database, mutations), MemberStore(database, mutations)
    users, admins = UserStore(database, mutations), AdminUserStore(database, mutations)
    keys = ClientKeyStore(database, mutations, KEYS.data)
    tokens = ApiTokenStore(database, mutations)
    prefix = f"r{next(_numbers)}-"
    flag, segment, user, admin = (f"{prefix}{kind}" for kind in ("flag", "segment", "user", "admin"))
    segment_targets = [SegmentTarget(segment_key=f"{segment}{nth}", variant=ON) for nth in range(5)]
    condition = Condition(attribute="plan", operator=Operator.EQUALS, values=("gold",))
    for nth in range(5):
        segments.create(SegmentConfig(key=f"{segment}{nth}"), intent())
    flags.create(FlagConfig(key=flag, enabled=True), intent())
    users.create(UserProfile(user_id=user, attributes={}), intent())
    admins.create(NewAdminUser(username=admin, role=Role.ADMIN), password_hash="x", intent=intent())
    admins.create(NewAdminUser(username=f"{admin}2", role=Role.ADMIN), password_hash="x", intent=intent())

    def new() -> str:
        """A name for each repetition."""
        return f"{prefix}{next(_numbers)}"

    def targets_of(variant: str | None) -> Callable[[], object]:
        return lambda: targets.edit(TargetEdit(flag_key=flag, user_ids=("a", "b"), variant=variant), intent())

    def create_and_target() -> object:
        key = new()
        flags.create(FlagConfig(key=key, enabled=True, segment_targets=tuple(segment_targets)), intent())
        return targets.edit(TargetEdit(flag_key=key, user_ids=(new(),), variant=ON), intent())

    def delete_flag() -> object:
        key = new()
        flags.create(FlagConfig(key=key, enabled=True), intent())
        return flags.delete(key, "", intent())

    def segment_and_members() -> object:
        key = new()
        segments.create(SegmentConfig(key=key, conditions=(condition,)), intent())
        segments.update(SegmentUpdate(key=key, changes={"conditions": (condition, condition)}), intent())
        members.add(MemberEdit(segment_key=key, user_ids=(new(),)), intent())
        members.remove(MemberEdit(segment_key=key, user_ids=(user,)), intent())
        return segments.delete(key, "", intent())

    def change_user() -> object:
        user_id = new()
        users.create(UserProfile(user_id=user_id, attributes={"plan": "gold"}), intent())
        users.update(UserUpdate(user_id=user_id, attributes={new(): 1}), intent())
        return users.delete(user_id, "", intent())

    def change_key() -> object:
        key_id = new()
        config = ClientKeyConfig(name=key_id, tier=RateTier.STANDARD)
        keys.create(config, key_id=key_id, secret="s", kept=b"s", intent=intent())
        return keys.revoke(key_id, intent())

    def retarget(key: str, nth: int) -> object:
        changed = {"segment_targets": tuple(segment_targets[: 1 + nth % 5]), "description": new()}
        return flags.update(FlagUpdate(key=key, changes=changed), intent())

    demote = AdminUserUpdate(username=admin, changes={"must_change_password": True})
    return {
        "UpdateFlag": lambda: flags.update(FlagUpdate(key=flag, changes={"description": new()}), intent()),
        "UpdateFlag with segment targets": lambda: retarget(flag, next(_numbers)),
        "CreateFlag, AddTargets": create_and_target,
        "DeleteFlag": delete_flag,
        "AddTargets": targets_of(ON),
        "AddTargets, moved": targets_of(OFF),
        "RemoveTargets": targets_of(None),
        "segments": segment_and_members,
        "users": change_user,
        "admin users": lambda: admins.update(demote, password_hash="y", intent=intent()),
        "client keys": change_key,
        "API tokens": partial(change_token, tokens, new),
    }


def test_a_change_takes_at_most_six_round_trips(node: Node) -> None:
    with far_database(node) as (database, trips):
        repeated = changes(database)
        trips.taken()
        taken = {}
        for name, change in repeated.items():
            for _ in range(REPEATS):
                change()
            taken[name] = trips.taken()
    assert {name: counts for name, counts in taken.items() if max(counts) > MOST} == {}
    assert all(len(counts) >= REPEATS for counts in taken.values())


def test_twin_without_a_pipeline_it_takes_more(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_pipelined", database_module._each_awaited)
    with far_database(node) as (database, trips):
        update = changes(database)["UpdateFlag"]
        trips.taken()
        for _ in range(REPEATS):
            update()

        assert max(trips.taken()) > MOST
