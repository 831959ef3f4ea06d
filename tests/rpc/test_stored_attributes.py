"""Stored attributes decide over the wire: behind those sent, at once where they were stored, soon elsewhere."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EQUALS, Condition, Segment
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.attribute_cap import check_attribute_cap
from tests.support.clients import TIMEOUT_S, Installation, new_key, refusal_of
from tests.support.servers import KEYS, connect, settings_for_tests

_users = count()


def struct(attributes: dict[str, Any]) -> Struct:
    return ParseDict(attributes, Struct())


def new_user() -> str:
    return f"user-{next(_users)}@example.org"


Ask = Callable[[str, str, int], bool]


@pytest.fixture(scope="module")
def ask_other(installation: Installation) -> Iterator[Ask]:
    """Asks a second instance on the same database, once it is at a revision. It lives on deltas alone."""
    server = GatekeeperServer(settings_for_tests(refresh_interval_s=0.1), dsn=installation.dsn, keys=KEYS)
    server.start()
    with pytest.MonkeyPatch.context() as patch, connect(server) as channel:
        patch.setattr("gatekeeper_grpc.store.snapshots.loader.SnapshotStore.load", no_load)

        def ask_at(flag_key: str, user_id: str, revision: int) -> bool:
            assert server.cache.wait_for_revision(revision, timeout_s=TIMEOUT_S)
            return ask(EvaluationServiceStub(channel), flag_key, user_id)

        yield ask_at
    server.stop()


def no_load(_: object) -> None:
    raise AssertionError("loaded everything")


@pytest.fixture
def evaluation(installation: Installation) -> EvaluationServiceStub:
    return EvaluationServiceStub(installation.channels[None])


def segment(key: str, attribute: str) -> Segment:
    """Build the segment of users for whom an attribute is "gold"."""
    gold = Condition(attribute=attribute, operator=CONDITION_OPERATOR_EQUALS, values=[Value(string_value="gold")])
    return Segment(key=key, conditions=[gold])


@pytest.fixture
def flag_key(installation: Installation) -> str:
    """The key of a flag that is on for users whose `plan` is gold, and of the segment that says so."""
    key = new_key()
    aimed = Flag(key=key, enabled=True, segment_targets=[SegmentTarget(segment_key=key, value=True)])
    installation.admin.CreateSegment(pb.CreateSegmentRequest(segment=segment(key, "plan")))
    installation.admin.CreateFlag(pb.CreateFlagRequest(flag=aimed))
    return key


def create(installation: Installation, user_id: str, **attributes: Any) -> int:
    user = User(user_id=user_id, attributes=struct(attributes))
    return installation.admin.CreateUser(pb.CreateUserRequest(user=user)).revision


def update(installation: Installation, user_id: str, **attributes: Any) -> int:
    user, mask = User(user_id=user_id, attributes=struct(attributes)), FieldMask(paths=["attributes"])
    return installation.admin.UpdateUser(pb.UpdateUserRequest(user=user, update_mask=mask)).revision


def ask(evaluation: EvaluationServiceStub, flag_key: str, user_id: str, sent: dict[str, Any] | None = None) -> bool:
    context = EvaluationContext(user_id=user_id, attributes=None if sent is None else struct(sent))
    request = EvaluateFlagsRequest(context=context, flag_keys=[flag_key])
    return evaluation.EvaluateFlags(request).flags[flag_key]


@pytest.mark.parametrize(
    ("stored", "sent", "value"),
    [
        pytest.param({"plan": "gold"}, None, True, id="stored"),
        pytest.param({"plan": "gold"}, {}, True, id="stored, an empty object sent"),
        pytest.param({"plan": "gold"}, {"plan": "free"}, False, id="sent wins"),
        pytest.param({"plan": "free"}, {"plan": "gold"}, True, id="sent wins the other way"),
        pytest.param({"plan": "gold"}, {"plan": None}, False, id="null hides"),
        pytest.param({"plan": "gold"}, {"other": 1}, True, id="another sent"),
        pytest.param({"plan": None}, None, False, id="null stored"),
        pytest.param({"plan": ["gold"]}, None, False, id="another type stored"),
        pytest.param({"other": "gold"}, None, False, id="another stored"),
    ],
)
def test_stored_attributes_decide_where_none_are_sent(
    installation: Installation,
    evaluation: EvaluationServiceStub,
    flag_key: str,
    stored: dict[str, Any],
    sent: dict[str, Any] | None,
    *,
    value: bool,
) -> None:
    user_id = new_user()

    create(installation, user_id, **stored)

    assert ask(evaluation, flag_key, user_id, sent) is value


def test_every_change_of_a_user_is_evaluated_by_the_time_it_is_answered(
    installation: Installation, evaluation: EvaluationServiceStub, flag_key: str
) -> None:
    user_id, seen = new_user(), []
    changes: tuple[Callable[[], object], ...] = (
        lambda: create(installation, user_id, plan="gold"),
        lambda: update(installation, user_id, plan="free"),
        lambda: update(installation, user_id, plan="gold", age=3),
        lambda: update(installation, user_id),
        lambda: update(installation, user_id, plan="gold"),
        lambda: installation.admin.DeleteUser(pb.DeleteUserRequest(user_id=user_id)),
        lambda: create(installation, user_id, plan="gold"),
    )

    for change in changes:
        change()
        seen.append(ask(evaluation, flag_key, user_id))

    assert seen == [True, False, True, False, True, False, True]


def test_a_bulk_stream_sees_stored_attributes(
    installation: Installation, evaluation: EvaluationServiceStub, flag_key: str
) -> None:
    known, unknown = new_user(), new_user()
    create(installation, known, plan="gold")
    contexts = [EvaluationContext(user_id=user) for user in (known, unknown)]

    _, answer = evaluation.BulkEvaluateFlags(iter([BulkEvaluateFlagsRequest(flag_keys=[flag_key], contexts=contexts)]))

    assert [list(result.evaluation.values) for result in answer.batch.results] == [[True], [False]]


def test_another_instance_follows_users_by_delta(installation: Installation, ask_other: Ask, flag_key: str) -> None:
    user_id = new_user()

    before = ask_other(flag_key, user_id, create(installation, user_id, plan="gold"))
    after = ask_other(flag_key, user_id, update(installation, user_id, plan="free"))

    assert (before, after) == (True, False)


def test_another_instance_learns_newly_named_attributes_by_delta(
    installation: Installation, ask_other: Ask, flag_key: str
) -> None:
    user_id, attribute = new_user(), f"tier of {flag_key}"
    change = pb.UpdateSegmentRequest(segment=segment(flag_key, attribute), update_mask=FieldMask(paths=["conditions"]))

    before = ask_other(flag_key, user_id, create(installation, user_id, **{attribute: "gold"}))
    after = ask_other(flag_key, user_id, installation.admin.UpdateSegment(change).revision)

    assert (before, after) == (False, True)


def test_more_stored_values_than_the_cap_are_refused_whatever_adds_them(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute, known = f"capped {new_key()}", new_user()
    create(installation, known)
    key = new_key()
    installation.admin.CreateSegment(pb.CreateSegmentRequest(segment=segment(key, attribute)))
    named = installation.server.cache.current().attributes
    monkeypatch.setattr(installation.server.stores.users, "_attribute_cap", len(named))
    before = installation.revision()

    refusals = [
        refusal_of(lambda: create(installation, new_user(), **{attribute: 1})),
        refusal_of(lambda: update(installation, known, **{attribute: 1})),
    ]

    assert refusals == [refusals[0]] * 2
    assert (refusals[0].code, refusals[0].reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
    assert installation.revision() == before


def test_a_segment_that_names_more_stored_values_than_the_cap_is_refused(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute, key = f"capped {new_key()}", new_key()
    create(installation, new_user(), **{attribute: 1})
    monkeypatch.setattr(check_attribute_cap, "__kwdefaults__", {"cap": 0})

    refusal = refusal_of(
        lambda: installation.admin.CreateSegment(pb.CreateSegmentRequest(segment=segment(key, attribute)))
    )

    assert (refusal.code, refusal.metadata["limit"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "0")
