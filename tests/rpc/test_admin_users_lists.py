"""ListUsers: in order of user ids, page by page, through filters that combine."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.user_pb2 import User
from tests.support.clients import Installation, installed, invalid, refusal_of

USERS: dict[str, dict[str, Any]] = {
    "Zoe": {"plan": "gold"},
    "ada": {"plan": "gold", "age": 30, "list": [1, 2, 3], "org": {"a": 1, "b": 2}},
    "adam": {"plan": "free", "age": 30},
    "bob": {"plan": "gold", "age": "30", "flag": True, "list": [1, 2]},
    "b%": {"plan": None, "flag": 1, "list": []},
    "eve": {"a.b": 1, "big": 1e300},
    "élodie": {},
}
IN_ORDER = ["Zoe", "ada", "adam", "b%", "bob", "eve", "élodie"]


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    with installed(postgres) as installation:
        for user_id, attributes in USERS.items():
            user = User(user_id=user_id, attributes=struct(attributes))
            installation.admin.CreateUser(pb.CreateUserRequest(user=user))
        yield installation


def struct(attributes: dict[str, Any]) -> Struct:
    return ParseDict(attributes, Struct())


def listed(installation: Installation, **fields: Any) -> list[str]:
    return [user.user_id for user in installation.admin.ListUsers(pb.ListUsersRequest(**fields)).users]


def test_users_are_listed_whole_and_at_a_revision(installation: Installation) -> None:
    response = installation.admin.ListUsers(pb.ListUsersRequest(user_id_prefix="ada"))

    got = [installation.admin.GetUser(pb.GetUserRequest(user_id=user_id)).user for user_id in ("ada", "adam")]
    assert response == pb.ListUsersResponse(users=got, revision=installation.revision())


@pytest.mark.parametrize(
    ("prefix", "user_ids"),
    [
        pytest.param("", IN_ORDER, id="any"),
        pytest.param("ada", ["ada", "adam"], id="the id itself and longer ones"),
        pytest.param("A", [], id="case counts"),
        pytest.param("b%", ["b%"], id="no wildcards"),
        pytest.param("é", ["élodie"], id="beyond ASCII"),
    ],
)
def test_a_prefix_selects(installation: Installation, prefix: str, user_ids: list[str]) -> None:
    assert listed(installation, user_id_prefix=prefix) == user_ids


@pytest.mark.parametrize(
    ("attributes", "user_ids"),
    [
        pytest.param({"plan": "gold"}, ["Zoe", "ada", "bob"], id="one"),
        pytest.param({"plan": "gold", "age": 30}, ["ada"], id="all of two, strict about types"),
        pytest.param({"age": "30"}, ["bob"], id="text is no number"),
        pytest.param({"flag": True}, ["bob"], id="true is not 1"),
        pytest.param({"flag": 1}, ["b%"], id="1 is not true"),
        pytest.param({"plan": None}, ["b%"], id="a stored null, not a missing one"),
        pytest.param({"list": [1, 2]}, ["bob"], id="a list equals only the whole list"),
        pytest.param({"list": [2, 1]}, [], id="in its order"),
        pytest.param({"list": []}, ["b%"], id="the empty list is contained in each and equals one"),
        pytest.param({"org": {"a": 1}}, [], id="an object equals only the whole object"),
        pytest.param({"org": {"b": 2, "a": 1}}, ["ada"], id="whatever the order of its names"),
        pytest.param({"a.b": 1}, ["eve"], id="a dot is part of the name"),
        pytest.param({"big": 1e300}, ["eve"], id="a large number"),
        pytest.param({"nobody": 1}, [], id="one that nobody has"),
    ],
)
def test_attributes_select_users_who_have_them_all(
    installation: Installation, attributes: dict[str, Any], user_ids: list[str]
) -> None:
    assert listed(installation, attributes=struct(attributes)) == user_ids


def test_filters_combine(installation: Installation) -> None:
    assert listed(installation, user_id_prefix="a", attributes=struct({"plan": "gold"})) == ["ada"]


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 8])
def test_pages_follow_each_other_without_gap_or_repetition(installation: Installation, page_size: int) -> None:
    pages, token = [], None
    while token != "":
        request = pb.ListUsersRequest(page_size=page_size, page_token=token or "")
        response = installation.admin.ListUsers(request)
        pages.append([user.user_id for user in response.users])
        token = response.next_page_token

    assert pages == [IN_ORDER[at : at + page_size] for at in range(0, len(IN_ORDER), page_size)]


BAD_REQUESTS = {
    "page_size": pb.ListUsersRequest(page_size=1001),
    "page_token": pb.ListUsersRequest(page_token="mine"),
    "user_id_prefix": pb.ListUsersRequest(user_id_prefix="a\0"),
    "attributes": pb.ListUsersRequest(attributes=struct({"a": "\0"})),
}


@pytest.mark.parametrize(("field", "request_"), BAD_REQUESTS.items(), ids=BAD_REQUESTS.keys())
def test_a_bad_request_is_refused_by_field(
    installation: Installation, field: str, request_: pb.ListUsersRequest
) -> None:
    assert refusal_of(lambda: installation.admin.ListUsers(request_)) == invalid(field)


def test_a_page_token_belongs_to_its_filters(installation: Installation) -> None:
    token = installation.admin.ListUsers(pb.ListUsersRequest(page_size=1)).next_page_token
    request = pb.ListUsersRequest(page_token=token, attributes=struct({"plan": "gold"}))

    assert refusal_of(lambda: installation.admin.ListUsers(request)) == invalid("page_token")
