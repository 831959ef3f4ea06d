"""ApplyConfiguration: what it changes, all of it or nothing, and what it leaves in the audit log."""

import json
import threading
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.struct_pb2 import Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.audit_pb2 import ResourceType
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_IN, Condition, Segment
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.store.configuration import store
from tests.support.access_events import REFUSING, SERVING, events, subject_of
from tests.support.clients import (
    TIMEOUT_S,
    Installation,
    Refusal,
    created,
    invalid,
    new_key,
    refusal_of,
    send,
    targets_of,
)

PLAN = Condition(attribute="plan", operator=CONDITION_OPERATOR_IN, values=[Value(string_value="pro")])


def apply(installation: Installation, **fields: Any) -> pb.ApplyConfigurationResponse:
    response = send(installation.admin, "ApplyConfiguration", pb.ApplyConfigurationRequest(**fields))
    assert isinstance(response, pb.ApplyConfigurationResponse)
    return response


def refused(installation: Installation, **fields: Any) -> tuple[str, str, str]:
    """Apply what must be refused and must change nothing; return the code, the reason and the field."""
    before = installation.contents(but="auth_events")
    error = refusal_of(lambda: apply(installation, **fields))
    assert installation.contents(but="auth_events") == before
    return error.code.name, error.reason, dict(error.metadata).get("field", "")


def user_with(user_id: str, **attributes: Any) -> User:
    user = User(user_id=user_id)
    user.attributes.update(attributes)
    return user


def whole(key: str) -> dict[str, Any]:
    """A segment with a condition and members, and a flag that targets it, with targets of its own."""
    return {
        "segments": [Segment(key=key, conditions=[PLAN])],
        "flags": [Flag(key=key, enabled=True, segment_targets=[SegmentTarget(segment_key=key, value=True)])],
        "members": [pb.ConfiguredMembers(segment_key=key, user_ids=[f"{key}-ann", f"{key}-bob"])],
        "targets": [
            pb.ConfiguredTargets(flag_key=key, value=True, user_ids=[f"{key}-cy"]),
            pb.ConfiguredTargets(flag_key=key, value=False, user_ids=[f"{key}-bob"]),
        ],
    }


def kinds(response: pb.ApplyConfigurationResponse) -> list[tuple[str, str]]:
    return [
        (
            ResourceType.Name(change.resource_type).removeprefix("RESOURCE_TYPE_"),
            pb.ConfigurationChangeType.Name(change.change_type).removeprefix("CONFIGURATION_CHANGE_TYPE_"),
        )
        for change in response.changes
    ]


# --- What it does -----------------------------------------------------------------------------------------------------


def test_all_kinds_of_resources_are_made_and_evaluated_at_once(installation: Installation) -> None:
    key = new_key()

    response = apply(installation, **whole(key))

    assert kinds(response) == [
        ("SEGMENT", "CREATED"),
        ("MEMBERS", "UPDATED"),
        ("FLAG", "CREATED"),
        ("TARGETS", "UPDATED"),
    ]
    users = [f"{key}-{name}" for name in ("ann", "bob", "cy", "dan")]
    assert [installation.evaluate(key, user).value for user in users] == [True, False, True, False]
    assert targets_of(installation.admin, key) == {f"{key}-cy": True, f"{key}-bob": False}


def test_each_changed_resource_has_its_revision_and_entry_with_one_id(installation: Installation) -> None:
    before = installation.revision()

    response = apply(installation, **whole(new_key()), change_reason="a file")

    rows = installation.query(
        "SELECT a.revision, a.action, d.document FROM audit_log a JOIN audit_documents d USING (seq)"
        " WHERE a.revision > %s ORDER BY a.seq",
        before,
    )
    documents = [json.loads(document) for _, _, document in rows]
    assert [revision for revision, *_ in rows] == [change.revision for change in response.changes]
    assert [revision for revision, *_ in rows] == [before + 1, before + 2, before + 3, before + 4]
    assert {action for _, action, _ in rows} == {"ApplyConfiguration"}
    assert {(d["apply_id"], d["change_reason"]) for d in documents} == {(response.apply_id, "a file")}
    assert response.revision == before + 4
    assert response.audit_anchor == installation.audit_anchor()


def test_applying_twice_changes_nothing(installation: Installation) -> None:
    key = new_key()
    apply(installation, **whole(key))
    before = installation.contents(but="auth_events")

    response = apply(installation, **whole(key))

    assert (list(response.changes), response.apply_id, response.HasField("audit_anchor")) == ([], "", False)
    assert installation.contents(but="auth_events") == before


def test_only_what_differs_is_written(installation: Installation) -> None:
    key, other = new_key(), new_key()
    apply(installation, flags=[Flag(key=key), Flag(key=other, owner="web")])

    response = apply(installation, flags=[Flag(key=key, rollout_percentage=5), Flag(key=other, owner="web")])

    assert [(change.key, list(change.fields)) for change in response.changes] == [(key, ["rollout_percentage"])]


def test_a_field_has_the_name_that_messages_give_it(installation: Installation) -> None:
    (change,) = apply(installation, flags=[Flag(key=new_key(), default_value=True)]).changes

    assert list(change.fields) == ["default_value"]


def test_users_who_are_not_named_stay_unless_they_are_to_be_removed(installation: Installation) -> None:
    key = created(installation.admin, enabled=True).key
    apply(installation, targets=[pb.ConfiguredTargets(flag_key=key, value=True, user_ids=["a", "b", "c"])])
    apply(installation, targets=[pb.ConfiguredTargets(flag_key=key, value=False, user_ids=["a", "d"])])
    assert targets_of(installation.admin, key) == {"a": False, "b": True, "c": True, "d": False}

    only_b = pb.ConfiguredTargets(flag_key=key, value=True, user_ids=["b"], remove_others=True)
    (change,) = apply(installation, targets=[only_b]).changes

    assert (change.added_count, change.moved_count, change.removed_count) == (0, 0, 1)
    assert targets_of(installation.admin, key) == {"a": False, "b": True, "d": False}


def test_what_is_to_be_deleted_goes_with_what_it_has(installation: Installation) -> None:
    key = new_key()
    apply(installation, **whole(key))
    gone = [pb.ConfigurationDeletion(key=key)]

    response = apply(installation, flag_deletions=gone, segment_deletions=gone)

    assert kinds(response) == [("FLAG", "DELETED"), ("SEGMENT", "DELETED")]
    assert installation.query("SELECT count(*) FROM feature_flags WHERE key = %s", key) == [(0,)]


def test_a_dry_run_says_what_would_change_and_changes_nothing(installation: Installation) -> None:
    key = new_key()
    before = installation.contents(but="auth_events")

    tried = apply(installation, **whole(key), validate_only=True)

    assert installation.contents(but="auth_events") == before
    assert kinds(tried) == kinds(apply(installation, **whole(key)))
    assert {change.revision for change in tried.changes} == {0}


def test_a_retry_gets_the_first_answer(installation: Installation) -> None:
    request = {**whole(new_key()), "request_id": str(uuid4())}
    first = apply(installation, **request)
    flag = request["flags"][0]
    apply(installation, flags=[Flag(key=flag.key, owner="another")])

    assert apply(installation, **request) == first


def test_evaluation_never_sees_a_part_of_it(installation: Installation) -> None:
    keys = [new_key() for _ in range(50)]
    apply(installation, flags=[Flag(key=key) for key in keys])
    stub, done, seen = EvaluationServiceStub(installation.channels[None]), threading.Event(), set()

    def evaluate() -> None:
        while not done.is_set():
            context = EvaluationContext(user_id="a")
            answer = stub.EvaluateFlags(EvaluateFlagsRequest(context=context, flag_keys=keys), timeout=TIMEOUT_S)
            seen.add(tuple(answer.flags[key] for key in keys))

    thread = threading.Thread(target=evaluate)
    thread.start()
    try:
        for turn in range(10):
            apply(installation, flags=[Flag(key=key, default_value=turn % 2 == 0) for key in keys])
    finally:
        done.set()
        thread.join()

    assert seen == {(True,) * 50, (False,) * 50}


# --- Stored users -----------------------------------------------------------------------------------------------------


def test_users_are_made_as_they_should_be_and_evaluated(installation: Installation) -> None:
    key = new_key()
    on, off = f"{key}-on", f"{key}-off"
    apply(installation, **whole(key), users=[user_with(on, plan="free", age=7), user_with(off, plan="pro")])
    assert [installation.evaluate(key, user).value for user in (on, off)] == [False, True]

    response = apply(installation, users=[user_with(on, plan="pro"), user_with(off, plan="free")])

    assert kinds(response) == [("USER", "UPDATED")] * 2
    assert [(change.key, list(change.fields)) for change in response.changes] == [
        (on, ["attributes.age", "attributes.plan"]),
        (off, ["attributes.plan"]),
    ]
    assert [installation.evaluate(key, user).value for user in (on, off)] == [True, False]
    stored = send(installation.admin, "GetUser", pb.GetUserRequest(user_id=on)).user
    assert (dict(stored.attributes), stored.revision) == ({"plan": "pro"}, response.changes[0].revision)


def test_a_changed_user_has_an_entry_as_by_update_user(installation: Installation) -> None:
    user_id = new_key()

    response = apply(installation, users=[user_with(user_id, plan="pro")])

    ((key, document),) = installation.query(
        "SELECT a.resource_key, d.document FROM audit_log a JOIN audit_documents d USING (seq) WHERE a.revision = %s",
        response.revision,
    )
    said = json.loads(document)
    assert key == subject_of(installation, user_id)
    assert (said["before"], said["after"]["attributes"], said["apply_id"]) == (None, {"plan": "pro"}, response.apply_id)
    assert user_id not in document.decode()


def test_users_who_are_as_they_should_be_are_not_written(installation: Installation) -> None:
    same, other = new_key(), new_key()
    apply(installation, users=[user_with(same, age=1), user_with(other, age=1)])
    before = installation.contents(but="auth_events")
    assert not apply(installation, users=[user_with(same, age=1), user_with(other, age=1)]).changes
    assert installation.contents(but="auth_events") == before

    (change,) = apply(installation, users=[user_with(same, age=1), user_with(other, age=True)]).changes

    assert change.key == other


def test_a_user_is_deleted_and_stays_a_target(installation: Installation) -> None:
    flag, user_id = created(installation.admin, enabled=True), new_key()
    targets = [pb.ConfiguredTargets(flag_key=flag.key, value=True, user_ids=[user_id])]
    apply(installation, users=[user_with(user_id, plan="pro")], targets=targets)

    response = apply(installation, user_deletions=[pb.ConfigurationDeletion(key=user_id)])

    assert (kinds(response), response.changes[0].key) == ([("USER", "DELETED")], user_id)
    assert targets_of(installation.admin, flag.key) == {user_id: True}


@pytest.mark.parametrize("validate_only", [True, False], ids=["a dry run", "a change"])
def test_whose_attributes_are_compared_is_recorded(installation: Installation, *, validate_only: bool) -> None:
    known, unknown = new_key(), new_key()
    apply(installation, users=[user_with(known, plan="pro")])
    before = len(events(installation, event="users_compared"))

    apply(installation, users=[user_with(known, plan="pro"), User(user_id=unknown)], validate_only=validate_only)

    latest, *earlier = events(installation, event="users_compared")
    assert (list(latest.subject_ids), len(earlier)) == ([subject_of(installation, known)], before)


def test_users_are_not_compared_if_that_cannot_be_recorded(installation: Installation) -> None:
    user = user_with(new_key(), plan="pro")
    apply(installation, users=[user])
    installation.execute(REFUSING)
    try:
        refusal_of(lambda: apply(installation, users=[user], validate_only=True))
    finally:
        installation.execute(SERVING)


def test_an_erasure_takes_the_entries_and_the_stored_answer(installation: Installation) -> None:
    user_id, other = new_key(), new_key()
    request = {"users": [user_with(other, a=1), user_with(user_id, plan="vip-7")], "request_id": str(uuid4())}
    first = apply(installation, flags=[Flag(key=new_key())], **request)
    (seq,) = {change.revision for change in first.changes if change.key == user_id}

    send(installation.admin_as(Role.ADMIN), "EraseUser", pb.EraseUserRequest(user_id=user_id))

    ((document,),) = installation.query(
        "SELECT document FROM audit_documents JOIN audit_log USING (seq) WHERE revision = %s", seq
    )
    assert b"vip-7" not in document
    assert installation.query("SELECT 1 FROM idempotency_keys WHERE revision = %s", first.revision) == []
    (again,) = apply(installation, users=request["users"]).changes
    assert (again.key, pb.ConfigurationChangeType.Name(again.change_type)) == (
        user_id,
        "CONFIGURATION_CHANGE_TYPE_CREATED",
    )


# --- What it refuses --------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a flag": ({"flags": [Flag(key="ok"), Flag(key="x", rollout_percentage=101)]}, "flags[1].rollout_percentage"),
    "a segment target": (
        {"flags": [Flag(key="ok", segment_targets=[SegmentTarget(segment_key="b")])]},
        "flags[0].segment_targets[0].value",
    ),
    "a segment": (
        {"segments": [Segment(key="ok", conditions=[Condition(attribute="a")])]},
        "segments[0].conditions[0].operator",
    ),
    "a user": (
        {"flags": [Flag(key="ok")], "targets": [pb.ConfiguredTargets(flag_key="ok", value=True, user_ids=["a", ""])]},
        "targets[0].user_ids[1]",
    ),
    "a user who cannot be seen": (
        {"segments": [Segment(key="ok")], "members": [pb.ConfiguredMembers(segment_key="ok", user_ids=["a", "b "])]},
        "members[0].user_ids[1]",
    ),
    "a tag that cannot be seen": ({"flags": [Flag(key="ok", tags=["a", "b "])]}, "flags[0].tags[1]"),
    "attributes of a user": ({"users": [User(user_id="ok"), user_with("x", big="a" * 17_000)]}, "users[1].attributes"),
    "a user without an id": ({"users": [User()]}, "users[0].user_id"),
    "a user id that cannot be seen": ({"users": [User(user_id="b ")]}, "users[0].user_id"),
    "an attribute that cannot be seen": ({"users": [user_with("ok", **{"b ": 1})]}, "users[0].attributes['b ']"),
    "a stored user twice": ({"users": [User(user_id="ok"), User(user_id="ok")]}, "users[1].user_id"),
    "a stored user to make and to delete": (
        {"users": [User(user_id="ok")], "user_deletions": [pb.ConfigurationDeletion(key="ok")]},
        "user_deletions[0].key",
    ),
    "targets without a value": ({"targets": [pb.ConfiguredTargets(flag_key="ok")]}, "targets[0].value"),
    "a flag twice": ({"flags": [Flag(key="ok"), Flag(key="ok")]}, "flags[1].key"),
    "a flag to make and to delete": (
        {"flags": [Flag(key="ok")], "flag_deletions": [pb.ConfigurationDeletion(key="ok")]},
        "flag_deletions[0].key",
    ),
    "a user with two values": (
        {
            "flags": [Flag(key="ok")],
            "targets": [pb.ConfiguredTargets(flag_key="ok", value=value, user_ids=["a"]) for value in (True, False)],
        },
        "targets[1].user_ids[0]",
    ),
    "too many users": (
        {
            "flags": [Flag(key="ok")],
            "targets": [
                pb.ConfiguredTargets(flag_key="ok", value=True, user_ids=[f"u{n}" for n in range(9_999)]),
                pb.ConfiguredTargets(flag_key="ok", value=False, user_ids=["a", "b"]),
            ],
        },
        "targets[1].user_ids",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_entry_changes_nothing_and_is_named(installation: Installation, name: str) -> None:
    fields, field = BAD[name]

    assert refused(installation, **fields) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT", field)


def test_what_is_not_there_is_named_by_its_field(installation: Installation) -> None:
    missing = new_key()
    aimed = Flag(key=new_key(), segment_targets=[SegmentTarget(segment_key=missing, value=True)])

    assert [
        refused(installation, **fields)
        for fields in (
            {"flags": [aimed]},
            {"targets": [pb.ConfiguredTargets(flag_key=missing, value=True)]},
            {"members": [pb.ConfiguredMembers(segment_key=missing)]},
            {"flag_deletions": [pb.ConfigurationDeletion(key=missing)]},
            {"segment_deletions": [pb.ConfigurationDeletion(key=missing)]},
            {"flags": [Flag(key=missing, etag="seen")]},
            {"users": [User(user_id=missing, etag="seen")]},
            {"user_deletions": [pb.ConfigurationDeletion(key=missing)]},
        )
    ] == [
        ("NOT_FOUND", "SEGMENT_NOT_FOUND", "flags[0].segment_targets[0].segment_key"),
        ("NOT_FOUND", "FLAG_NOT_FOUND", "targets[0]"),
        ("NOT_FOUND", "SEGMENT_NOT_FOUND", "members[0]"),
        ("NOT_FOUND", "FLAG_NOT_FOUND", "flag_deletions[0]"),
        ("NOT_FOUND", "SEGMENT_NOT_FOUND", "segment_deletions[0]"),
        ("NOT_FOUND", "FLAG_NOT_FOUND", "flags[0]"),
        ("NOT_FOUND", "USER_NOT_FOUND", "users[0]"),
        ("NOT_FOUND", "USER_NOT_FOUND", "user_deletions[0]"),
    ]


def test_an_etag_that_is_not_the_present_one_is_a_conflict(installation: Installation) -> None:
    key = new_key()
    apply(installation, **whole(key))
    apply(installation, users=[User(user_id=key)])
    gone = [pb.ConfigurationDeletion(key=key, etag="stale")]

    assert [
        refused(installation, **fields)
        for fields in (
            {"flags": [Flag(key=key, etag="stale")]},
            {"segments": [Segment(key=key, etag="stale")]},
            {"flag_deletions": gone},
            {"segment_deletions": gone},
            {"users": [User(user_id=key, etag="stale")]},
            {"user_deletions": gone},
        )
    ] == [
        ("ABORTED", "ETAG_MISMATCH", field)
        for field in (
            *("flags[0]", "segments[0]", "flag_deletions[0]", "segment_deletions[0]"),
            *("users[0]", "user_deletions[0]"),
        )
    ]


def test_the_present_etag_is_accepted(installation: Installation) -> None:
    flag = created(installation.admin)

    assert len(apply(installation, flags=[Flag(key=flag.key, etag=flag.etag, owner="web")]).changes) == 1


def test_a_segment_that_a_flag_uses_is_not_deleted(installation: Installation) -> None:
    key = new_key()
    apply(installation, **whole(key))

    assert refused(installation, segment_deletions=[pb.ConfigurationDeletion(key=key)]) == (
        "FAILED_PRECONDITION",
        "SEGMENT_IN_USE",
        "segment_deletions[0]",
    )


def test_more_than_a_thousand_changes_are_refused(installation: Installation) -> None:
    flags = [Flag(key=new_key()) for _ in range(1_001)]

    assert refused(installation, flags=flags)[:2] == ("RESOURCE_EXHAUSTED", "CONFIGURATION_TOO_LARGE")


def test_a_set_that_is_too_large_to_compare_is_refused(installation: Installation) -> None:
    flag = created(installation.admin)
    for batch in range(3):
        users = [f"user-{number}" for number in range(batch * 10_000, (batch + 1) * 10_000)]
        send(
            installation.admin, "ImportTargets", pb.ImportTargetsRequest(flag_key=flag.key, user_ids=users, value=True)
        )
    none = pb.ConfiguredTargets(flag_key=flag.key, value=True, remove_others=True)

    assert refused(installation, targets=[none]) == ("RESOURCE_EXHAUSTED", "CONFIGURATION_TOO_LARGE", "targets[0]")


def test_more_flags_than_the_quota_are_refused(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatekeeper_grpc.store.quotas._most_rows", lambda *_: 20_001)
    monkeypatch.setattr("gatekeeper_grpc.store.quotas._rows", lambda *_: 20_001)

    assert refused(installation, flags=[Flag(key=new_key())])[:2] == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")


def test_more_users_than_the_quota_are_refused(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatekeeper_grpc.store.quotas._most_rows", lambda *_: 10_000_001)
    monkeypatch.setattr("gatekeeper_grpc.store.quotas._rows", lambda *_: 10_000_001)

    assert refused(installation, users=[User(user_id=new_key())])[:2] == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")


def test_more_stored_values_than_the_cap_are_refused(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatekeeper_grpc.store.attribute_cap.one", lambda _: (1_000_001,))

    assert refused(installation, users=[user_with(new_key(), plan="pro")])[0] == "RESOURCE_EXHAUSTED"


def test_what_keeps_others_waiting_too_long_is_undone(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{store.__name__}.MAX_LOCK_S", 0.005)
    key = new_key()
    users = [f"user-{number}" for number in range(10_000)]
    targets = [pb.ConfiguredTargets(flag_key=key, value=True, user_ids=users)]

    assert refused(installation, flags=[Flag(key=key)], targets=targets)[:2] == (
        "RESOURCE_EXHAUSTED",
        "CONFIGURATION_TOO_LARGE",
    )


def test_a_message_above_3_mib_is_refused(installation: Installation) -> None:
    users = [f"{number:0>250}" for number in range(13_000)]
    lists = [pb.ConfiguredMembers(segment_key=f"s{at}", user_ids=users[at::2]) for at in range(2)]

    assert refused(installation, members=lists)[:2] == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")


def test_a_viewer_may_not_apply(installation: Installation) -> None:
    request = pb.ApplyConfigurationRequest(flags=[Flag(key="a")])

    refusal = refusal_of(lambda: send(installation.admin_as(Role.VIEWER), "ApplyConfiguration", request))

    assert isinstance(refusal, Refusal)
    assert refusal.reason == "PERMISSION_DENIED"


def test_the_field_of_a_bad_key_is_the_one_of_the_request(installation: Installation) -> None:
    assert refusal_of(lambda: apply(installation, flags=[Flag(key="")])) == invalid("flags[0].key")
