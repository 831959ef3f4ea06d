"""PreviewFlagChange: who gains and who loses a flag, before anything is written."""

import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext, EvaluationDetail
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.preview_pb2 import (
    PREVIEW_ROWS_ALL,
    PREVIEW_ROWS_CHANGED,
    PREVIEW_ROWS_UNSPECIFIED,
    PreviewHeader,
    PreviewRow,
    PreviewTotals,
)
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EQUALS, Condition, Segment
from gatekeeper_client.v1.usage_pb2 import USAGE_STEP_HOUR
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.servicers.pacing import Pace
from gatekeeper_grpc.store import flags as flag_store
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from tests.support.access_events import REFUSING, SERVING, events, subject_of
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
from tests.support.servers import StartServer, connect, token_for

pytestmark = [pytest.mark.usefixtures("drawing"), pytest.mark.promise("A7")]

BY_PLAN, FRIENDS = "by-plan", "friends"
USERS = [f"user-{number}" for number in range(40)]
SAMPLE = 20


@pytest.fixture(scope="module")
def house(postgres: str) -> Iterator[Installation]:
    """An installation with a segment of members, and one by an attribute that some users have stored."""
    with installed(postgres) as installation:
        pro = Condition(attribute="plan", operator=CONDITION_OPERATOR_EQUALS)
        pro.values.add().string_value = "pro"
        for segment in (Segment(key=FRIENDS), Segment(key=BY_PLAN, conditions=[pro])):
            send(installation.admin, "CreateSegment", pb.CreateSegmentRequest(segment=segment))
        friends = pb.AddSegmentMembersRequest(segment_key=FRIENDS, user_ids=USERS[:8])
        send(installation.admin, "AddSegmentMembers", friends)
        for number, user_id in enumerate(USERS[4:12]):
            user = User(user_id=user_id)
            user.attributes["plan"] = ("free", "pro")[number % 2]
            send(installation.admin, "CreateUser", pb.CreateUserRequest(user=user))
        yield installation


class Preview:
    """What a preview told."""

    def __init__(self, responses: Sequence[pb.PreviewFlagChangeResponse]) -> None:
        first, *batches, last = responses
        self.header: PreviewHeader = first.header
        self.counts = [response.batch.evaluated_count for response in batches]
        self.rows = [row for response in batches for row in response.batch.rows]
        self.totals: PreviewTotals = last.totals
        assert [response.WhichOneof("content") for response in responses] == [
            "header",
            *["batch"] * len(batches),
            "totals",
        ]


def contexts(*user_ids: str) -> list[EvaluationContext]:
    return [EvaluationContext(user_id=user_id) for user_id in user_ids]


def change_of(key: str, *, etag: str = "", **fields: Any) -> dict[str, Any]:
    return {"flag": Flag(key=key, etag=etag, **fields), "update_mask": FieldMask(paths=sorted(fields))}


def preview(
    house: Installation,
    change: Mapping[str, Any],
    *messages: Sequence[EvaluationContext],
    rows: Any = PREVIEW_ROWS_ALL,
    role: Role = Role.VIEWER,
) -> Preview:
    first, *later = messages or [[]]
    requests = [
        pb.PreviewFlagChangeRequest(contexts=first, rows=rows, **change),
        *(pb.PreviewFlagChangeRequest(contexts=message) for message in later),
    ]
    return Preview(send(house.admin_as(role), "PreviewFlagChange", *requests))


def evaluated(house: Installation, key: str, context: EvaluationContext) -> EvaluationDetail:
    request = EvaluateFlagsRequest(context=context, flag_keys=[key], include_details=True)
    return EvaluationServiceStub(house.channels[None]).EvaluateFlags(request, timeout=TIMEOUT_S).details[key]


# --- The promise ------------------------------------------------------------------------------------------------------


def any_fields(chance: random.Random) -> dict[str, Any]:
    """Fields of a flag that decide, some of them."""
    segments = [SegmentTarget(segment_key=key, value=chance.random() < 0.7) for key in (FRIENDS, BY_PLAN)]
    fields = {
        "enabled": chance.random() < 0.8,
        "default_value": chance.random() < 0.3,
        "rollout_percentage": chance.choice([0, 1, 25, 50, 99, 100]),
        "segment_targets": chance.sample(segments, chance.randint(0, 2)),
    }
    return {name: fields[name] for name in chance.sample(sorted(fields), chance.randint(1, len(fields)))}


def any_contexts(chance: random.Random) -> list[EvaluationContext]:
    """Users with and without attributes, and one without an id."""
    users = contexts(*chance.sample(USERS, 25), "")
    for context in chance.sample(users, 8):
        context.attributes["plan"] = chance.choice(["free", "pro"])
    return users


def compare(house: Installation, seed: int) -> None:
    """Preview a change; then make it, and compare what the users got before and get after it."""
    chance = random.Random(seed)
    key, users = created(house.admin, **any_fields(chance)).key, any_contexts(chance)
    for value in (True, False):
        targets = pb.AddTargetsRequest(flag_key=key, user_ids=chance.sample(USERS, 2), value=value)
        send(house.admin, "AddTargets", targets)
    change = change_of(key, **any_fields(chance))

    told = preview(house, change, users[:10], users[10:])
    few = preview(house, change, users, rows=PREVIEW_ROWS_CHANGED)
    none = preview(house, change, users, rows=PREVIEW_ROWS_UNSPECIFIED)

    before = [evaluated(house, key, context) for context in users]
    changed = send(house.admin, "UpdateFlag", pb.UpdateFlagRequest(**change)).flag
    after = [evaluated(house, key, context) for context in users]
    rows = [
        PreviewRow(user_id=context.user_id, before=was, after=will)
        for context, was, will in zip(users, before, after, strict=True)
    ]
    of_change = [row for row in rows if row.before.value != row.after.value]
    assert (told.rows, few.rows, none.rows) == (rows, of_change, [])
    assert told.totals == few.totals == none.totals
    assert list(told.totals.sample) == of_change[:SAMPLE]
    check_totals(told.totals, rows)
    check_flag(told.header.after, changed)


def check_totals(totals: PreviewTotals, rows: Sequence[PreviewRow]) -> None:
    by_values = Counter((row.before.value, row.after.value) for row in rows)
    assert (totals.evaluated_count, totals.error_count) == (len(rows), 0)
    assert (totals.gained_count, totals.lost_count) == (by_values[False, True], by_values[True, False])
    assert totals.unchanged_count == by_values[True, True] + by_values[False, False]
    found = {
        (each.before_value, each.before_reason, each.after_value, each.after_reason): each.count
        for each in totals.transitions
    }
    assert found == Counter((row.before.value, row.before.reason, row.after.value, row.after.reason) for row in rows)


def check_flag(shown: Flag, made: Flag) -> None:
    """The flag is what it was shown to be, but for what the write adds."""
    for field in ("etag", "revision", "update_time"):
        made.ClearField(field)
        shown.ClearField(field)
    assert shown == made


@pytest.mark.parametrize("seed", range(12))
def test_a_preview_tells_what_users_get_when_the_change_is_made(house: Installation, seed: int) -> None:
    compare(house, seed)


def test_twin_without_the_change_in_the_snapshot_it_tells_something_else(
    house: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = created(house.admin, enabled=True).key
    change = change_of(key, rollout_percentage=100)
    assert preview(house, change, contexts(*USERS)).totals.gained_count == len(USERS)
    monkeypatch.setattr(Snapshot, "after", lambda snapshot, _delta: snapshot)

    assert preview(house, change, contexts(*USERS)).totals.gained_count == 0


def test_a_larger_rollout_takes_the_flag_from_nobody(house: Installation) -> None:
    key = created(house.admin, enabled=True, rollout_percentage=25).key
    many = contexts(*(f"many-{number}" for number in range(5_000)))

    told = preview(house, change_of(key, rollout_percentage=50), many, many, rows=PREVIEW_ROWS_UNSPECIFIED)

    totals = told.totals
    assert totals.evaluated_count == 10_000
    assert totals.lost_count == 0
    assert 2_000 < totals.gained_count < 3_000
    assert (len(totals.sample), told.rows, told.counts) == (SAMPLE, [], [5_000, 10_000])


def test_the_sample_is_the_first_who_change_in_the_order_of_the_stream(house: Installation) -> None:
    key = created(house.admin, enabled=True).key
    users = [f"u{number}" for number in range(30)]
    change = change_of(key, rollout_percentage=100)

    in_order, reversed_ = (
        preview(house, change, contexts(*order[:5]), contexts(*order[5:]), rows=PREVIEW_ROWS_UNSPECIFIED).totals.sample
        for order in (users, users[::-1])
    )

    assert [row.user_id for row in in_order] == users[:SAMPLE]
    assert [row.user_id for row in reversed_] == users[::-1][:SAMPLE]


# --- Nothing is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_a_preview_writes_nothing_for_any_role(house: Installation, role: Role) -> None:
    key = created(house.admin, enabled=True).key
    before = house.contents()

    told = preview(house, change_of(key, rollout_percentage=100), contexts(*USERS), role=role)

    assert (told.totals.gained_count, house.contents()) == (len(USERS), before)
    assert not evaluated(house, key, EvaluationContext(user_id=USERS[0])).value


def test_what_another_instance_has_written_is_known(house: Installation) -> None:
    key = created(house.admin).key

    change = pb.UpdateFlagRequest(**change_of(key, enabled=True))
    flag = send(house.admin, "UpdateFlag", change).flag
    told = preview(house, change_of(key, etag=flag.etag, rollout_percentage=3))

    assert told.header.before == flag
    assert told.header.revision >= flag.revision


def test_previews_at_once_wait_for_an_instance_that_is_slow_to_catch_up(
    start_server: StartServer, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No preview is refused because evaluations wait half a second at most, and few of them at once."""
    first, other = start_server(), start_server()
    load_since = SnapshotStore.load_since

    def slow(store: SnapshotStore, base: Snapshot, **how: Any) -> Snapshot:
        if store._database is other.database:
            threading.Event().wait(1.0)
        return load_since(store, base, **how)

    token = token_for(dsn, Role.EDITOR)
    with connect(first, token=token) as to_first, connect(other, token=token) as to_other, ThreadPoolExecutor() as pool:
        key = created(AdminServiceStub(to_first)).key
        monkeypatch.setattr(SnapshotStore, "load_since", slow)
        change = change_of(key, rollout_percentage=3)
        flag = send(AdminServiceStub(to_first), "UpdateFlag", pb.UpdateFlagRequest(**change_of(key, enabled=True))).flag
        request = pb.PreviewFlagChangeRequest(**change)
        previews = [pool.submit(send, AdminServiceStub(to_other), "PreviewFlagChange", request) for _ in range(2)]

        assert [Preview(running.result()).header.before for running in previews] == [flag] * 2


def test_users_of_previews_are_no_usage_of_the_flag(house: Installation) -> None:
    key = created(house.admin, enabled=True).key

    preview(house, change_of(key, rollout_percentage=100), contexts(*USERS))
    house.server.usage.run()

    usage = send(house.admin, "GetFlagUsage", pb.GetFlagUsageRequest(key=key, step=USAGE_STEP_HOUR))
    assert not usage.usage


# --- What is refused --------------------------------------------------------------------------------------------------


def refused(house: Installation, change: Mapping[str, Any], **fields: Any) -> Refusal:
    request = pb.PreviewFlagChangeRequest(**change, **fields)
    return refusal_of(lambda: send(house.admin_as(Role.VIEWER), "PreviewFlagChange", request))


BAD_CHANGES: dict[str, dict[str, Any]] = {
    "no mask": {"flag": Flag(key="known")},
    "a path that cannot be updated": {"flag": Flag(key="known"), "update_mask": FieldMask(paths=["key"])},
    "no key": change_of("", enabled=True),
    "a rollout over 100": change_of("known", rollout_percentage=101),
    "an owner that cannot be seen": change_of("known", owner="\u200b"),
    "a segment without a value": change_of("known", segment_targets=[SegmentTarget(segment_key=FRIENDS)]),
    "an unknown segment": change_of("known", segment_targets=[SegmentTarget(segment_key="zz", value=True)]),
    "an unknown flag": change_of("unknown", enabled=True),
    "another etag": change_of("known", etag="another", enabled=True),
}


@pytest.mark.parametrize("change", BAD_CHANGES.values(), ids=BAD_CHANGES.keys())
def test_a_change_is_refused_as_an_update_refuses_it(house: Installation, change: dict[str, Any]) -> None:
    send_known(house)

    as_update = refusal_of(lambda: send(house.admin, "UpdateFlag", pb.UpdateFlagRequest(**change)))

    assert refused(house, change) == as_update


def send_known(house: Installation) -> None:
    if house.server.cache.current().flags.get("known") is None:
        created(house.admin, key="known")


def test_too_many_segment_targets_are_refused_as_an_update_refuses_them(
    house: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatekeeper_grpc.domain.preview.MAX_SEGMENT_TARGETS_IN_ALL", 0)
    change = change_of(created(house.admin).key, segment_targets=[SegmentTarget(segment_key=FRIENDS, value=True)])

    expected = {"quota": "segment_targets", "limit": "0"}
    assert refused(house, change) == Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", expected)


@pytest.mark.parametrize(
    ("later", "field"),
    [
        (change_of("other", enabled=True), "flag"),
        ({"update_mask": FieldMask(paths=["tags"])}, "update_mask"),
        ({"rows": PREVIEW_ROWS_CHANGED}, "rows"),
    ],
    ids=["flag", "mask", "rows"],
)
def test_a_later_message_cannot_ask_something_else(house: Installation, later: dict[str, Any], field: str) -> None:
    first = {**change_of(created(house.admin).key, enabled=True), "rows": PREVIEW_ROWS_ALL}

    def ask(second: dict[str, Any]) -> Any:
        requests = [pb.PreviewFlagChangeRequest(**first), pb.PreviewFlagChangeRequest(**second)]
        return send(house.admin_as(Role.VIEWER), "PreviewFlagChange", *requests)

    assert refusal_of(lambda: ask(later)) == invalid(field)
    assert len(ask(first)) == len(["header", "batch", "batch", "totals"])


def test_rows_that_nobody_knows_are_refused(house: Installation) -> None:
    assert refused(house, change_of(created(house.admin).key, enabled=True), rows=9) == invalid("rows")


def test_a_message_has_5000_contexts_at_most(house: Installation) -> None:
    change = change_of(created(house.admin).key, enabled=True)

    assert refused(house, change, contexts=contexts(*["a"] * 5_001)) == invalid("contexts")


def test_a_stream_without_a_message_is_answered_by_none(house: Installation) -> None:
    assert send(house.admin_as(Role.VIEWER), "PreviewFlagChange") == []


@pytest.mark.parametrize("rows", [PREVIEW_ROWS_UNSPECIFIED, PREVIEW_ROWS_CHANGED, PREVIEW_ROWS_ALL])
def test_a_bad_context_gets_its_own_error_and_the_others_are_evaluated(house: Installation, rows: Any) -> None:
    key = created(house.admin, enabled=True).key

    told = preview(house, change_of(key, rollout_percentage=100), contexts("a", "\0", "b"), rows=rows)

    assert (told.totals.evaluated_count, told.totals.gained_count, told.totals.error_count) == (2, 2, 1)
    errors = [(row.user_id, row.error.field) for row in told.rows if row.HasField("error")]
    assert errors == ([("\0", "contexts[1].user_id")] if rows else [])


def test_a_message_over_its_budget_is_refused_and_a_smaller_one_served(start_server: StartServer, dsn: str) -> None:
    server = start_server(bulk_cpu_budget_s=0.001)
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        admin = AdminServiceStub(channel)
        change = change_of(created(admin, enabled=True).key, rollout_percentage=100)
        full = pb.PreviewFlagChangeRequest(contexts=contexts(*["a"] * 5_000), rows=PREVIEW_ROWS_ALL, **change)

        over = refusal_of(lambda: send(admin, "PreviewFlagChange", full))
        served = send(admin, "PreviewFlagChange", pb.PreviewFlagChangeRequest(contexts=contexts("a"), **change))

    assert over == Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "CPU_BUDGET_EXCEEDED", {"budget_s": "0.001"})
    assert Preview(served).totals.gained_count == 1


# --- What is recorded -------------------------------------------------------------------------------------------------


def previewed_by_viewer(house: Installation) -> list[set[str]]:
    return [set(event.subject_ids) for event in events(house, event="flag_previewed")]


AIMED = [SegmentTarget(segment_key=FRIENDS, value=True)]


@pytest.mark.promise("D11")
@pytest.mark.parametrize("rows", [PREVIEW_ROWS_UNSPECIFIED, PREVIEW_ROWS_ALL])
def test_whom_a_preview_would_show_as_targeted_is_recorded(house: Installation, rows: Any) -> None:
    key = created(house.admin, enabled=True).key
    before = previewed_by_viewer(house)

    preview(house, change_of(key, segment_targets=AIMED), contexts(USERS[0], USERS[1], USERS[30]), rows=rows)

    latest, *earlier = previewed_by_viewer(house)
    assert (latest, earlier) == ({subject_of(house, USERS[0]), subject_of(house, USERS[1])}, before)


@pytest.mark.promise("D11")
def test_targets_of_a_flag_that_would_be_enabled_are_recorded(house: Installation) -> None:
    key = created(house.admin).key
    send(house.admin, "AddTargets", pb.AddTargetsRequest(flag_key=key, user_ids=[USERS[2]], value=True))

    preview(house, change_of(key, enabled=True), contexts(*USERS), rows=PREVIEW_ROWS_UNSPECIFIED)

    latest, *_ = previewed_by_viewer(house)
    assert latest == {subject_of(house, USERS[2])}


def test_what_evaluation_tells_anybody_is_not_recorded(house: Installation) -> None:
    key = created(house.admin, enabled=True, segment_targets=AIMED).key
    before = previewed_by_viewer(house)

    preview(house, change_of(key, rollout_percentage=50), contexts(*USERS))

    assert previewed_by_viewer(house) == before


@pytest.mark.promise("D11")
def test_who_cannot_be_recorded_is_not_shown(house: Installation) -> None:
    change = change_of(created(house.admin, enabled=True).key, segment_targets=AIMED)
    house.execute(REFUSING)
    try:
        unrecorded = refused(house, change, contexts=contexts(USERS[0]))
        others = preview(house, change, contexts(USERS[30])).totals
    finally:
        house.execute(SERVING)

    assert unrecorded.code is not grpc.StatusCode.OK
    assert others.evaluated_count == 1


def test_twin_without_the_record_members_are_shown(house: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flag_store, "record_access", lambda *_arguments: None)
    change = change_of(created(house.admin, enabled=True).key, segment_targets=AIMED)
    before = previewed_by_viewer(house)

    told = preview(house, change, contexts(USERS[0]))

    assert (told.totals.gained_count, previewed_by_viewer(house)) == (1, before)


# --- What it leaves to others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [PREVIEW_ROWS_UNSPECIFIED, PREVIEW_ROWS_CHANGED, PREVIEW_ROWS_ALL])
def test_a_message_is_evaluated_in_slices(house: Installation, monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    ended: list[object] = []
    monkeypatch.setattr(Pace, "_end_slice", lambda pace: ended.append(pace))  # noqa: PLW0108 - a method
    key = created(house.admin, enabled=True).key

    preview(house, change_of(key, rollout_percentage=100), contexts(*["a"] * 5_000), rows=rows)

    assert len(ended) >= (5_000 if rows else 10)


ENDS: dict[str, tuple[dict[str, float], int, grpc.StatusCode]] = {
    "silent": ({"stream_idle_timeout_s": 0.5}, 0, grpc.StatusCode.DEADLINE_EXCEEDED),
    "old": ({"bulk_max_age_s": 0.5}, 1, grpc.StatusCode.UNAVAILABLE),
}


@pytest.mark.promise("C1")
@pytest.mark.parametrize(("settings", "users", "code"), ENDS.values(), ids=ENDS.keys())
def test_a_silent_preview_ends_and_so_does_an_old_one(
    start_server: StartServer, dsn: str, settings: dict[str, float], users: int, code: grpc.StatusCode
) -> None:
    with previewing(start_server(**settings), dsn, users) as answers, pytest.raises(grpc.RpcError) as ended:
        list(answers)

    assert ended.value.code() is code


@pytest.mark.parametrize("users", [0, 1], ids=["silent", "old"])
def test_twin_without_these_limits_it_goes_on(start_server: StartServer, dsn: str, users: int) -> None:
    with previewing(start_server(), dsn, users) as answers:
        assert len([next(answers) for _ in range(20)]) == 20
        answers.cancel()


@contextmanager
def previewing(server: GatekeeperServer, dsn: str, users: int) -> Iterator[Any]:
    """Open a preview and send so many users in a message, ten times a second; yield its answers."""
    left = threading.Event()
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        admin = AdminServiceStub(channel)
        change = change_of(created(admin).key, enabled=True)

        def requests() -> Iterator[pb.PreviewFlagChangeRequest]:
            yield pb.PreviewFlagChangeRequest(**change)
            while not left.wait(0.1):
                yield pb.PreviewFlagChangeRequest(contexts=contexts(*["a"] * users))

        try:
            yield admin.PreviewFlagChange(requests(), timeout=TIMEOUT_S)
        finally:
            left.set()


def test_a_preview_of_any_length_is_one_read(start_server: StartServer, dsn: str) -> None:
    server = start_server(admin_read_rate="5/s")
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        admin = AdminServiceStub(channel)
        change = change_of(created(admin, key=new_key()).key, enabled=True)
        message = pb.PreviewFlagChangeRequest(contexts=contexts(*["a"] * 5_000), **change)

        totals = Preview(send(admin, "PreviewFlagChange", *[message] * 20)).totals

    assert totals.evaluated_count == 100_000
