"""Page tokens: they continue exactly the listing they were made in, on every instance, and cannot be altered."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_client.v1.admin_service_pb2 import ListFlagsRequest, ListTargetsRequest
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.wire.paging import PageTokens, page_size, read_limit

KEYS = [f"key-{number:03}" for number in range(250)]
NEW, OLD = b"new key" * 5, b"old key" * 5
TOKENS = PageTokens([NEW])


def read(request: ListFlagsRequest, cursor: str) -> list[str]:
    """Read like a store: the next keys after the cursor, as many as `read_limit` says."""
    return [key for key in KEYS if key > cursor][: read_limit(request)]


def next_page_token(request: ListFlagsRequest, tokens: PageTokens = TOKENS) -> str:
    _, token = tokens.page(request, read(request, tokens.cursor(request)), convert=str, key=str)
    return token


@pytest.mark.parametrize(
    ("size", "pages"),
    [
        pytest.param(0, [100, 100, 50], id="the default"),
        pytest.param(249, [249, 1], id="one left over"),
        pytest.param(250, [250], id="exactly one page"),
        pytest.param(125, [125, 125], id="exactly two pages"),
        pytest.param(1_000, [250], id="the greatest"),
    ],
)
def test_following_the_tokens_reads_everything_once_in_order(size: int, pages: list[int]) -> None:
    request = ListFlagsRequest(page_size=size)
    walked: list[list[str]] = []
    while not walked or request.page_token:
        page, request.page_token = TOKENS.page(request, read(request, TOKENS.cursor(request)), convert=str, key=str)
        walked.append([*page])

    assert [len(page) for page in walked] == pages
    assert [key for page in walked for key in page] == KEYS


@pytest.mark.parametrize(
    ("kib", "pages"),
    [
        pytest.param(15, [67, 33], id="a shorter page"),
        pytest.param(600, [1] * 100, id="one that leaves no room for a second"),
        pytest.param(2_000, [1] * 100, id="larger than a page alone"),
    ],
)
def test_a_page_is_bounded_in_bytes_too(kib: int, pages: list[int]) -> None:
    request = ListFlagsRequest(page_size=1_000)
    converted = 0
    lengths: list[int] = []

    def large(key: str) -> Flag:
        nonlocal converted
        converted += 1
        return Flag(key=key, description="x" * (kib << 10))

    while not lengths or request.page_token:
        left = iter(key for key in KEYS[:100] if key > TOKENS.cursor(request))
        page, request.page_token = TOKENS.page(request, left, convert=large, key=str)
        lengths.append(len(page))

    assert lengths == pages
    assert converted <= 100 + len(pages)  # one that is not on it, at most, is taken for a page


def test_another_page_size_may_be_asked_for_on_the_way() -> None:
    token = next_page_token(ListFlagsRequest(page_size=10, key_prefix="key"))

    assert TOKENS.cursor(ListFlagsRequest(page_size=99, key_prefix="key", page_token=token)) == "key-009"


@settings(max_examples=50)
@given(cursor=st.text(st.characters(codec="utf-8"), max_size=300))
def test_a_token_carries_any_cursor(cursor: str) -> None:
    request = ListTargetsRequest(flag_key="f", page_size=1)
    _, request.page_token = TOKENS.page(request, [cursor, "more"], convert=str, key=str)

    assert TOKENS.cursor(request) == cursor


GENUINE = next_page_token(ListFlagsRequest(owner="a", page_size=1))


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(ListFlagsRequest(owner="b", page_token=GENUINE), id="another filter"),
        pytest.param(ListFlagsRequest(page_token=GENUINE), id="a filter dropped"),
        pytest.param(ListFlagsRequest(owner="a", enabled=False, page_token=GENUINE), id="a filter of false added"),
        pytest.param(ListTargetsRequest(flag_key="a", page_token=GENUINE), id="another RPC"),
        pytest.param(ListFlagsRequest(owner="a", page_token=GENUINE[:-4]), id="cut short"),
        pytest.param(ListFlagsRequest(owner="a", page_token=GENUINE + "AAAA"), id="longer"),
        pytest.param(ListFlagsRequest(owner="a", page_token="!"), id="not base64"),
        pytest.param(ListFlagsRequest(owner="a", page_token="ü"), id="not ASCII"),
        pytest.param(ListFlagsRequest(owner="a", page_token="AAAA"), id="too short for a code"),
        pytest.param(ListFlagsRequest(owner="a", page_token=urlsafe_b64encode(b"\xff" * 40).decode()), id="not UTF-8"),
    ],
)
def test_a_token_of_another_listing_or_none_of_ours_is_refused(request_: ListFlagsRequest) -> None:
    with pytest.raises(InvalidArgument, match="page_token must be the next_page_token"):
        TOKENS.cursor(request_)


def test_no_bit_of_a_token_can_be_altered() -> None:
    raw = urlsafe_b64decode(GENUINE)
    for bit in range(len(raw) * 8):
        altered = (int.from_bytes(raw, "big") ^ 1 << bit).to_bytes(len(raw), "big")
        with pytest.raises(InvalidArgument):
            TOKENS.cursor(ListFlagsRequest(owner="a", page_token=urlsafe_b64encode(altered).decode()))


def test_a_token_outlives_the_rotation_of_keys_until_its_key_is_dropped() -> None:
    token = next_page_token(ListFlagsRequest(page_size=1), PageTokens([OLD]))
    request = ListFlagsRequest(page_token=token)

    assert PageTokens([NEW, OLD]).cursor(request) == "key-000"
    with pytest.raises(InvalidArgument):
        PageTokens([NEW]).cursor(request)


@pytest.mark.parametrize(("asked", "size"), [(0, 100), (1, 1), (1_000, 1_000)])
def test_a_page_has_the_size_asked_for_or_100(asked: int, size: int) -> None:
    assert page_size(ListFlagsRequest(page_size=asked)) == size


@pytest.mark.parametrize("asked", [-1, 1_001])
def test_a_page_size_beyond_the_limits_is_refused(asked: int) -> None:
    with pytest.raises(InvalidArgument, match="page_size must be 1 to 1000, or 0 for 100"):
        page_size(ListFlagsRequest(page_size=asked))
