"""ListFlags and ListTargets: order, filters, pages that fit together, and tokens nobody can make but the server."""

from collections.abc import Callable, Iterator
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, Target
from gatekeeper_grpc.wire.paging import PageTokens
from tests.support.clients import (
    Installation,
    Refusal,
    created,
    installed,
    invalid,
    new_key,
    no_flag,
    refusal_of,
)
from tests.support.servers import KEYS

# Apart by case, by what LIKE takes for wildcards, and by everything that a locale would sort otherwise.
FLAGS = (
    Flag(key="a-b", owner="payments", tags=["web"], enabled=True),
    Flag(key="a.b", owner="payments", tags=["web", "beta"]),
    Flag(key="aXb", owner="Payments", tags=["beta", "web", "eu"], enabled=True),
    Flag(key="a_b", tags=["Web"]),
    Flag(key="A_b", owner="payments", enabled=True),
    Flag(key="b", tags=["eu"]),
    Flag(key="10"),
    Flag(key="9"),
)
KEYS_IN_ORDER = ["10", "9", "A_b", "a-b", "a.b", "aXb", "a_b", "b"]
USERS_IN_ORDER = ["10", "9", "A", "Zoë", "a", "zo", "é", "я", "ﬀ", "\U0001f389"]


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    """An installation with `FLAGS`, of which "b" targets `USERS_IN_ORDER`."""
    with installed(postgres) as installation:
        for flag in FLAGS:
            installation.admin.CreateFlag(pb.CreateFlagRequest(flag=flag))
        installation.admin.AddTargets(pb.AddTargetsRequest(flag_key="b", user_ids=USERS_IN_ORDER[::-1], value=True))
        yield installation


@pytest.fixture
def admin(installation: Installation) -> AdminServiceStub:
    return installation.admin


def pages(list_page: Callable[[Any], Any], request: Any) -> Iterator[Any]:
    """Read all pages, each with the token of the one before."""
    while True:
        page = list_page(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def keys_of(*pages: pb.ListFlagsResponse) -> list[str]:
    return [flag.key for page in pages for flag in page.flags]


def test_flags_are_listed_whole_in_the_order_of_their_keys_at_one_revision(
    installation: Installation, admin: AdminServiceStub
) -> None:
    expected = [admin.GetFlag(pb.GetFlagRequest(key=key)).flag for key in KEYS_IN_ORDER]

    page = admin.ListFlags(pb.ListFlagsRequest())

    assert page == pb.ListFlagsResponse(flags=expected, revision=installation.revision())


def test_targets_are_listed_in_the_order_of_the_bytes_of_their_users(
    installation: Installation, admin: AdminServiceStub
) -> None:
    expected = [Target(user_id=user_id, value=True) for user_id in USERS_IN_ORDER]

    page = admin.ListTargets(pb.ListTargetsRequest(flag_key="b"))

    assert page == pb.ListTargetsResponse(targets=expected, revision=installation.revision())


def test_targets_of_an_unknown_flag_are_not_an_empty_list(admin: AdminServiceStub) -> None:
    assert refusal_of(lambda: admin.ListTargets(pb.ListTargetsRequest(flag_key="nobody"))) == no_flag("nobody")


FILTERS = {
    "prefix": (pb.ListFlagsRequest(key_prefix="a"), ["a-b", "a.b", "aXb", "a_b"]),
    "prefix of the other case": (pb.ListFlagsRequest(key_prefix="A"), ["A_b"]),
    "prefix with _, literally": (pb.ListFlagsRequest(key_prefix="a_"), ["a_b"]),
    "prefix with %, literally": (pb.ListFlagsRequest(key_prefix="%"), []),
    "prefix with a backslash": (pb.ListFlagsRequest(key_prefix="a\\"), []),
    "prefix that is a whole key": (pb.ListFlagsRequest(key_prefix="aXb"), ["aXb"]),
    "prefix longer than any": (pb.ListFlagsRequest(key_prefix="aXbc"), []),
    "one tag": (pb.ListFlagsRequest(tags=["web"]), ["a-b", "a.b", "aXb"]),
    "all of two tags": (pb.ListFlagsRequest(tags=["web", "beta"]), ["a.b", "aXb"]),
    "all of two tags, turned round": (pb.ListFlagsRequest(tags=["beta", "web"]), ["a.b", "aXb"]),
    "tags that no flag has together": (pb.ListFlagsRequest(tags=["Web", "eu"]), []),
    "owner": (pb.ListFlagsRequest(owner="payments"), ["A_b", "a-b", "a.b"]),
    "enabled": (pb.ListFlagsRequest(enabled=True), ["A_b", "a-b", "aXb"]),
    "disabled": (pb.ListFlagsRequest(enabled=False), ["10", "9", "a.b", "a_b", "b"]),
    "all at once": (pb.ListFlagsRequest(key_prefix="a", tags=["web"], owner="payments", enabled=True), ["a-b"]),
}


@pytest.mark.parametrize(("wanted", "expected"), FILTERS.values(), ids=FILTERS.keys())
def test_flags_must_pass_every_filter(
    admin: AdminServiceStub, wanted: pb.ListFlagsRequest, expected: list[str]
) -> None:
    assert keys_of(admin.ListFlags(wanted)) == expected


SIZES = {
    "one by one": (1, [1] * 8),
    "a last page with less": (3, [3, 3, 2]),
    "pages that come out even": (4, [4, 4]),
    "exactly one page": (8, [8]),
    "the largest": (1_000, [8]),
    "the default": (0, [8]),
}


@pytest.mark.parametrize(("page_size", "sizes"), SIZES.values(), ids=SIZES.keys())
def test_pages_of_flags_together_are_the_whole_list(admin: AdminServiceStub, page_size: int, sizes: list[int]) -> None:
    read = list(pages(admin.ListFlags, pb.ListFlagsRequest(page_size=page_size)))

    assert ([len(page.flags) for page in read], keys_of(*read)) == (sizes, KEYS_IN_ORDER)


@pytest.mark.parametrize("page_size", [1, 2, 10, 0])
def test_pages_of_targets_together_are_the_whole_list(admin: AdminServiceStub, page_size: int) -> None:
    read = pages(admin.ListTargets, pb.ListTargetsRequest(flag_key="b", page_size=page_size))

    assert [target.user_id for page in read for target in page.targets] == USERS_IN_ORDER


def test_a_page_has_100_entries_unless_asked_otherwise(admin: AdminServiceStub) -> None:
    prefix = new_key()
    key, users = created(admin, key=prefix).key, [f"{number:03}" for number in range(101)]
    admin.AddTargets(pb.AddTargetsRequest(flag_key=key, user_ids=users, value=False))

    page = admin.ListTargets(pb.ListTargetsRequest(flag_key=key))

    assert [target.user_id for target in page.targets] == users[:100]
    delete_all(admin, prefix)


def delete_all(admin: AdminServiceStub, prefix: str) -> None:
    for key in keys_of(admin.ListFlags(pb.ListFlagsRequest(key_prefix=prefix, page_size=1_000))):
        admin.DeleteFlag(pb.DeleteFlagRequest(key=key))


def test_pages_may_differ_in_size(admin: AdminServiceStub) -> None:
    first = admin.ListFlags(pb.ListFlagsRequest(page_size=1))
    rest = admin.ListFlags(pb.ListFlagsRequest(page_size=1_000, page_token=first.next_page_token))

    assert keys_of(first, rest) == KEYS_IN_ORDER


def test_filters_hold_on_every_page(admin: AdminServiceStub) -> None:
    read = list(pages(admin.ListFlags, pb.ListFlagsRequest(tags=["web"], page_size=1)))

    assert keys_of(*read) == ["a-b", "a.b", "aXb"]


def test_changes_between_pages_neither_repeat_nor_hide_a_flag(admin: AdminServiceStub) -> None:
    prefix = new_key()
    for name in "bdfh":
        created(admin, key=prefix + name)
    request = pb.ListFlagsRequest(key_prefix=prefix, page_size=2)
    first = admin.ListFlags(request)

    # One flag before the end of the page comes, the end itself goes; after it, one comes and one goes.
    for name in "ag":
        created(admin, key=prefix + name)
    for name in "df":
        admin.DeleteFlag(pb.DeleteFlagRequest(key=prefix + name))
    request.page_token = first.next_page_token
    rest = list(pages(admin.ListFlags, request))

    assert keys_of(first, *rest) == [prefix + name for name in "bdgh"]
    delete_all(admin, prefix)


def test_changes_between_pages_neither_repeat_nor_hide_a_target(admin: AdminServiceStub) -> None:
    key = created(admin).key
    admin.AddTargets(pb.AddTargetsRequest(flag_key=key, user_ids=list("bdfh"), value=False))
    request = pb.ListTargetsRequest(flag_key=key, page_size=2)
    first = admin.ListTargets(request)

    admin.AddTargets(pb.AddTargetsRequest(flag_key=key, user_ids=list("ag"), value=False))
    admin.RemoveTargets(pb.RemoveTargetsRequest(flag_key=key, user_ids=list("df")))
    request.page_token = first.next_page_token
    rest = list(pages(admin.ListTargets, request))

    assert [target.user_id for page in (first, *rest) for target in page.targets] == list("bdgh")
    delete_all(admin, key)


# --- Page tokens -----------------------------------------------------------------------------------------------------

BASE64 = ascii_uppercase + ascii_lowercase + digits + "-_"


@pytest.fixture(scope="module")
def token(installation: Installation) -> str:
    """The token behind the second flag. It ends in bits that mean nothing, as base64 mostly does."""
    return installation.admin.ListFlags(pb.ListFlagsRequest(page_size=2)).next_page_token


def refused_with(admin: AdminServiceStub, page_token: str, **filters: Any) -> Refusal:
    return refusal_of(lambda: admin.ListFlags(pb.ListFlagsRequest(page_token=page_token, page_size=1, **filters)))


SPOILT = {
    "not base64": lambda _: "not a token!",
    "not ASCII": lambda _: "tökén",
    "shorter than a signature": lambda _: "AAAA",
    "a signature of nothing": lambda _: "A" * 24,
    "cut": lambda token: token[:-4],
    "extended": lambda token: token + "AAAA",
    "with junk that lax decoders skip": lambda token: token[:8] + "!" + token[8:],
    "with a line break": lambda token: token + "\n",
    "in the other alphabet": lambda token: token.replace("-", "+").replace("_", "/") + "+",
    "not UTF-8 behind the signature": lambda token: token[:20] + "_" * 8,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_what_is_no_page_token_is_refused(admin: AdminServiceStub, token: str, spoil: Callable[[str], str]) -> None:
    assert refused_with(admin, spoil(token)) == invalid("page_token")


def test_no_character_of_a_page_token_can_be_altered(admin: AdminServiceStub, token: str) -> None:
    neighbours = dict(zip(BASE64, BASE64[1:] + BASE64[:1], strict=True))
    altered = [
        token[:position] + neighbours[character] + token[position + 1 :]
        for position, character in enumerate(token.rstrip("="))
    ]

    assert [refused_with(admin, page_token) for page_token in altered] == [invalid("page_token")] * len(altered)


FILTERS_OF_OTHERS: dict[str, dict[str, Any]] = {
    "prefix": {"key_prefix": "a"},
    "tags": {"tags": ["web"]},
    "owner": {"owner": "payments"},
    "enabled": {"enabled": True},
    "disabled": {"enabled": False},
}


@pytest.mark.parametrize("filters", FILTERS_OF_OTHERS.values(), ids=FILTERS_OF_OTHERS.keys())
def test_a_page_token_is_refused_with_other_filters(
    admin: AdminServiceStub, token: str, filters: dict[str, Any]
) -> None:
    assert refused_with(admin, token, **filters) == invalid("page_token")


def test_a_page_token_of_one_list_is_refused_by_another(admin: AdminServiceStub, token: str) -> None:
    request = pb.ListTargetsRequest(flag_key="b", page_token=token)

    assert refusal_of(lambda: admin.ListTargets(request)) == invalid("page_token")


def test_a_page_token_of_one_flag_s_targets_is_refused_for_another_flag(admin: AdminServiceStub) -> None:
    token = admin.ListTargets(pb.ListTargetsRequest(flag_key="b", page_size=1)).next_page_token
    request = pb.ListTargetsRequest(flag_key="9", page_token=token)

    assert refusal_of(lambda: admin.ListTargets(request)) == invalid("page_token")


def made_with(secret: bytes) -> str:
    """Make the token behind the second flag as an installation with this secret would."""
    _, token = PageTokens([secret]).page(pb.ListFlagsRequest(page_size=2), KEYS_IN_ORDER[:3], convert=str, key=str)
    return token


def test_a_page_token_made_with_another_secret_is_refused(admin: AdminServiceStub) -> None:
    assert refused_with(admin, made_with(b"guessed")) == invalid("page_token")


def test_a_page_token_made_with_the_installation_s_secret_is_not(admin: AdminServiceStub, token: str) -> None:
    """The twin: the forgery is right in all but its secret."""
    assert made_with(KEYS.tokens.newest.secret.encode()) == token
