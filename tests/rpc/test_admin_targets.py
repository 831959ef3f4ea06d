"""AddTargets, RemoveTargets, ListTargets: who is targeted, what is counted, and what evaluation makes of it."""

from dataclasses import dataclass

import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import REASON_DEFAULT, REASON_STATIC, REASON_TARGETING_MATCH, EvaluationDetail
from tests.support.clients import (
    Installation,
    created,
    targets_of,
)
from tests.support.earlier_releases import accepting_any_name
from tests.support.mutations import MUTATIONS, flag_to_mutate


@pytest.fixture
def admin(installation: Installation) -> AdminServiceStub:
    return installation.admin


@pytest.fixture
def key(admin: AdminServiceStub) -> str:
    """The key of an enabled flag without targets."""
    return created(admin, enabled=True).key


def add(admin: AdminServiceStub, key: str, users: list[str], *, value: bool) -> pb.AddTargetsResponse:
    return admin.AddTargets(pb.AddTargetsRequest(flag_key=key, user_ids=users, value=value))


def remove(admin: AdminServiceStub, key: str, users: list[str]) -> pb.RemoveTargetsResponse:
    return admin.RemoveTargets(pb.RemoveTargetsRequest(flag_key=key, user_ids=users))


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """Who is targeted before, who is added, and what comes of it."""

    before: dict[str, bool]
    users: list[str]
    value: bool = True
    added: int = 0
    moved: int = 0
    after: dict[str, bool]


ADDITIONS = {
    "new ones": Addition(before={}, users=["a", "b"], added=2, after={"a": True, "b": True}),
    "a new one with false": Addition(before={}, users=["a"], value=False, added=1, after={"a": False}),
    "the same again": Addition(before={"a": True}, users=["a"], after={"a": True}),
    "moved to false": Addition(before={"a": True}, users=["a"], value=False, moved=1, after={"a": False}),
    "moved to true": Addition(before={"a": False}, users=["a"], moved=1, after={"a": True}),
    "some of each": Addition(
        before={"a": True, "b": False, "x": False},
        users=["a", "b", "c"],
        added=1,
        moved=1,
        after={"a": True, "b": True, "c": True, "x": False},
    ),
}


@pytest.mark.parametrize("case", ADDITIONS.values(), ids=ADDITIONS.keys())
def test_adding_targets_counts_who_is_new_and_who_is_moved(
    installation: Installation, key: str, case: Addition
) -> None:
    admin = installation.admin
    for user, value in case.before.items():
        add(admin, key, [user], value=value)

    response = add(admin, key, case.users, value=case.value)

    assert response == pb.AddTargetsResponse(
        revision=installation.revision(),
        added_count=case.added,
        moved_count=case.moved,
        audit_anchor=installation.audit_anchor() if case.added or case.moved else None,
    )
    assert targets_of(admin, key) == case.after


REMOVALS = {
    "all": (["a", "b"], 2, {}),
    "some": (["a"], 1, {"b": False}),
    "some, and some who were not": (["a", "zoe"], 1, {"b": False}),
    "none": (["zoe"], 0, {"a": True, "b": False}),
}


@pytest.mark.parametrize(("users", "removed", "after"), REMOVALS.values(), ids=REMOVALS.keys())
def test_removing_targets_counts_who_was_targeted(
    installation: Installation, key: str, users: list[str], removed: int, after: dict[str, bool]
) -> None:
    admin = installation.admin
    add(admin, key, ["a"], value=True)
    add(admin, key, ["b"], value=False)

    response = remove(admin, key, users)

    assert response == pb.RemoveTargetsResponse(
        revision=installation.revision(),
        removed_count=removed,
        audit_anchor=installation.audit_anchor() if removed else None,
    )
    assert targets_of(admin, key) == after


USERS = {
    "one letter": "a",
    "256 bytes": "x" * 256,
    "256 bytes in 64 characters": "\U0001f600" * 64,
    "accented": "Zoë",
    "Arabic": "مستخدم",
    "Chinese": "用户",
    "Devanagari": "उपयोगकर्ता",
    "space inside": "anna b",
    "last code point": "\U0010ffff",
    "what SQL quotes": "'; DROP TABLE users; --",
    "what SQL matches": "%_\\",
    "what psycopg fills in": "%s %(user_ids)s {} $1",
    "an array": "{a,b}",
    "NULL": "NULL",
    "an e-mail": "anna@example.com",
    "a path": "../../etc/passwd",
}


@pytest.mark.parametrize("user", USERS.values(), ids=USERS.keys())
def test_a_user_id_is_taken_as_it_is(installation: Installation, admin: AdminServiceStub, key: str, user: str) -> None:
    add(admin, key, [user], value=True)

    assert targets_of(admin, key) == {user: True}
    assert installation.evaluate(key, user).reason == REASON_TARGETING_MATCH


UNSEEN = ("\u200fuser", "👨\u200d👩", "\ufeffanna", " ", "anna ", "a\nb", "\x01\x1f\x7f\x85", "anna\r")


def test_a_stored_id_that_cannot_be_seen_is_used_and_removed(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    with accepting_any_name():
        add(admin, key, [*UNSEEN], value=True)

    assert targets_of(admin, key) == dict.fromkeys(UNSEEN, True)
    assert {installation.evaluate(key, user).reason for user in UNSEEN} == {REASON_TARGETING_MATCH}
    assert remove(admin, key, [*UNSEEN]).removed_count == len(UNSEEN)


def test_user_ids_that_are_only_similar_are_different_users(admin: AdminServiceStub, key: str) -> None:
    alike = ["Anna", "anna", "ANNA", "an na", "é", "e\u0301", "ﬁ", "fi", "A", "\u0391", "\u0410"]

    assert add(admin, key, alike, value=True).added_count == len(alike)
    assert sorted(targets_of(admin, key)) == sorted(alike)


def test_one_call_takes_1000_users(admin: AdminServiceStub, key: str) -> None:
    users = [f"user-{number}" for number in range(1_000)]

    assert add(admin, key, users, value=True).added_count == 1_000
    assert remove(admin, key, users).removed_count == 1_000


def test_targets_of_one_flag_are_not_those_of_another(admin: AdminServiceStub, key: str) -> None:
    other = created(admin).key
    add(admin, key, ["anna"], value=True)
    add(admin, other, ["anna", "bob"], value=False)

    remove(admin, other, ["anna"])

    assert (targets_of(admin, key), targets_of(admin, other)) == ({"anna": True}, {"bob": False})


def test_every_edit_of_targets_is_evaluated_by_the_time_it_is_answered(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    seen = []
    for edit in (
        lambda: add(admin, key, ["anna", "bob"], value=True),
        lambda: add(admin, key, ["anna"], value=False),
        lambda: remove(admin, key, ["anna"]),
        lambda: remove(admin, key, ["bob"]),
    ):
        edit()
        seen.append(installation.evaluate(key, "anna"))

    assert seen == [
        EvaluationDetail(value=True, variant="on", reason=REASON_TARGETING_MATCH),
        EvaluationDetail(value=False, variant="off", reason=REASON_TARGETING_MATCH),
        EvaluationDetail(value=False, variant="off", reason=REASON_DEFAULT),
        EvaluationDetail(value=False, variant="off", reason=REASON_STATIC),
    ]


@pytest.mark.parametrize("rpc", ["AddTargets", "RemoveTargets", "ImportTargets"])
def test_an_edit_leaves_the_flag_its_etag_its_revision_and_its_update_time(
    installation: Installation, admin: AdminServiceStub, rpc: str
) -> None:
    flag = flag_to_mutate(admin)

    MUTATIONS[rpc].ask(installation, flag.key)

    assert admin.GetFlag(pb.GetFlagRequest(key=flag.key)).flag == flag
