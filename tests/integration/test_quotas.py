"""Quotas of an installation and of a caller: what is above is refused or gives way, and below nothing is counted."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from psycopg import sql

from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.domain.flag import ON, FlagConfig, SegmentTarget
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.domain.segment import SegmentConfig
from gatekeeper_grpc.domain.user import UserProfile
from gatekeeper_grpc.store import quotas as quotas_module
from gatekeeper_grpc.store import segments as segments_module
from gatekeeper_grpc.store import stored_results
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database, one
from gatekeeper_grpc.store.quotas import Quotas, check_segment_targets
from gatekeeper_grpc.store.segments import SegmentStore
from gatekeeper_grpc.store.stored_results import forget_oldest, forget_oldest_of_all
from gatekeeper_grpc.store.users import UserStore
from tests.support.servers import KEYS

TWO = Quotas(flags=2, segments=2, users=2)

Create = Callable[[Database, str], object]


def create_flag(database: Database, name: str) -> object:
    return FlagStore(database, mutations(database), quotas=TWO).create(
        FlagConfig(key=name), Intent(caller=None, action="CreateFlag")
    )


def create_segment(database: Database, name: str) -> object:
    store = SegmentStore(database, mutations(database), quotas=TWO)
    return store.create(SegmentConfig(key=name), Intent(caller=None, action="CreateSegment"))


def create_user(database: Database, name: str) -> object:
    store = UserStore(database, mutations(database), quotas=TWO)
    return store.create(UserProfile(user_id=name, attributes={}), Intent(caller=None, action="CreateUser"))


def mutations(database: Database) -> MutationRunner:
    return MutationRunner(database, KEYS.data)


CREATE = {"flags": create_flag, "segments": create_segment, "users": create_user}
TABLES = {"flags": "feature_flags", "segments": "segments", "users": "users"}


@pytest.mark.parametrize("quota", CREATE)
def test_one_more_than_the_quota_is_refused_and_leaves_nothing(database: Database, quota: str) -> None:
    create: Create = CREATE[quota]
    create(database, "a")
    create(database, "b")

    with pytest.raises(ResourceExhausted, match=rf"may have 2 {quota}.*GATEKEEPER_MAX_{quota.upper()}") as refused:
        create(database, "c")

    assert (refused.value.reason, refused.value.metadata) == ("QUOTA_EXCEEDED", {"quota": quota, "limit": "2"})
    assert rows(database, TABLES[quota]) == 2


def test_after_a_deletion_there_is_room_for_one(database: Database) -> None:
    store = FlagStore(database, mutations(database), quotas=TWO)
    create_flag(database, "a")
    create_flag(database, "b")

    store.delete("a", "", Intent(caller=None, action="DeleteFlag"))
    create_flag(database, "c")

    assert rows(database, "feature_flags") == 2


def test_a_table_that_is_small_is_not_counted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    def count(_conn: object, table: str) -> int:
        counted.append(table)
        return 0

    monkeypatch.setattr(quotas_module, "_rows", count)

    with database.write() as conn:
        Quotas().check(conn, "users")

    assert counted == []


def test_no_row_is_smaller_than_the_check_assumes(database: Database) -> None:
    create_flag(database, "a")
    create_segment(database, "a")
    create_user(database, "a")

    with database.read() as conn:
        for table in TABLES.values():
            query = sql.SQL("SELECT min(pg_column_size(t.*)) FROM {} t").format(sql.Identifier(table))
            assert one(conn.execute(query))[0] >= quotas_module._LEAST_ROW_BYTES


def test_all_flags_together_have_a_bounded_number_of_segment_targets(database: Database) -> None:
    create_segment(database, "a")
    targets = (SegmentTarget(segment_key="a", variant=ON),)
    FlagStore(database, mutations(database)).create(
        FlagConfig(key="a", segment_targets=targets), Intent(caller=None, action="CreateFlag")
    )

    with database.write() as conn:
        check_segment_targets(conn, limit=1)
        with pytest.raises(ResourceExhausted) as refused:
            check_segment_targets(conn, limit=0)

    assert (refused.value.reason, refused.value.metadata["quota"]) == ("QUOTA_EXCEEDED", "segment_targets")


def test_a_flag_with_too_many_segment_targets_is_refused_whole(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_segment(database, "a")
    monkeypatch.setattr(check_segment_targets, "__kwdefaults__", {"limit": 0})
    targets = (SegmentTarget(segment_key="a", variant=ON),)

    with pytest.raises(ResourceExhausted, match="0 segment targets"):
        FlagStore(database, mutations(database)).create(
            FlagConfig(key="a", segment_targets=targets), Intent(caller=None, action="CreateFlag")
        )

    assert rows(database, "feature_flags") == 0


def test_all_segments_together_have_a_bounded_number_of_conditions(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "MAX_CONDITIONS_IN_ALL", 2)
    conditions = (Condition(attribute="a", operator=Operator.EXISTS),)
    store = SegmentStore(database, mutations(database))
    for key in "ab":
        store.create(SegmentConfig(key=key, conditions=conditions), Intent(caller=None, action="CreateSegment"))

    with pytest.raises(ResourceExhausted, match=r"2 conditions.*would have 3") as refused:
        store.create(SegmentConfig(key="c", conditions=conditions), Intent(caller=None, action="CreateSegment"))

    assert (refused.value.reason, refused.value.metadata) == ("QUOTA_EXCEEDED", {"quota": "conditions", "limit": "2"})
    assert rows(database, "segments") == 2


def rows(database: Database, table: str) -> int:
    with database.read() as conn:
        (count,) = one(conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))))
    return int(count)


# --- Stored results --------------------------------------------------------------------------------------------------

_STORE = """
    INSERT INTO idempotency_keys (actor, action, request_id, revision, audit_seq, audit_hash, subjects, result,
                                  create_time)
    SELECT actor, 'A', gen_random_uuid(), n, n, sha256(''), '{}', '', clock_timestamp()
    FROM unnest(ARRAY['busy', 'other']) actor, generate_series(1, 5) n
"""


def stored(database: Database) -> dict[str, list[int]]:
    with database.read() as conn:
        return dict(
            conn.execute("SELECT actor, array_agg(revision ORDER BY revision) FROM idempotency_keys GROUP BY actor")
        )


def test_the_oldest_results_of_a_busy_caller_give_way(database: Database) -> None:
    with database.write() as conn:
        conn.execute(_STORE)
        forget_oldest(conn, "busy", audit_seq=100, limit=3)
        forget_oldest(conn, "other", audit_seq=101, limit=3)

    assert stored(database) == {"busy": [3, 4, 5], "other": [1, 2, 3, 4, 5]}


def test_maintenance_keeps_the_latest_results_of_each_caller(database: Database) -> None:
    with database.write() as conn:
        conn.execute(_STORE)
        assert forget_oldest_of_all(conn, limit=2) == 6

    assert stored(database) == {"busy": [4, 5], "other": [4, 5]}


def test_a_mutation_forgets_the_oldest_results_of_its_caller(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_results, "_FORGET_EVERY", 1)
    monkeypatch.setattr(forget_oldest, "__kwdefaults__", {"limit": 2})
    store = FlagStore(database, mutations(database))

    for key in "abcd":
        store.create(FlagConfig(key=key), Intent(caller=None, action="CreateFlag", request_id=uuid4()))

    assert rows(database, "idempotency_keys") == 2
