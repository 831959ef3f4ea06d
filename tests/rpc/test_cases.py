"""What has bitten others: each file of tests/cases has the facts of a public report, and is tried on a real server."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1 import segment_pb2
from gatekeeper_client.v1.client_key_pb2 import RATE_TIER_HIGH, ClientKey
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, WatchFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import Condition, Segment
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.condition import Condition as DomainCondition
from gatekeeper_grpc.domain.condition import Operator
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.interceptors import body
from gatekeeper_grpc.testing import serve
from gatekeeper_grpc.transport.admission import PoolName
from gatekeeper_grpc.wire import portions
from tests.support.clients import (
    TIMEOUT_S,
    Installation,
    Refusal,
    created,
    invalid,
    new_key,
    outcome_of,
    refusal_of,
    send,
    targets_of,
)
from tests.support.earlier_releases import accepting_any_name, accepting_empty_text
from tests.support.flags import flag, on_for
from tests.support.segments import segment
from tests.support.servers import connect
from tests.support.waiting import eventually
from tests.support.watching import watching

FILES = Path(__file__).parents[1] / "cases"
Case = Mapping[str, Any]
Try = Callable[[Installation, Case], None]
TRIES: dict[str, Try] = {}


def case_of(name: str) -> Case:
    facts: Case = json.loads((FILES / f"{name}.json").read_text())
    return facts


def tries(name: str) -> Callable[[Try], Try]:
    """Mark the function that tries the case of this name."""

    def register(act: Try) -> Try:
        TRIES[name] = act
        return act

    return register


# --- Conditions ------------------------------------------------------------------------------------------------------


def condition(operator: str, *values: Any, negate: bool = False) -> Condition:
    return Condition(
        attribute="a",
        operator=segment_pb2.ConditionOperator.Value(f"CONDITION_OPERATOR_{operator}"),
        values=[ParseDict(value, Value()) for value in values],
        negate=negate,
    )


def create_segment(installation: Installation, *conditions: Condition) -> str:
    key = new_key()
    request = pb.CreateSegmentRequest(segment=Segment(key=key, conditions=conditions))
    installation.admin.CreateSegment(request, timeout=TIMEOUT_S)
    return key


def flag_of(installation: Installation, segment_key: str) -> str:
    """Create a flag that is on for a segment alone."""
    targets = [SegmentTarget(segment_key=segment_key, value=True)]
    return created(installation.admin, enabled=True, segment_targets=targets).key


def matches(installation: Installation, flag_key: str, **attributes: Any) -> bool:
    context = EvaluationContext(user_id="anna", attributes=ParseDict(attributes, Struct()))
    request = EvaluateFlagsRequest(context=context, flag_keys=[flag_key])
    return EvaluationServiceStub(installation.channels[None]).EvaluateFlags(request, timeout=TIMEOUT_S).flags[flag_key]


def check_answers(installation: Installation, asked: list[Any], *conditions: Condition) -> None:
    flag_key = flag_of(installation, create_segment(installation, *conditions))

    assert [[value, matches(installation, flag_key, a=value)] for value, _ in asked] == asked


@tries("large-integers")
def _(installation: Installation, case: Case) -> None:
    check_answers(installation, case["asked"], condition("EQUALS", case["equals"]))


@tries("numbers-sent-as-text")
def _(installation: Installation, case: Case) -> None:
    check_answers(installation, case["asked"], condition("GREATER_OR_EQUAL", case["greater_or_equal"]))


@tries("prerelease-order")
def _(installation: Installation, case: Case) -> None:
    check_answers(installation, case["asked"], condition("SEMVER_GREATER", case["greater_than"]))


@tries("negation-of-a-missing-attribute")
def _(installation: Installation, case: Case) -> None:
    segment_key = create_segment(installation, condition(case["operator"], *case["values"], negate=True))

    assert matches(installation, flag_of(installation, segment_key)) is case["matches"]


@tries("negated-condition-on-what-cannot-be-read")
def _(installation: Installation, case: Case) -> None:
    for operator, bound, without_negate, values in case["asked"]:
        check_answers(installation, [[v, True] for v in values], condition(operator, bound, negate=True))
        check_answers(installation, [[v, False] for v in values], condition(without_negate, bound))


@tries("empty-text-matches-everybody")
def _(installation: Installation, case: Case) -> None:
    for operator, values, field in case["conditions"]:
        refusal = refusal_of(partial(create_segment, installation, condition(operator, *values)))
        assert refusal == invalid(f"segment.conditions[0].{field}")
        check_stored_is_used(installation, condition(operator, *values))


def check_stored_is_used(installation: Installation, stored: Condition) -> None:
    with accepting_empty_text():
        segment_key = create_segment(installation, stored)

    assert matches(installation, flag_of(installation, segment_key), a="anything")
    update = pb.UpdateSegmentRequest(
        segment=Segment(key=segment_key, description="changed"), update_mask=FieldMask(paths=["description"])
    )
    assert installation.admin.UpdateSegment(update, timeout=TIMEOUT_S).segment.conditions == [stored]


# --- Ids -------------------------------------------------------------------------------------------------------------


def requests_with(key: str, user_id: str) -> Iterator[tuple[str, Any, str]]:
    """Yield each RPC that takes a new id or name, its request, and the field that has it."""
    yield "AddTargets", pb.AddTargetsRequest(flag_key=key, user_ids=["x", user_id], value=True), "user_ids[1]"
    yield "ImportTargets", pb.ImportTargetsRequest(flag_key=key, user_ids=["x", user_id], value=True), "user_ids[1]"
    yield "AddSegmentMembers", pb.AddSegmentMembersRequest(segment_key=key, user_ids=["x", user_id]), "user_ids[1]"
    yield "CreateUser", pb.CreateUserRequest(user=User(user_id=user_id)), "user.user_id"
    named = User(user_id="x", attributes=Struct(fields={user_id: Value(bool_value=True)}))
    yield "CreateUser", pb.CreateUserRequest(user=named), f"user.attributes[{user_id!a}]"
    yield "CreateFlag", pb.CreateFlagRequest(flag=Flag(key="x", owner=user_id)), "flag.owner"
    yield "CreateFlag", pb.CreateFlagRequest(flag=Flag(key="x", tags=["x", user_id])), "flag.tags[1]"
    named_flag = pb.UpdateFlagRequest(flag=Flag(key=key, owner=user_id), update_mask=FieldMask(paths=["owner"]))
    yield "UpdateFlag", named_flag, "flag.owner"
    tests = Segment(key="x", conditions=[Condition(attribute=user_id, operator=segment_pb2.CONDITION_OPERATOR_EXISTS)])
    yield "CreateSegment", pb.CreateSegmentRequest(segment=tests), "segment.conditions[0].attribute"
    client_key = ClientKey(name=user_id, tier=RATE_TIER_HIGH)
    yield "CreateClientKey", pb.CreateClientKeyRequest(client_key=client_key), "client_key.name"


@tries("ids-that-look-alike")
def _(installation: Installation, case: Case) -> None:
    key = created(installation.admin, enabled=True).key
    send(installation.admin, "CreateSegment", pb.CreateSegmentRequest(segment=Segment(key=key)))
    admin = installation.admin_as(Role.ADMIN)
    for user_id in case["refused"]:
        for rpc, request, field in requests_with(key, user_id):
            refusal = refusal_of(partial(send, admin, rpc, request))
            assert (rpc, refusal.fields) == (rpc, (field,))
    assert targets_of(installation.admin, key) == {}

    add = pb.AddTargetsRequest(flag_key=key, user_ids=case["two_ids"], value=True)
    assert installation.admin.AddTargets(add, timeout=TIMEOUT_S).added_count == len(case["two_ids"])
    for user_id in case["refused"]:
        check_stored_id_is_used(installation, key, user_id)


def check_stored_id_is_used(installation: Installation, key: str, user_id: str) -> None:
    admin = installation.admin_as(Role.ADMIN)
    owner = Flag(key=key, owner=user_id, description=user_id)
    with accepting_any_name():
        send(admin, "AddTargets", pb.AddTargetsRequest(flag_key=key, user_ids=[user_id], value=True))
        send(admin, "AddSegmentMembers", pb.AddSegmentMembersRequest(segment_key=key, user_ids=[user_id]))
        send(admin, "CreateUser", pb.CreateUserRequest(user=User(user_id=user_id)))
        send(admin, "UpdateFlag", pb.UpdateFlagRequest(flag=owner, update_mask=FieldMask(paths=["owner"])))

    assert matches_for(installation, key, user_id)
    assert send(admin, "GetUser", pb.GetUserRequest(user_id=user_id)).user.user_id == user_id
    attributes = User(user_id=user_id, attributes=ParseDict({"plan": "pro"}, Struct()))
    send(admin, "UpdateUser", pb.UpdateUserRequest(user=attributes, update_mask=FieldMask(paths=["attributes"])))
    whole = FieldMask(paths=["owner", "enabled"])
    send(admin, "UpdateFlag", pb.UpdateFlagRequest(flag=Flag(key=key, owner=user_id), update_mask=whole))
    send(admin, "UpdateFlag", pb.UpdateFlagRequest(flag=Flag(key=key, enabled=True), update_mask=whole))
    exported = list(admin.ExportUserData(pb.ExportUserDataRequest(user_id=user_id), timeout=TIMEOUT_S))
    assert [part.targets.targets[0].flag_key for part in exported if part.HasField("targets")] == [key]
    members = pb.RemoveSegmentMembersRequest(segment_key=key, user_ids=[user_id])
    assert send(admin, "RemoveSegmentMembers", members).removed_count == 1
    assert send(admin, "EraseUser", pb.EraseUserRequest(user_id=user_id)).targets_removed == 1


def matches_for(installation: Installation, flag_key: str, user_id: str) -> bool:
    return installation.evaluate(flag_key, user_id).value


@tries("erase-numeric-user-id")
def _(installation: Installation, case: Case) -> None:
    admin = installation.admin_as(Role.ADMIN)
    for _ in range(case["flags"]):
        created(admin)
    for user_id in case["user_ids"]:
        send(admin, "CreateUser", pb.CreateUserRequest(user=User(user_id=user_id)))

    for user_id in case["user_ids"]:
        for validate_only in (True, False):
            erase = pb.EraseUserRequest(user_id=user_id, validate_only=validate_only)
            assert send(admin, "EraseUser", erase).documents_redacted == case["documents_redacted"]


# --- Answers that fit ------------------------------------------------------------------------------------------------


def walked(installation: Installation, rpc: str, field: str, **fields: Any) -> list[list[Any]]:
    """Read all pages with a client that has gRPC's own limits."""
    request = getattr(pb, f"{rpc}Request")(**fields)
    pages: list[list[Any]] = []
    while not pages or request.page_token:
        page = send(installation.admin, rpc, request)
        pages.append(list(getattr(page, field)))
        request.page_token = page.next_page_token
    return pages


@tries("list-users-page-over-4-mib")
def _(installation: Installation, case: Case) -> None:
    attributes = ParseDict({"a": "x" * case["attribute_chars"]}, Struct())
    user_ids = [f"large-{number:03}" for number in range(case["users"])]
    for user_id in user_ids:
        send(installation.admin, "CreateUser", pb.CreateUserRequest(user=User(user_id=user_id, attributes=attributes)))

    pages = walked(installation, "ListUsers", "users", page_size=case["page_size"], user_id_prefix="large-")

    assert [user.user_id for page in pages for user in page] == user_ids
    assert 1 < len(pages[0]) < case["page_size"]


@tries("list-segments-default-page-over-4-mib")
def _(installation: Installation, case: Case) -> None:
    keys = [f"large-{number:02}" for number in range(case["segments"])]
    values = [f"{number:04}".ljust(case["value_chars"], "x") for number in range(case["values"])]
    for key in keys:
        large = Segment(key=key, conditions=[condition("IN", *values)] if key != keys[-1] else [])
        send(installation.admin, "CreateSegment", pb.CreateSegmentRequest(segment=large))

    pages = walked(installation, "ListSegments", "segments", key_prefix="large-")

    assert [listed.key for page in pages for listed in page] == keys
    assert all(page for page in pages)


@tries("pages-while-flags-come-and-go")
def _(installation: Installation, case: Case) -> None:
    keys = [f"p{number:02}" for number in range(case["flags"])]
    for key in keys:
        created(installation.admin, key=key)
    request = pb.ListFlagsRequest(page_size=case["page_size"], key_prefix="p")
    seen = []
    for number in range(case["flags"]):
        page = send(installation.admin, "ListFlags", request)
        seen += [listed.key for listed in page.flags]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
        if number + 1 == case["pages_before"]:
            for key in case["deleted"]:
                send(installation.admin, "DeleteFlag", pb.DeleteFlagRequest(key=key))
            for key in case["created"]:
                created(installation.admin, key=key)

    assert seen == sorted({*keys, *case["created"]} - {*case["not_seen"]})


@tries("evaluate-all-with-details-10600-flags")
def _(_installation: Installation, case: Case) -> None:
    anybody = DomainCondition(attribute="a", operator=Operator.EXISTS, negate=True)
    group = segment("s" * case["segment_key_chars"], anybody)
    keys = [f"{number:0{case['flag_key_chars']}}" for number in range(case["flags"])]
    flags = [flag(key, flag_id=n, enabled=True, segment_targets=on_for(group.key)) for n, key in enumerate(keys)]
    with serve() as server, grpc.insecure_channel(server.address) as channel:
        server._publish(Snapshot.build(revision=2, flags=flags, segments=[group]))
        stub = EvaluationServiceStub(channel)
        ask = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
        assert len(stub.EvaluateFlags(ask, timeout=TIMEOUT_S).flags) == case["flags"]
        ask.include_details = True

        with pytest.raises(grpc.RpcError) as refused:
            stub.EvaluateFlags(ask, timeout=TIMEOUT_S)

        check_refused(refusal_of(lambda: stub.EvaluateFlags(ask, timeout=TIMEOUT_S)), case)
        assert all(word in str(refused.value) for word in case["advice"])
        ask.flag_keys.extend(keys[:1_000])
        assert len(stub.EvaluateFlags(ask, timeout=TIMEOUT_S).details) == 1_000


def check_refused(refusal: Refusal, case: Case) -> None:
    assert (refusal.code.name, refusal.reason) == (case["refused_with"], case["reason"])


@tries("hundred-watchers-on-one-channel")
def _(installation: Installation, case: Case) -> None:
    with connect(installation.server) as channel:
        stub = EvaluationServiceStub(channel)
        calls = [stub.WatchFlags(WATCH_ALL, timeout=TIMEOUT_S) for _ in range(case["watchers"])]
        answers = [outcome_of(partial(next, call)) for call in calls]
        refusals = [answer for answer in answers if isinstance(answer, Refusal)]

        assert len(refusals) == case["watchers"] - case["open"]
        for refusal in refusals:
            check_refused(refusal, case)
        assert stub.EvaluateFlags(ASK_ANNA, timeout=case["deadline_s"]).revision
        calls[0].cancel()
        assert eventually(lambda: opens(stub))


WATCH_ALL = WatchFlagsRequest()
ASK_ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))


def opens(stub: EvaluationServiceStub) -> bool:
    """Return whether another watcher is taken."""
    call = stub.WatchFlags(WATCH_ALL, timeout=TIMEOUT_S)
    try:
        return next(call) is not None
    except grpc.RpcError:
        return False


def test_twin_without_the_limit_a_call_waits_behind_100_watchers(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    (limit,) = installation.server.pools[PoolName.WATCH]._stream_limits
    monkeypatch.setattr(limit, "_most", 1_000)
    with connect(installation.server) as channel:
        stub = EvaluationServiceStub(channel)
        calls = [stub.WatchFlags(WATCH_ALL, timeout=TIMEOUT_S) for _ in range(100)]
        for call in calls:
            next(call)

        with pytest.raises(grpc.RpcError) as failure:
            stub.EvaluateFlags(ASK_ANNA, timeout=0.5)

    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_twin_without_the_bounds_the_client_refuses_the_page(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "MAX_PORTION_BYTES", 1 << 30)
    monkeypatch.setattr(body, "MAX_RESPONSE_BYTES", 1 << 30)
    attributes = ParseDict({"a": "x" * 15_000}, Struct())
    for number in range(300):
        user = User(user_id=f"twin-{number:03}", attributes=attributes)
        send(installation.admin, "CreateUser", pb.CreateUserRequest(user=user))

    with pytest.raises(grpc.RpcError, match="larger than max"):
        send(installation.admin, "ListUsers", pb.ListUsersRequest(page_size=300, user_id_prefix="twin-"))


# --- Changes ---------------------------------------------------------------------------------------------------------


@tries("update-that-changes-nothing")
def _(installation: Installation, case: Case) -> None:
    as_is = created(installation.admin, enabled=True)
    add = pb.AddTargetsRequest(flag_key=as_is.key, user_ids=[case["target"]], value=True)
    send(installation.admin, "AddTargets", add)
    before = installation.contents()
    with watching(installation.channels[None], as_is.key) as watch:
        watch.read()
        update = pb.UpdateFlagRequest(flag=as_is, update_mask=FieldMask(paths=["enabled"]))
        etags = {send(installation.admin, "UpdateFlag", update).flag.etag for _ in range(case["times"])}
        send(installation.admin, "AddTargets", add)
        send(
            installation.admin,
            "RemoveTargets",
            pb.RemoveTargetsRequest(flag_key=as_is.key, user_ids=[case["not_targeted"]]),
        )

        assert (etags, installation.contents()) == ({as_is.etag}, before)
        send(installation.admin, "DeleteFlag", pb.DeleteFlagRequest(key=as_is.key))
        assert watch.read_changes() == {as_is.key: "DELETED"}


@tries("flag-deleted-and-made-again")
def _(installation: Installation, case: Case) -> None:
    key, users = new_key(), [f"user-{number}" for number in range(case["users"])]
    rollout = {"key": key, "enabled": True, "rollout_percentage": case["rollout_percentage"]}
    created(installation.admin, **rollout)
    before = [matches_for(installation, key, user) for user in users]
    add = pb.AddTargetsRequest(flag_key=key, user_ids=[case["target"]], value=True)
    revision = send(installation.admin, "AddTargets", add).revision

    with watching(installation.channels[None], key) as watch:
        watch.read()
        send(installation.admin, "DeleteFlag", pb.DeleteFlagRequest(key=key))
        told = [watch.read_changes()]
        created(installation.admin, **rollout)
        told.append(watch.read_changes())

    assert [change[key] for change in told] == case["told"]
    assert [matches_for(installation, key, user) for user in users] == before
    assert targets_of(installation.admin, key) == {}
    with watching(installation.channels[None], key, from_revision=revision) as watch:
        assert [watch.read_changes()[key]] == case["told_who_resumes"]


@tries("import-while-its-flag-is-deleted-and-made-again")
def _(installation: Installation, case: Case) -> None:
    key, size = created(installation.admin).key, case["ids_per_message"]

    def messages() -> Iterator[pb.ImportTargetsRequest]:
        for number in range(case["messages_before"]):
            yield message(number)
        assert eventually(
            lambda: len(targets_of(installation.admin, key)) == min(1_000, case["messages_before"] * size)
        )
        send(installation.admin, "DeleteFlag", pb.DeleteFlagRequest(key=key))
        yield message(case["messages_before"])

    def message(number: int) -> pb.ImportTargetsRequest:
        return pb.ImportTargetsRequest(flag_key=key, user_ids=[f"{number}-{user}" for user in range(size)], value=True)

    refusal = refusal_of(lambda: installation.admin.ImportTargets(messages(), timeout=TIMEOUT_S))
    created(installation.admin, key=key)

    assert refusal.code.name == case["refused_with"]
    assert targets_of(installation.admin, key) == {}


# --- The table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TRIES))
def test_what_bit_others_does_not_bite_here(installation: Installation, name: str) -> None:
    TRIES[name](installation, case_of(name))


def test_every_case_is_tried() -> None:
    assert {path.stem for path in FILES.glob("*.json")} == TRIES.keys()
