"""CreateUser, GetUser, UpdateUser, DeleteUser: what they do to a known user, and every way in which they refuse."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Target
from gatekeeper_client.v1.user_pb2 import User
from tests.support.clients import (
    Installation,
    Refusal,
    created,
    invalid,
    no_user,
    refusal_of,
)

_users = count()


@pytest.fixture
def admin(installation: Installation) -> AdminServiceStub:
    return installation.admin


def struct(attributes: Mapping[str, Any]) -> Struct:
    return ParseDict(dict(attributes), Struct())


def new_user() -> str:
    return f"ünï-{next(_users)}@example.org"


def known(admin: AdminServiceStub, **attributes: Any) -> User:
    """Make a new user known."""
    return admin.CreateUser(pb.CreateUserRequest(user=User(user_id=new_user(), attributes=struct(attributes)))).user


def got(admin: AdminServiceStub, user_id: str) -> pb.GetUserResponse:
    return admin.GetUser(pb.GetUserRequest(user_id=user_id))


def updated(admin: AdminServiceStub, user: User, *paths: str, **fields: Any) -> pb.UpdateUserResponse:
    return admin.UpdateUser(pb.UpdateUserRequest(user=user, update_mask=FieldMask(paths=paths), **fields))


def deleted(admin: AdminServiceStub, user_id: str, **fields: Any) -> pb.DeleteUserResponse:
    return admin.DeleteUser(pb.DeleteUserRequest(user_id=user_id, **fields))


RICH = {
    "plan": "gold",
    "age": 30,
    "ratio": 0.1,
    "active": True,
    "nothing": None,
    "tags": ["a", 1, None, {"b": []}],
    "org": {"tier": {"name": "ünï 🦉"}},
    "": "the empty name",
    'odd "name`.': "\x01\n",
}


@pytest.mark.parametrize("attributes", [pytest.param(RICH, id="rich"), pytest.param({}, id="none")])
def test_create_keeps_what_the_editor_sent(admin: AdminServiceStub, attributes: dict[str, Any]) -> None:
    sent = User(user_id=new_user(), attributes=struct(attributes))

    response = admin.CreateUser(pb.CreateUserRequest(user=sent))

    assert (response.user.user_id, response.user.attributes) == (sent.user_id, sent.attributes)
    assert got(admin, sent.user_id) == pb.GetUserResponse(user=response.user, revision=response.revision)


NUMBERS = [
    0.0,
    1.0,
    -1.0,
    0.1,
    1e300,
    -1e300,
    1.7976931348623157e308,
    5e-324,
    2.0**53 - 1,
    2.0**53,
    2.0**63,
    1e21,
    1e-7,
]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_come_back_as_the_doubles_they_were(admin: AdminServiceStub, number: float) -> None:
    user = known(admin, number=number)

    numbers = [user.attributes["number"], got(admin, user.user_id).user.attributes["number"]]

    assert numbers == [number, number]


def test_create_returns_the_user_with_time_revision_and_etag(installation: Installation) -> None:
    before = Timestamp()
    before.GetCurrentTime()

    user = known(installation.admin)

    assert before.ToDatetime() <= user.create_time.ToDatetime()
    assert user.update_time == user.create_time
    assert user.revision == installation.revision()
    assert user.etag


def test_create_ignores_what_only_the_server_decides(installation: Installation) -> None:
    long_ago = Timestamp(seconds=1)
    sent = User(user_id=new_user(), create_time=long_ago, update_time=long_ago, etag="mine", revision=99_999)

    user = installation.admin.CreateUser(pb.CreateUserRequest(user=sent)).user

    assert long_ago not in (user.create_time, user.update_time)
    assert (user.etag != "mine", user.revision) == (True, installation.revision())


def test_create_refuses_a_user_that_is_known(admin: AdminServiceStub) -> None:
    user = known(admin, plan="gold")

    refusal = refusal_of(lambda: admin.CreateUser(pb.CreateUserRequest(user=User(user_id=user.user_id))))

    assert refusal == Refusal(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS", {"user_id": user.user_id})
    assert got(admin, user.user_id).user == user


def test_users_are_told_apart_by_case(admin: AdminServiceStub) -> None:
    lower = known(admin, plan="lower")
    upper = User(user_id=lower.user_id.upper(), attributes=struct({"plan": "upper"}))
    admin.CreateUser(pb.CreateUserRequest(user=upper))

    assert got(admin, lower.user_id).user.attributes["plan"] == "lower"


def test_a_user_that_is_targeted_becomes_known_under_the_same_subject(installation: Installation) -> None:
    user_id, flag = new_user(), created(installation.admin)
    installation.admin.AddTargets(pb.AddTargetsRequest(flag_key=flag.key, user_ids=[user_id], value=False))

    installation.admin.CreateUser(pb.CreateUserRequest(user=User(user_id=user_id)))

    assert installation.query("SELECT count(*) FROM subjects WHERE user_id = %s", user_id) == [(1,)]


def nested(levels: int) -> Value:
    value = Value(number_value=1)
    for _ in range(levels):
        outer = Value()
        outer.list_value.values.append(value)
        value = outer
    return value


def attributes_of(**values: Value) -> Struct:
    return Struct(fields=values)


BAD_ATTRIBUTES = {
    "NUL in text": struct({"a": "x\0"}),
    "NUL in a name": struct({"a\0": 1}),
    "NUL in an inner name": struct({"a": [{"b\0": 1}]}),
    "NaN": attributes_of(a=Value(number_value=math.nan)),
    "infinity": attributes_of(a=Value(number_value=math.inf)),
    "an infinity inside": attributes_of(a=Value(list_value=ListValue(values=[Value(number_value=-math.inf)]))),
    "six levels": attributes_of(a=nested(5)),
    "over 16 KiB": struct({"a": "x" * 16_384}),
    "over 16 KiB as JSON": struct({"a": "\x01" * 3_000}),
}
BAD_IDS = {"empty": "", "too long": "ü" * 129, "NUL": "a\0b"}


@pytest.mark.parametrize("attributes", BAD_ATTRIBUTES.values(), ids=BAD_ATTRIBUTES.keys())
def test_attributes_that_cannot_be_stored_are_refused_before_any_write(
    installation: Installation, attributes: Struct
) -> None:
    admin, user = installation.admin, known(installation.admin)
    before = installation.revision()

    refusals = [
        refusal_of(lambda: admin.CreateUser(pb.CreateUserRequest(user=User(user_id="x", attributes=attributes)))),
        refusal_of(lambda: updated(admin, User(user_id=user.user_id, attributes=attributes), "attributes")),
    ]

    assert refusals == [invalid("user.attributes")] * 2
    assert installation.revision() == before


@pytest.mark.parametrize("user_id", BAD_IDS.values(), ids=BAD_IDS.keys())
def test_a_bad_user_id_is_refused(admin: AdminServiceStub, user_id: str) -> None:
    refusals = [
        refusal_of(lambda: admin.CreateUser(pb.CreateUserRequest(user=User(user_id=user_id)))),
        refusal_of(lambda: updated(admin, User(user_id=user_id), "attributes")),
        refusal_of(lambda: got(admin, user_id)),
        refusal_of(lambda: deleted(admin, user_id)),
    ]

    assert refusals == [invalid("user.user_id")] * 2 + [invalid("user_id")] * 2


def test_five_levels_and_16_kib_are_stored(admin: AdminServiceStub) -> None:
    sent = attributes_of(a=nested(4), b=Value(string_value="x" * 16_000))

    response = admin.CreateUser(pb.CreateUserRequest(user=User(user_id=new_user(), attributes=sent)))

    assert response.user.attributes == sent


def test_get_refuses_a_user_that_is_not_known(admin: AdminServiceStub) -> None:
    assert refusal_of(lambda: got(admin, "nobody")) == no_user("nobody")


STORED = {"plan": "gold", "age": 7, "a.b": 1}


@pytest.mark.parametrize(
    ("sent", "paths", "after"),
    [
        pytest.param({"x": 1}, ["attributes"], {"x": 1}, id="all"),
        pytest.param({}, ["attributes"], {}, id="all, none sent"),
        pytest.param({"plan": "free"}, ["attributes.plan"], {**STORED, "plan": "free"}, id="one"),
        pytest.param({}, ["attributes.plan"], {"age": 7, "a.b": 1}, id="one that was not sent"),
        pytest.param({"plan": None}, ["attributes.plan"], {**STORED, "plan": None}, id="null is a value"),
        pytest.param({"x": 1, "y": 1}, ["attributes.x"], {**STORED, "x": 1}, id="others sent are not looked at"),
        pytest.param({"x": 1, "age": 8}, ["attributes.x", "attributes.age"], {**STORED, "x": 1, "age": 8}, id="two"),
        pytest.param({"x": 1}, ["attributes.x", "attributes"], {"x": 1}, id="all covers one"),
        pytest.param({"a.b": 2}, ["attributes.a.b"], {**STORED, "a.b": 2}, id="a dot is part of the name"),
        pytest.param({"`": 2}, ["attributes.`"], {**STORED, "`": 2}, id="so is a quote"),
        pytest.param({"": 2}, ["attributes."], {**STORED, "": 2}, id="the empty name"),
        pytest.param({}, ["attributes.gone"], STORED, id="one that is not there"),
    ],
)
def test_update_changes_what_the_mask_names(
    admin: AdminServiceStub, sent: dict[str, Any], paths: list[str], after: dict[str, Any]
) -> None:
    user = known(admin, **STORED)

    response = updated(admin, User(user_id=user.user_id, attributes=struct(sent)), *paths)

    assert response.user.attributes == struct(after)
    assert got(admin, user.user_id) == pb.GetUserResponse(user=response.user, revision=response.revision)


def test_update_keeps_the_creation_time_and_renews_time_revision_and_etag(admin: AdminServiceStub) -> None:
    before = known(admin)

    response = updated(admin, User(user_id=before.user_id, attributes=struct({"plan": "gold"})), "attributes")

    after = response.user
    assert after.create_time == before.create_time
    assert after.update_time.ToDatetime() > before.update_time.ToDatetime()
    assert after.revision == response.revision > before.revision
    assert after.etag != before.etag


BAD_MASKS = {
    "absent": ((), "update_mask"),
    "unknown path": (("colour",), "update_mask.paths[0]"),
    "everything": (("*",), "update_mask.paths[0]"),
    "the id": (("user_id",), "update_mask.paths[0]"),
    "the etag": (("etag",), "update_mask.paths[0]"),
    "nested in the request": (("user.attributes",), "update_mask.paths[0]"),
    "another name that begins so": (("attributes_x",), "update_mask.paths[0]"),
    "bad after good": (("attributes.plan", "revision"), "update_mask.paths[1]"),
}


@pytest.mark.parametrize(("paths", "field"), BAD_MASKS.values(), ids=BAD_MASKS.keys())
def test_update_refuses_a_mask_that_names_anything_else(
    admin: AdminServiceStub, paths: tuple[str, ...], field: str
) -> None:
    before = known(admin, plan="gold")

    assert refusal_of(lambda: updated(admin, User(user_id=before.user_id), *paths)) == invalid(field)
    assert got(admin, before.user_id).user == before


def test_update_refuses_attributes_that_become_too_large_together(admin: AdminServiceStub) -> None:
    before = known(admin, a="x" * 10_000)
    more = User(user_id=before.user_id, attributes=struct({"b": "x" * 10_000}))

    assert refusal_of(lambda: updated(admin, more, "attributes.b")) == invalid("user.attributes")
    assert got(admin, before.user_id).user == before


def test_delete_forgets_the_attributes_and_leaves_targets(installation: Installation) -> None:
    admin, user, flag = installation.admin, known(installation.admin, plan="gold"), created(installation.admin)
    admin.AddTargets(pb.AddTargetsRequest(flag_key=flag.key, user_ids=[user.user_id], value=True))

    deleted(admin, user.user_id)

    assert refusal_of(lambda: got(admin, user.user_id)) == no_user(user.user_id)
    targets = admin.ListTargets(pb.ListTargetsRequest(flag_key=flag.key)).targets
    assert [*targets] == [Target(user_id=user.user_id, value=True)]


def test_a_user_created_again_has_another_etag_and_no_old_attributes(admin: AdminServiceStub) -> None:
    old = known(admin, plan="gold")
    deleted(admin, old.user_id)

    new = admin.CreateUser(pb.CreateUserRequest(user=User(user_id=old.user_id))).user

    assert (new.etag != old.etag, new.attributes) == (True, Struct())


Send = Callable[[AdminServiceStub, User, dict[str, Any]], Any]

MUTATIONS: dict[str, Send] = {
    "CreateUser": lambda admin, _, fields: admin.CreateUser(
        pb.CreateUserRequest(user=User(user_id="made-known", attributes=struct({"n": 1e300})), **fields)
    ),
    "UpdateUser": lambda admin, user, fields: updated(
        admin, User(user_id=user.user_id, attributes=struct({"plan": 2.0**60})), "attributes", **fields
    ),
    "DeleteUser": lambda admin, user, fields: deleted(admin, user.user_id, **fields),
}
EACH_MUTATION = pytest.mark.parametrize(("rpc", "send"), MUTATIONS.items(), ids=MUTATIONS.keys())


@pytest.fixture
def user(admin: AdminServiceStub) -> Iterator[User]:
    """A known user, where "made-known" is not."""
    yield known(admin, plan="gold")
    if query_known(admin, "made-known"):
        deleted(admin, "made-known")


def query_known(admin: AdminServiceStub, user_id: str) -> bool:
    return bool(admin.ListUsers(pb.ListUsersRequest(user_id_prefix=user_id)).users)


@EACH_MUTATION
def test_a_stored_answer_says_whom_it_concerns_and_is_sealed(
    installation: Installation, user: User, rpc: str, send: Send
) -> None:
    request_id = uuid4()
    send(installation.admin, user, {"request_id": str(request_id)})
    user_id = "made-known" if rpc == "CreateUser" else user.user_id

    ((subjects, result),) = installation.query(
        "SELECT subjects, result FROM idempotency_keys WHERE request_id = %s", request_id
    )

    assert installation.query("SELECT subject_id FROM subjects WHERE user_id = %s", user_id) == [(subjects[0],)]
    assert user_id.encode() not in bytes(result)


@EACH_MUTATION
def test_the_audit_log_has_before_after_and_reason_and_names_nobody(
    installation: Installation, user: User, rpc: str, send: Send
) -> None:
    send(installation.admin, user, {"change_reason": "because"})
    user_id = "made-known" if rpc == "CreateUser" else user.user_id

    ((action, kind, key, document),) = installation.query(LAST_ENTRY)
    ((logged_key, subjects),) = installation.query(
        "SELECT key, subjects FROM change_log ORDER BY revision DESC LIMIT 1"
    )

    ((subject_id,),) = installation.query("SELECT subject_id FROM subjects WHERE user_id = %s", user_id)
    assert (action, kind, key, logged_key, subjects) == (rpc, "user", str(subject_id), str(subject_id), [subject_id])
    assert user_id.encode() not in bytes(document)
    said = json.loads(bytes(document), parse_int=float)
    attributes = {side: said[side] and said[side]["attributes"] for side in ("before", "after")}
    assert (attributes, said["change_reason"]) == (AUDITED[rpc], "because")


LAST_ENTRY = """
    SELECT action, resource_type, resource_key, document FROM audit_log JOIN audit_documents USING (seq)
    ORDER BY seq DESC LIMIT 1
"""
AUDITED: dict[str, dict[str, Any]] = {
    "CreateUser": {"before": None, "after": {"n": 1e300}},
    "UpdateUser": {"before": {"plan": "gold"}, "after": {"plan": 2.0**60}},
    "DeleteUser": {"before": {"plan": "gold"}, "after": None},
}
