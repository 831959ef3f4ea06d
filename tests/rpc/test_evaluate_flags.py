"""EvaluateFlags over the wire: what it answers and refuses, how fresh it is, and that it never needs the database."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct, Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext, EvaluationDetail, Reason
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    EvaluateFlagsRequest,
    EvaluateFlagsResponse,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EQUALS, Condition, Segment
from gatekeeper_grpc.domain.bucketing import bucket
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.snapshots.notifications import RevisionListener
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
from tests.support.outages import outage
from tests.support.servers import StartServer, connect, token_for
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("answering")

ANNA = EvaluationContext(user_id="anna")


@pytest.fixture(scope="module")
def house(postgres: str, answering: None) -> Iterator[Installation]:
    """An installation that all tests of what is answered share."""
    with installed(postgres) as installation:
        yield installation


def ask(channel: grpc.Channel, *flag_keys: str, **fields: Any) -> EvaluateFlagsResponse:
    """Evaluate flags for anna, or for the context given."""
    request = EvaluateFlagsRequest(**{"context": ANNA, "flag_keys": flag_keys, **fields})
    return EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S)


def anybody(house: Installation) -> grpc.Channel:
    return house.channels[None]


# --- What is answered ------------------------------------------------------------------------------------------------


def test_an_anonymous_user_has_attributes_and_full_rollouts_alone(house: Installation) -> None:
    staff = segment_of(house.admin, "team", "staff")
    keys = [
        created(house.admin, enabled=True, rollout_percentage=percentage, **fields).key
        for percentage, fields in ((100, {}), (99, {}), (0, staff))
    ]
    attributes = Struct(fields={"team": Value(string_value="staff")})
    contexts = [EvaluationContext(attributes=attributes), EvaluationContext(user_id="", attributes=attributes)]

    answers = [[*ask(anybody(house), *keys, context=context).flags.items()] for context in contexts]
    bulk = [*EvaluationServiceStub(anybody(house)).BulkEvaluateFlags(iter([of_contexts(keys, contexts)]))][1]

    assert [dict(answer) for answer in answers] == [dict(zip(keys, (True, False, True), strict=True))] * 2
    assert [[*result.evaluation.values] for result in bulk.batch.results] == [[True, False, True]] * 2
    assert ask(anybody(house), keys[2], context=EvaluationContext()).flags == {keys[2]: False}


def of_contexts(keys: list[str], contexts: list[EvaluationContext]) -> BulkEvaluateFlagsRequest:
    return BulkEvaluateFlagsRequest(flag_keys=keys, contexts=contexts)


def segment_of(admin: AdminServiceStub, attribute: str, value: str) -> dict[str, Any]:
    """Create a segment of those who have an attribute; returns the fields of a flag that is on for them."""
    condition = Condition(attribute=attribute, operator=CONDITION_OPERATOR_EQUALS, values=[Value(string_value=value)])
    key = new_key()
    send(admin, "CreateSegment", pb.CreateSegmentRequest(segment=Segment(key=key, conditions=[condition])))
    return {"segment_targets": [SegmentTarget(segment_key=key, variant="on")]}


def test_known_flags_are_answered_and_unknown_ones_listed_in_order(house: Installation) -> None:
    on, off = created(house.admin, enabled=True, default_value=True), created(house.admin)

    answer = ask(anybody(house), "zz", on.key, "aa", off.key)

    assert answer == EvaluateFlagsResponse(
        flags={on.key: True, off.key: False}, unknown_flag_keys=["zz", "aa"], revision=house.revision()
    )


def test_without_keys_every_flag_is_answered(house: Installation) -> None:
    created(house.admin)
    stored = house.admin.ListFlags(pb.ListFlagsRequest(page_size=1_000), timeout=TIMEOUT_S)

    answer = ask(anybody(house))

    assert sorted(answer.flags) == [flag.key for flag in stored.flags]
    assert [*answer.unknown_flag_keys] == []


def detail(reason: str, *, value: bool, **fields: Any) -> EvaluationDetail:
    return EvaluationDetail(
        value=value, variant="on" if value else "off", reason=Reason.Value(f"REASON_{reason}"), **fields
    )


@pytest.mark.parametrize(
    ("fields", "targets", "expected"),
    [
        pytest.param({"enabled": False, "default_value": True}, {}, detail("DISABLED", value=True), id="disabled"),
        pytest.param({"enabled": True, "rollout_percentage": 100}, {}, detail("STATIC", value=True), id="static"),
        pytest.param({"enabled": True}, {"bob": True}, detail("DEFAULT", value=False), id="default"),
        pytest.param({"enabled": True}, {"anna": True}, detail("TARGETING_MATCH", value=True), id="target"),
        pytest.param({"enabled": True}, {"anna": False}, detail("TARGETING_MATCH", value=False), id="target off"),
    ],
)
def test_an_answer_is_explained_when_asked_for(
    fields: dict[str, Any], targets: dict[str, bool], expected: EvaluationDetail, house: Installation
) -> None:
    flag = created(house.admin, **fields)
    for user_id, value in targets.items():
        send(house.admin, "AddTargets", pb.AddTargetsRequest(flag_key=flag.key, user_ids=[user_id], value=value))

    assert dict(ask(anybody(house), flag.key, include_details=True).details) == {flag.key: expected}


def test_a_draw_is_explained_with_its_bucket(house: Installation) -> None:
    flag = created(house.admin, enabled=True, rollout_percentage=50)
    slot = bucket("anna", flag.key)

    (answer,) = ask(anybody(house), flag.key, include_details=True).details.values()

    assert answer == detail("SPLIT", value=slot < 50, bucket=slot)


def test_details_are_left_out_unless_asked_for(house: Installation) -> None:
    assert dict(ask(anybody(house), created(house.admin).key).details) == {}


# --- What is refused -------------------------------------------------------------------------------------------------


def attributes(value: Value, *, levels: int = 1) -> EvaluationContext:
    """A context whose attributes hold a value below so many objects."""
    for _ in range(levels - 1):
        value = Value(struct_value=Struct(fields={"inner": value}))
    return EvaluationContext(user_id="anna", attributes=Struct(fields={"outer": value}))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"context": None}, "context", id="no context"),
        pytest.param({"context": EvaluationContext(user_id="u" * 257)}, "context.user_id", id="user id too long"),
        pytest.param({"context": EvaluationContext(user_id="a\0")}, "context.user_id", id="user id with NUL"),
        pytest.param(
            {"context": attributes(Value(string_value="x" * (16 << 10)))}, "context.attributes", id="attributes too big"
        ),
        pytest.param(
            {"context": attributes(Value(struct_value=Struct()), levels=5)}, "context.attributes", id="too deep"
        ),
        pytest.param({"context": attributes(Value(number_value=float("nan")))}, "context.attributes", id="NaN"),
        pytest.param({"flag_keys": ["a", "b", "a"]}, "flag_keys[2]", id="a key twice"),
        pytest.param({"flag_keys": ["a", "b c"]}, "flag_keys[1]", id="a malformed key"),
        pytest.param({"flag_keys": [f"k{n}" for n in range(1_001)]}, "flag_keys", id="too many keys"),
        pytest.param({"min_revision": -1}, "min_revision", id="a negative revision"),
    ],
)
def test_a_bad_request_is_refused_and_its_field_named(fields: dict[str, Any], field: str, house: Installation) -> None:
    assert refusal_of(lambda: ask(anybody(house), **fields)) == invalid(field)


def test_a_request_above_256_kib_is_refused(house: Installation) -> None:
    context = attributes(Value(string_value="x" * (256 << 10)))

    assert refusal_of(lambda: ask(anybody(house), context=context)) == invalid("request")


def test_the_largest_context_and_the_most_keys_are_accepted_together(house: Installation) -> None:
    keys = [f"{number:0128}" for number in range(1_000)]
    context = attributes(Value(string_value="x" * (16_000)))

    assert [*ask(anybody(house), *keys, context=context).unknown_flag_keys] == keys


def not_reached(wanted: int, newest: int) -> Refusal:
    metadata = {"min_revision": str(wanted), "revision": str(newest)}
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, "REVISION_NOT_REACHED", metadata)


@pytest.mark.promise("A2")
def test_a_reached_min_revision_is_served_and_an_unknown_one_refused(house: Installation) -> None:
    created(house.admin)
    newest = house.revision()

    assert ask(anybody(house), min_revision=newest).revision == newest
    assert refusal_of(lambda: ask(anybody(house), min_revision=newest + 1)) == not_reached(newest + 1, newest)


# --- How fresh it is -------------------------------------------------------------------------------------------------


def set_default(house: Installation, key: str, value: bool) -> int:
    flag, mask = Flag(key=key, default_value=value), FieldMask(paths=["default_value"])
    response: pb.UpdateFlagResponse = send(house.admin, "UpdateFlag", pb.UpdateFlagRequest(flag=flag, update_mask=mask))
    return response.revision


def test_the_very_next_evaluation_sees_a_write(house: Installation) -> None:
    key = created(house.admin, enabled=True).key
    wanted = [number % 2 == 0 for number in range(50)]

    seen = []
    for value in wanted:
        set_default(house, key, value)
        seen.append(ask(anybody(house), key).flags[key])

    assert seen == wanted


@dataclass(frozen=True)
class Pair:
    """Two servers on one database: the first with an editor's channel, the second with anybody's."""

    first: Installation
    other: GatekeeperServer
    to_other: grpc.Channel

    def value(self, key: str, **fields: Any) -> bool:
        """What the second server answers."""
        return ask(self.to_other, key, **fields).flags[key]


@contextmanager
def pair(start_server: StartServer, dsn: str, **settings_of_other: Any) -> Iterator[Pair]:
    first, other = start_server(), start_server(**settings_of_other)
    with connect(first, token=token_for(dsn, Role.EDITOR)) as editor, connect(other) as to_other:
        yield Pair(Installation(dsn=dsn, server=first, channels={Role.EDITOR: editor}), other, to_other)


NEVER = {"refresh_interval_s": 60.0}


@pytest.mark.promise("A4")
def test_a_commit_on_one_instance_is_announced_to_the_others(start_server: StartServer, dsn: str) -> None:
    with pair(start_server, dsn, **NEVER) as two:
        key = created(two.first.admin, enabled=True, default_value=True).key

        assert eventually(lambda: two.value(key))


class Deaf:
    """Listens as `RevisionListener` does, and hears nothing."""

    def __init__(self) -> None:
        self.listens = threading.Event()

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], list[int]]]:
        yield self._wait

    def _wait(self, timeout_s: float) -> list[int]:
        self.listens.set()
        threading.Event().wait(min(timeout_s, 0.05))
        return []


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Deaf:
    deaf = Deaf()
    monkeypatch.setattr(RevisionListener, "listening", deaf.listening)
    return deaf


@pytest.mark.promise("A4")
def test_an_instance_that_hears_nothing_finds_a_commit_by_polling(
    deaf: Deaf, start_server: StartServer, dsn: str
) -> None:
    with pair(start_server, dsn, refresh_interval_s=0.05) as two:
        key = created(two.first.admin, enabled=True, default_value=True).key

        assert eventually(lambda: two.value(key))


@pytest.mark.promise("A4")
def test_twin_without_notifications_and_poll_only_min_revision_finds_it(
    deaf: Deaf, start_server: StartServer, dsn: str
) -> None:
    with pair(start_server, dsn, **NEVER) as two:
        key = created(two.first.admin, enabled=True).key
        assert deaf.listens.wait(TIMEOUT_S)
        two.value(key, min_revision=two.first.revision())  # from here on nothing is under way
        revision = set_default(two.first, key, True)

        assert [two.value(key) for _ in range(20)] == [False] * 20
        assert two.value(key, min_revision=revision)


@pytest.mark.promise("A2")
def test_a_write_can_be_read_on_another_instance_at_once_every_time(start_server: StartServer, dsn: str) -> None:
    wanted = [number % 2 == 0 for number in range(200)]
    with pair(start_server, dsn) as two:
        key = created(two.first.admin, enabled=True).key

        seen = [two.value(key, min_revision=set_default(two.first, key, value)) for value in wanted]

    assert seen == wanted


# --- Without the database --------------------------------------------------------------------------------------------

UNAVAILABLE = Refusal(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", {})
CLOSED = Refusal(grpc.StatusCode.UNAVAILABLE, "DATABASE_NOT_ACCEPTING", {})


@pytest.mark.promise("A4", "B1")
def test_evaluation_outlives_the_database_and_says_when_it_is_stale(
    start_server: StartServer, dsn: str, postgres: str
) -> None:
    server = start_server(stale_after_s=0.3, refresh_interval_s=0.05)
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        house = Installation(dsn=dsn, server=server, channels={Role.EDITOR: channel})
        key = created(house.admin, enabled=True, default_value=True).key
        revision = house.revision()
        with outage(postgres, dsn):
            assert eventually(lambda: ask(channel, key).stale)
            assert ask(channel, key) == EvaluateFlagsResponse(flags={key: True}, revision=revision, stale=True)
            assert ask(channel, key, min_revision=revision).flags[key]
            assert refusal_of(lambda: ask(channel, key, min_revision=revision + 1)) == UNAVAILABLE
            assert refusal_of(lambda: created_within(2.0, house)) == CLOSED
        assert eventually(lambda: not ask(channel, key).stale)
        set_default(house, key, False)
        answer = ask(channel, key)  # Stale again, perhaps, on a machine that is too busy to refresh.
        assert (answer.flags[key], answer.revision) == (False, revision + 1)


def created_within(timeout_s: float, house: Installation) -> object:
    """Create a flag; DEADLINE_EXCEEDED when that neither succeeds nor fails in time."""
    return house.admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=new_key())), timeout=timeout_s)
