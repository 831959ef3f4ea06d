"""WatchFlags over the wire: which messages come when, refusals, and resuming on another instance."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_status import rpc_status
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, WatchFlagsRequest, WatchFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EQUALS, Condition, Segment
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.watcher_hub import WatcherHub
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.interceptors.request_scope import CALL_ID_KEY
from gatekeeper_grpc.lifecycle import server as server_module
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.operations.logs import add_call_id
from gatekeeper_grpc.store.snapshots.epochs import Epochs
from gatekeeper_grpc.wire.watch import watch_message
from tests.support.clients import (
    TIMEOUT_S,
    Installation,
    Refusal,
    created,
    installed,
    invalid,
    new_key,
    refusal_of,
    send,
)
from tests.support.servers import KEYS, StartServer, connect, settings_for_tests, token_for
from tests.support.traces import user_with
from tests.support.waiting import eventually
from tests.support.watching import CREATED, DELETED, UPDATED, Watch, changes_of, first_message, watching

# A field that no client knows: makes a message long.
PADDING = b"\x7a\x80\x80\x01" + bytes(16 * 1024)
_numbers = count()


@pytest.fixture(scope="module")
def house(postgres: str) -> Iterator[Installation]:
    """An installation that tests share; each has flags of its own."""
    with installed(postgres) as installation:
        yield installation


Start = Callable[..., GatekeeperServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts further instances of an installation."""
    with ExitStack() as stack:

        def start(house: Installation, **settings: object) -> GatekeeperServer:
            quick = settings_for_tests(**{"refresh_interval_s": 0.1, **settings})
            server = GatekeeperServer(quick, dsn=house.dsn, keys=KEYS)
            server.start()
            stack.callback(server.stop)
            return server

        yield start


def anybody(house: Installation) -> grpc.Channel:
    return house.channels[None]


def new_flag(house: Installation, **fields: Any) -> str:
    return created(house.admin, **{"enabled": True, **fields}).key


def update(house: Installation, key: str, **fields: Any) -> int:
    request = pb.UpdateFlagRequest(flag=Flag(key=key, **fields), update_mask=FieldMask(paths=list(fields)))
    return house.admin.UpdateFlag(request, timeout=TIMEOUT_S).revision


def delete(house: Installation, key: str) -> int:
    return house.admin.DeleteFlag(pb.DeleteFlagRequest(key=key), timeout=TIMEOUT_S).revision


# --- What is told ----------------------------------------------------------------------------------------------------


def test_the_first_message_says_at_once_where_the_stream_begins(house: Installation) -> None:
    new_flag(house)

    assert first_message(anybody(house)) == WatchFlagsResponse(revision=house.revision())


def test_a_flag_that_comes_changes_and_goes_is_told_each_time_in_order(house: Installation) -> None:
    with watching(anybody(house)) as watch:
        before = watch.read().revision
        key = new_flag(house)
        told = [watch.read_changes()]
        update(house, key, rollout_percentage=50)
        told.append(watch.read_changes())
        last = delete(house, key)
        message = watch.read()

    assert told == [{key: CREATED}, {key: UPDATED}]
    assert (message.revision, message.changes[0].flag_key, message.reset) == (last, key, False)
    assert last == before + 3


def test_a_returning_watcher_gets_each_changed_flag_once(house: Installation) -> None:
    known = house.revision()
    kept, gone, again = (new_flag(house) for _ in range(3))
    update(house, kept, enabled=False)
    delete(house, gone)
    since_again = delete(house, again)
    created(house.admin, key=again)

    with watching(anybody(house), from_revision=known) as watch:
        assert watch.read_until(house.revision()) == {kept: CREATED, gone: DELETED, again: UPDATED}
    with watching(anybody(house), from_revision=since_again) as watch:
        assert watch.read_until(house.revision()) == {again: CREATED}
    assert first_message(anybody(house), from_revision=house.revision()) == WatchFlagsResponse(
        revision=house.revision()
    )


def test_a_watcher_of_some_flags_hears_of_no_other(
    house: Installation,
) -> None:
    key = new_key()
    with watching(anybody(house), key) as watch:
        watch.read()
        new_flag(house)
        created(house.admin, key=key)
        assert watch.read_changes() == {key: CREATED}


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag_keys", "from_revision", "field"),
    [
        pytest.param((), -1, "from_revision", id="a negative revision"),
        pytest.param(("a", "b", "a"), 0, "flag_keys[2]", id="a flag twice"),
        pytest.param(("a", "no spaces"), 0, "flag_keys[1]", id="a malformed key"),
        pytest.param([f"flag-{n}" for n in range(1_001)], 0, "flag_keys", id="too many flags"),
    ],
)
def test_a_bad_request_is_refused_and_its_field_named(
    flag_keys: tuple[str, ...], from_revision: int, field: str, house: Installation
) -> None:
    refusal = refusal_of(lambda: first_message(anybody(house), *flag_keys, from_revision=from_revision))

    assert refusal == invalid(field)


def test_a_revision_that_does_not_exist_yet_is_refused(house: Installation) -> None:
    newest = house.revision()

    refusal = refusal_of(lambda: first_message(anybody(house), from_revision=newest + 1))

    metadata = {"from_revision": str(newest + 1), "revision": str(newest)}
    assert refusal == Refusal(grpc.StatusCode.FAILED_PRECONDITION, "REVISION_NOT_REACHED", metadata)


def test_a_watcher_beyond_the_capacity_is_refused_until_one_leaves(start_server: StartServer) -> None:
    server = start_server(max_watchers=2)
    with connect(server) as channel, watching(channel) as staying:
        staying.read()
        with watching(channel) as leaving:
            leaving.read()
            refusal = refusal_of(lambda: first_message(channel))
        assert eventually(lambda: len(server.watchers) < 2)
        assert first_message(channel).revision == 0

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")


# --- What counts as a change of a flag -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gold(house: Installation) -> tuple[str, str]:
    """A segment of users whose stored plan is gold, and a flag with that segment as a target."""
    segment, condition = new_key(), Condition(attribute="plan", operator=CONDITION_OPERATOR_EQUALS)
    condition.values.add().string_value = "gold"
    house.admin.CreateSegment(pb.CreateSegmentRequest(segment=Segment(key=segment, conditions=[condition])))
    return segment, new_flag(house, segment_targets=[SegmentTarget(segment_key=segment, value=True)])


def new_user(house: Installation, **attributes: str) -> str:
    user_id = f"user-{next(_numbers)}"
    house.admin.CreateUser(pb.CreateUserRequest(user=user_with(user_id, **attributes)), timeout=TIMEOUT_S)
    return user_id


def set_attribute(house: Installation, user_id: str, **attributes: str) -> int:
    mask = FieldMask(paths=[f"attributes.{name}" for name in attributes])
    request = pb.UpdateUserRequest(user=user_with(user_id, **attributes), update_mask=mask)
    return house.admin.UpdateUser(request, timeout=TIMEOUT_S).revision


def other_condition(house: Installation, segment: str, _flag: str) -> object:
    condition = Condition(attribute="plan", operator=CONDITION_OPERATOR_EQUALS, negate=True)
    condition.values.add().string_value = "free"
    change = pb.UpdateSegmentRequest(
        segment=Segment(key=segment, conditions=[condition]), update_mask=FieldMask(paths=["conditions"])
    )
    return send(house.admin, "UpdateSegment", change)


def add_members(house: Installation, segment: str, _flag: str) -> object:
    return send(house.admin, "AddSegmentMembers", pb.AddSegmentMembersRequest(segment_key=segment, user_ids=["eve"]))


def add_targets(house: Installation, _segment: str, flag: str) -> object:
    return send(house.admin, "AddTargets", pb.AddTargetsRequest(flag_key=flag, user_ids=["eve"], value=True))


def store_a_named_attribute(house: Installation, _segment: str, _flag: str) -> object:
    return new_user(house, plan="gold")


def change_a_named_attribute(house: Installation, _segment: str, _flag: str) -> object:
    return set_attribute(house, new_user(house), plan="gold")


def delete_the_user(house: Installation, _segment: str, _flag: str) -> object:
    with held_up(house.server):
        user_id = new_user(house, plan="gold")
        return send(house.admin, "DeleteUser", pb.DeleteUserRequest(user_id=user_id))


@contextmanager
def held_up(server: GatekeeperServer) -> Iterator[threading.Event]:
    """Hold the refresh, so that all changes during the block come in one delta."""
    refresher, resumed = server.sources.refresher, threading.Event()
    load_since = refresher._source.load_since

    def later(base: Snapshot) -> Snapshot:
        resumed.wait(TIMEOUT_S)
        return load_since(base)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refresher._source, "load_since", later)
        patch.setattr(refresher, "refresh_after_write", lambda _revision: None)
        yield resumed
        resumed.set()


@pytest.mark.parametrize(
    "change",
    [
        other_condition,
        add_members,
        add_targets,
        store_a_named_attribute,
        change_a_named_attribute,
        delete_the_user,
    ],
)
def test_a_flag_is_updated_by_all_that_its_answers_depend_on(
    change: Callable[[Installation, str, str], object], house: Installation, gold: tuple[str, str]
) -> None:
    segment, flag = gold
    new_flag(house)  # another one, which nobody touches
    with watching(anybody(house)) as watch:
        watch.read()
        change(house, segment, flag)

        assert watch.read_changes() == {flag: UPDATED}


def test_an_attribute_that_no_segment_names_concerns_nobody(house: Installation, gold: tuple[str, str]) -> None:
    user_id = new_user(house, plan="gold")
    with watching(anybody(house)) as watch:
        watch.read()
        set_attribute(house, user_id, mood="good")
        set_attribute(house, user_id, plan="gold")
        key = new_flag(house)

        assert watch.read_changes() == {key: CREATED}


def test_a_user_who_is_as_before_in_the_end_may_have_been_seen_otherwise(
    house: Installation, gold: tuple[str, str]
) -> None:
    user_id = new_user(house, plan="gold")
    with watching(anybody(house)) as watch:
        watch.read()
        with held_up(house.server):
            set_attribute(house, user_id, plan="free")
            set_attribute(house, user_id, plan="gold")

        assert watch.read_changes() == {gold[1]: UPDATED}


# --- Told after it is served -----------------------------------------------------------------------------------------


def answers_when_told(house: Installation, changes: int) -> list[bool]:
    """Flip a flag, and have a client evaluate it on each message; return whether the answer was the new one."""
    key = new_flag(house)
    right = []
    with watching(anybody(house), key) as watch:
        watch.read()
        for turn in range(changes):
            wanted = turn % 2 == 0
            update(house, key, default_value=wanted)
            watch.read_changes()
            right.append(house.evaluate(key, "anna").value is wanted)
    return right


def test_an_evaluation_after_the_message_gets_the_new_answer(house: Installation) -> None:
    assert answers_when_told(house, 20) == [True] * 20


def test_twin_told_before_the_snapshot_is_served_it_gets_the_old_one(
    house: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = SnapshotCache.publish

    def told_first(cache: SnapshotCache, snapshot: Snapshot, **options: Any) -> bool:
        cache._published(snapshot)
        time.sleep(0.5)
        return publish(cache, snapshot, **options)

    monkeypatch.setattr(SnapshotCache, "publish", told_first)
    # An acknowledged write is served: the client must not wait for that.
    monkeypatch.setattr(house.server.sources.refresher, "refresh_after_write", lambda _revision: None)

    assert False in answers_when_told(house, 2)


# --- Another instance, another day -----------------------------------------------------------------------------------


def test_a_watcher_goes_on_with_an_instance_that_started_later(house: Installation, start: Start) -> None:
    known = update(house, new_flag(house), enabled=False)
    kept, gone = new_flag(house), new_flag(house)
    update(house, kept, enabled=False)
    delete(house, gone)
    set_attribute(house, new_user(house), mood="good")

    with connect(start(house)) as channel:
        first = first_message(channel, kept, gone, from_revision=known)

    assert (changes_of(first), first.revision, first.reset) == ({kept: CREATED, gone: DELETED}, house.revision(), False)


def test_a_watcher_ahead_of_the_instance_waits_until_it_caught_up(house: Installation, start: Start) -> None:
    server = start(house)
    with connect(server) as channel, held_up(server) as resumed:
        new_flag(house)
        ahead = house.revision()
        assert server.cache.current().revision < ahead
        threading.Timer(0.1, resumed.set).start()

        assert first_message(channel, from_revision=ahead) == WatchFlagsResponse(revision=ahead)


def prune(house: Installation) -> None:
    house.execute("DELETE FROM change_log")


def prune_one(house: Installation) -> None:
    house.execute("DELETE FROM change_log WHERE revision = (SELECT max(revision) - 1 FROM change_log)")


def begin_an_epoch(house: Installation) -> None:
    Epochs(house.server.mutations).start_if_lost(house.revision() + 10)


def erase_somebody(house: Installation) -> None:
    user_id = new_user(house)
    send(house.admin_as(Role.ADMIN), "EraseUser", pb.EraseUserRequest(user_id=user_id))


@pytest.mark.parametrize("meddle", [prune, prune_one, begin_an_epoch, erase_somebody])
def test_a_fresh_instance_that_does_not_know_what_happened_says_so(
    meddle: Callable[[Installation], None], postgres: str, start: Start
) -> None:
    with installed(postgres) as house:
        known = update(house, new_flag(house), enabled=False)
        new_flag(house)
        new_flag(house)
        meddle(house)
        newest = house.revision()
        with connect(start(house)) as channel:
            first = first_message(channel, from_revision=known)
            again = first_message(channel, from_revision=newest)

    assert first == WatchFlagsResponse(revision=newest, reset=True)
    assert again == WatchFlagsResponse(revision=newest)


@pytest.mark.parametrize("meddle", [begin_an_epoch, erase_somebody])
def test_open_streams_are_told_when_the_history_breaks_off_and_go_on(
    meddle: Callable[[Installation], None], postgres: str
) -> None:
    with installed(postgres) as house, watching(anybody(house)) as everything, watching(anybody(house), "a") as one:
        new_flag(house)
        everything.read_changes()
        one.read()
        meddle(house)
        for watch in (everything, one):
            while not (message := watch.read()).reset:
                pass
            assert (message.revision, [*message.changes]) == (house.revision(), [])
        created(house.admin, key="a")

        assert [everything.read_changes(), one.read_changes()] == [{"a": CREATED}] * 2


# --- Streams that stay open ------------------------------------------------------------------------------------------


def test_heartbeats_come_while_nothing_happens(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "WatcherHub", partial(WatcherHub, heartbeat_s=0.05))
    with connect(start_server()) as channel, watching(channel) as watch:
        assert [watch.read() for _ in range(4)] == [WatchFlagsResponse()] * 4


def test_a_watch_ends_at_its_greatest_age_to_be_opened_again(start_server: StartServer) -> None:
    with connect(start_server(watch_max_age_s=0.3)) as channel:
        watch = EvaluationServiceStub(channel).WatchFlags(WatchFlagsRequest(), timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as ended:
            list(watch)

    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "open another one" in (ended.value.details() or "")


def test_evaluation_answers_with_more_watchers_than_threads(
    start_server: StartServer,
) -> None:
    server = start_server(evaluation_threads=1, stream_threads=1, admin_threads=1)
    workers = sum(pool._max_workers for pool in server.pools.values())
    with connect(server) as channel, connect(server) as other, ExitStack() as stack:
        watches = [stack.enter_context(watching(channel)) for _ in range(3 * workers)]
        first = [watch.read() for watch in watches]
        before = threading.active_count()
        request = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
        answers = [EvaluationServiceStub(other).EvaluateFlags(request, timeout=TIMEOUT_S) for _ in range(20)]
        with connect(server) as third:
            late = first_message(third)

        assert [len(first), len(answers), late.revision] == [3 * workers, 20, 0]
        assert threading.active_count() <= before + 2


def slow_watcher(server: GatekeeperServer, stack: ExitStack) -> Watch:
    """A client with little room for messages, which reads none."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.lookahead_bytes", 1024),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.min_rtt_window", 0),
    ]
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.port}", options=options))
    return stack.enter_context(watching(channel))


def busy(server: GatekeeperServer) -> int:
    return sum(watcher.is_busy for watcher in [*server.watchers._watchers])


def test_a_watcher_that_does_not_read_delays_no_other(
    start_server: StartServer, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long messages fill a window sooner.
    monkeypatch.setattr(server_module, "watch_message", lambda *told: watch_message(*told) + PADDING)
    server = start_server()
    with ExitStack() as stack:
        admin = AdminServiceStub(stack.enter_context(connect(server, token=token_for(dsn, Role.EDITOR))))
        slow = slow_watcher(server, stack)
        slow.read()
        brisk = stack.enter_context(watching(stack.enter_context(connect(server))))
        brisk.read()
        keys = [created(admin).key]
        while not busy(server):
            assert brisk.read_changes() == {keys[-1]: CREATED}
            keys.append(created(admin).key)
        keys += [created(admin).key for _ in range(5)]
        revision = server.cache.current().revision
        assert brisk.read_until(revision).keys() <= set(keys)

        assert slow.read_until(revision) == dict.fromkeys(keys, CREATED)


def test_a_watcher_that_never_reads_is_cancelled(
    start_server: StartServer, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = partial(WatcherHub, heartbeat_s=0.02, give_up_after_s=0.5)
    monkeypatch.setattr(server_module, "WatcherHub", hub)
    monkeypatch.setattr(server_module, "watch_message", lambda *told: watch_message(*told) + PADDING)
    server = start_server()
    with ExitStack() as stack:
        slow = slow_watcher(server, stack)
        slow.read()
        brisk = stack.enter_context(watching(stack.enter_context(connect(server))))
        assert eventually(lambda: [brisk.read(), len(server.watchers)][1] == 1)

        assert slow.code() is grpc.StatusCode.CANCELLED


WATCH_AND_HANG = """
import sys, grpc
from gatekeeper_client.v1.evaluation_service_pb2 import WatchFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
channel = grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}")
calls = [EvaluationServiceStub(channel).WatchFlags(WatchFlagsRequest()) for _ in range(50)]
for call in calls:
    next(call)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_client_that_is_killed_leaves_nothing_behind(server: GatekeeperServer) -> None:
    command = [sys.executable, "-c", WATCH_AND_HANG, str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "open\n"
        assert len(server.watchers) == 50
        client.kill()

    calls_known_to_grpcio = server.listeners[0].server._state.rpc_states  # type: ignore[attr-defined]
    assert eventually(lambda: len(server.watchers) == 0 and not calls_known_to_grpcio)
    assert eventually(lambda: [*server.watchers._watchers] == [])


def test_at_shutdown_watchers_are_sent_away_without_delaying_it(start_server: StartServer) -> None:
    server = start_server(grace_s=3_600)  # Held up, the test would run out of time.
    with connect(server) as channel, ExitStack() as stack:
        watches = [stack.enter_context(watching(channel)) for _ in range(20)]
        for watch in watches:
            watch.read()
        server.stop()
        ends = [refusal_of(lambda watch=watch: [*watch.call]) for watch in watches]  # type: ignore[misc]

    assert ends == [Refusal(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", {})] * 20
    # A client that waited as it says would be blind, while another instance takes the watcher at once.
    assert [details_of(watch.call) for watch in watches] == [["google.rpc.ErrorInfo"]] * 20


def details_of(call: Any) -> list[str]:
    """The types of the details with which a call ended."""
    status: Any = rpc_status.from_call(call)
    return [detail.TypeName() for detail in status.details]


def test_each_stream_is_logged_once_under_the_id_that_its_client_got(start_server: StartServer) -> None:
    server = start_server()
    with capture_logs([add_call_id]) as logs, connect(server) as channel:
        with watching(channel) as left:
            left.read()
        with watching(channel) as ended:
            ended.read()
            server.stop()
            ended.code()
            ids = [dict(watch.call.trailing_metadata()).get(CALL_ID_KEY) for watch in (left, ended)]
        assert eventually(lambda: len(lines(logs)) == 2)

    assert [line["code"] for line in lines(logs)] == ["CANCELLED", "UNAVAILABLE"]
    assert lines(logs)[1]["call_id"] == ids[1]


def lines(logs: Any) -> list[Any]:
    return [line for line in logs if line.get("method", "").endswith("WatchFlags")]
