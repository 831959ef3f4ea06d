"""GetFlagUsage, ListUnknownFlagKeys, and `stale_for` of ListFlags: what evaluations asked for, as admins see it."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import REASON_SPLIT, REASON_STATIC, EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.usage_pb2 import (
    ASKED_FOR_ALL,
    ASKED_FOR_NAMED,
    USAGE_STEP_DAY,
    USAGE_STEP_HOUR,
    DecisionCount,
)
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.domain.usage import UsageBatch
from gatekeeper_grpc.lifecycle import server as server_module
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.usage import UsageStore
from tests.support.clients import TIMEOUT_S, Installation, Refusal, created, installed, invalid, refusal_of
from tests.support.outages import outage
from tests.support.servers import StartServer, connect, token_for
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("answering")

NEVER = "never-named"
AGED = (
    "UPDATE feature_flags SET create_time = create_time - interval '30 days'",
    "UPDATE usage_coverage SET since = since - interval '20 days'",
)


@pytest.fixture
def installation(postgres: str) -> Iterator[Installation]:
    with installed(postgres) as installation:
        yield installation


def evaluate(channel: grpc.Channel, *keys: str, user: str = "anna") -> None:
    request = EvaluateFlagsRequest(context=EvaluationContext(user_id=user), flag_keys=keys)
    EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S)


def evaluate_many(channel: grpc.Channel, *keys: str, users: int) -> None:
    contexts = [EvaluationContext(user_id=f"user-{n}") for n in range(users)]
    request = BulkEvaluateFlagsRequest(contexts=contexts, flag_keys=keys)
    assert list(EvaluationServiceStub(channel).BulkEvaluateFlags(iter([request]), timeout=TIMEOUT_S))


def written(server: GatekeeperServer) -> None:
    """Write what was counted, without waiting for the end of the minute."""
    server.usage.finish(within_s=TIMEOUT_S)


def usage_of(admin: AdminServiceStub, key: str, **fields: Any) -> pb.GetFlagUsageResponse:
    return admin.GetFlagUsage(pb.GetFlagUsageRequest(key=key, **fields), timeout=TIMEOUT_S)


def decisions_of(admin: AdminServiceStub, key: str) -> int:
    return sum(count.decisions for day in usage_of(admin, key).usage for count in day.counts)


# --- GetFlagUsage -----------------------------------------------------------------------------------------------------


def test_usage_tells_named_from_all_by_variant_and_reason(installation: Installation) -> None:
    admin, channel = installation.admin, installation.channels[None]
    created(admin, key="checkout", enabled=True, rollout_percentage=100)
    began = datetime.now(UTC).replace(second=0, microsecond=0)

    for _ in range(3):
        evaluate(channel, "checkout")
    evaluate(channel)
    written(installation.server)
    usage = usage_of(installation.admin_as(Role.VIEWER), "checkout", step=USAGE_STEP_HOUR)

    # A test that runs over a full hour has two periods.
    counts = [count for period in usage.usage for count in period.counts]
    assert [*counts] == [
        DecisionCount(asked_for=ASKED_FOR_NAMED, variant="on", reason=REASON_STATIC, decisions=3),
        DecisionCount(asked_for=ASKED_FOR_ALL, variant="on", reason=REASON_STATIC, decisions=1),
    ]
    for minute in (usage.last_named_time, usage.last_all_time):
        assert began <= minute.ToDatetime(UTC) <= datetime.now(UTC)
        assert (minute.seconds % 60, minute.nanos) == (0, 0)
    assert usage.counted_since.ToDatetime(UTC) < datetime.now(UTC)


def test_usage_says_how_much_of_it_is_estimated(installation: Installation) -> None:
    admin, channel = installation.admin, installation.channels[None]
    created(admin, key="checkout", enabled=True, rollout_percentage=50)

    evaluate(channel, "checkout")
    evaluate_many(channel, "checkout", users=2_000)
    written(installation.server)
    usage = usage_of(admin, "checkout", step=USAGE_STEP_DAY)

    counts = [count for period in usage.usage for count in period.counts]
    assert {(count.asked_for, count.reason) for count in counts} == {(ASKED_FOR_NAMED, REASON_SPLIT)}
    decisions, estimated = sum(c.decisions for c in counts), sum(c.estimated_decisions for c in counts)
    assert decisions - estimated == 1
    assert 1_000 < estimated < 3_000  # 100 of 2,000 are counted on average: ten standard deviations.


def test_usage_of_a_flag_that_was_never_asked_for_is_empty(installation: Installation) -> None:
    created(installation.admin, key=NEVER)

    usage = usage_of(installation.admin, NEVER)

    assert not usage.usage
    assert not usage.HasField("last_named_time")
    assert not usage.HasField("last_all_time")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"key": ""}, "key"),
        ({"key": "no key"}, "key"),
        ({"step": 7}, "step"),
        ({"start_time": Timestamp(seconds=20), "end_time": Timestamp(seconds=20)}, "end_time"),
        ({"start_time": Timestamp(seconds=1 << 40)}, "start_time"),
        ({"end_time": Timestamp(seconds=1 << 40)}, "end_time"),
    ],
)
def test_usage_cannot_be_asked_for_with(fields: dict[str, Any], field: str, admin: AdminServiceStub) -> None:
    assert refusal_of(lambda: usage_of(admin, **{"key": "checkout", **fields})) == invalid(field)


# --- ListFlags with stale_for -----------------------------------------------------------------------------------------


def stale(admin: AdminServiceStub, days: float, **fields: Any) -> pb.ListFlagsResponse:
    stale_for = Duration(seconds=int(days * 86_400))
    return admin.ListFlags(pb.ListFlagsRequest(stale_for=stale_for, **fields), timeout=TIMEOUT_S)


def test_flags_that_no_request_named_are_listed(installation: Installation) -> None:
    admin, channel = installation.admin, installation.channels[None]
    for key in ("named", NEVER, "with-others", "also-never"):
        created(admin, key=key, enabled=True, owner="shop" if key == NEVER else "")
    for statement in AGED:
        installation.execute(statement)
    created(admin, key="new")

    evaluate(channel)
    evaluate(channel, "named", "with-others")
    written(installation.server)

    first = stale(admin, days=7, page_size=1)
    second = stale(admin, days=7, page_size=1, page_token=first.next_page_token)
    assert [[flag.key for flag in page.flags] for page in (first, second)] == [["also-never"], [NEVER]]
    assert second.next_page_token == ""
    assert [flag.key for flag in stale(admin, days=7, owner="shop").flags] == [NEVER]


def test_a_flag_named_among_many_or_in_bulk_is_not_stale(installation: Installation) -> None:
    admin, channel = installation.admin, installation.channels[None]
    keys = [f"flag-{n:02}" for n in range(40)]
    for key in [*keys, "bulk"]:
        created(admin, key=key)
    for statement in AGED:
        installation.execute(statement)

    evaluate(channel, *keys)
    evaluate_many(channel, "bulk", users=1)
    written(installation.server)

    assert [flag.key for flag in stale(admin, days=7).flags] == []


def test_stale_for_needs_usage_that_was_counted_for_that_long(installation: Installation) -> None:
    installation.execute("UPDATE usage_coverage SET since = '2020-01-31 08:00:00Z'")

    refusal = refusal_of(lambda: stale(installation.admin, days=3_650))

    since = {"counted_since": "2020-01-31T08:00:00+00:00"}
    assert refusal == Refusal(grpc.StatusCode.FAILED_PRECONDITION, "USAGE_NOT_COVERED", since)


@pytest.mark.parametrize("days", [-1, 0, 0.01, 9_999, 99_999_999], ids=str)
def test_stale_for_is_an_hour_to_ten_years(days: float, admin: AdminServiceStub) -> None:
    assert refusal_of(lambda: stale(admin, days)) == invalid("stale_for")


# --- ListUnknownFlagKeys ----------------------------------------------------------------------------------------------


def test_unknown_keys_are_listed_until_a_flag_has_them(installation: Installation) -> None:
    admin, channel = installation.admin, installation.channels[None]
    for _ in range(2):
        evaluate(channel, "checkuot", "planned")
    evaluate(channel, "checkuot")
    evaluate_many(channel, "checkuot", users=5)
    written(installation.server)
    viewer = installation.admin_as(Role.VIEWER)

    before = viewer.ListUnknownFlagKeys(pb.ListUnknownFlagKeysRequest(), timeout=TIMEOUT_S).unknown_flag_keys
    created(admin, key="planned")
    after = viewer.ListUnknownFlagKeys(pb.ListUnknownFlagKeysRequest(), timeout=TIMEOUT_S).unknown_flag_keys

    assert [(unknown.key, unknown.request_count) for unknown in before] == [("checkuot", 4), ("planned", 2)]
    assert [unknown.key for unknown in after] == ["checkuot"]
    assert datetime.now(UTC) - after[0].last_asked_time.ToDatetime(UTC) < timedelta(minutes=5)


# --- Written in the background ----------------------------------------------------------------------------------------


@pytest.fixture
def short_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes of a second, and twenty flushes a second."""
    monkeypatch.setattr("gatekeeper_grpc.domain.usage._MINUTE_S", 1)
    monkeypatch.setattr(server_module, "_USAGE_INTERVAL_S", 0.05)


@pytest.mark.usefixtures("short_minutes")
def test_an_instance_writes_what_it_counts_by_itself(start_server: StartServer, dsn: str) -> None:
    server = start_server()
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        admin = AdminServiceStub(channel)
        created(admin, key="checkout")

        evaluate(channel, "checkout")

        assert eventually(lambda: decisions_of(admin, "checkout") == 1)


@pytest.mark.promise("B1")
@pytest.mark.usefixtures("short_minutes")
def test_no_evaluation_fails_and_no_count_is_lost_during_an_outage(
    start_server: StartServer, dsn: str, postgres: str
) -> None:
    server = start_server()
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        admin = AdminServiceStub(channel)
        created(admin, key="checkout")

        with outage(postgres, dsn):
            evaluate(channel, "checkout")
            assert eventually(lambda: _flush_fails(server))
            for _ in range(200):
                evaluate(channel, "checkout", "checkuot")

        assert eventually(lambda: _is_answered(lambda: decisions_of(admin, "checkout") == 201))


def _flush_fails(server: GatekeeperServer) -> bool:
    try:
        server.usage.run()
    except GatekeeperError:
        return True
    return False


def _is_answered(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except grpc.RpcError:
        return False


@pytest.mark.usefixtures("short_minutes")
def test_evaluations_do_not_wait_for_a_flush_that_is_held(
    start_server: StartServer, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, over, add = threading.Event(), threading.Event(), UsageStore.add

    def hold(store: UsageStore, batch: UsageBatch) -> None:
        held.set()
        over.wait(TIMEOUT_S)
        add(store, batch)

    monkeypatch.setattr(UsageStore, "add", hold)
    server = start_server()
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        created(AdminServiceStub(channel), key="checkout")
        evaluate(channel, "checkout")
        assert held.wait(TIMEOUT_S)

        for _ in range(100):
            evaluate(channel, "checkout")  # It would end with DEADLINE_EXCEEDED.

        over.set()
        assert eventually(lambda: decisions_of(AdminServiceStub(channel), "checkout") == 101)


def test_an_instance_that_stops_writes_its_last_minute(start_server: StartServer, dsn: str) -> None:
    first, second = start_server(), start_server()
    with connect(second, token=token_for(dsn, Role.EDITOR)) as channel, connect(first) as leaving:
        admin = AdminServiceStub(channel)
        flag = created(admin, key="checkout")
        first.sources.refresher.refresh_after_write(flag.revision)
        for n in range(7):
            evaluate(leaving, "checkout", user=f"user-{n}")

        first.stop()

        assert decisions_of(admin, "checkout") == 7
