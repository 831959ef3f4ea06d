"""Pages and page tokens. A page is bounded in items and in bytes.

A token is opaque, cannot be altered, and is valid for the filters it was made for.
"""

import copy
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol, TypeVar

from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from gatekeeper_grpc.wire import portions

_Item = TypeVar("_Item")
_MAC_BYTES = 16
_PURPOSE = b"gatekeeper page token v1"


class ListRequest(Protocol):
    """What every List request has in addition to its filters."""

    page_size: int
    page_token: str

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: D102, N802
        ...


class PageTokens:
    """Makes and reads page tokens.

    Args:
        secrets: Keys of the installation, newest first. Every instance has the same, so any of them can serve the next
            page. A key derived from the newest makes tokens; those derived from the others read them as well.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self.use(secrets)

    def use(self, secrets: Sequence[bytes]) -> None:
        """Make and read tokens with other keys from now on."""
        self._keys = [hmac.digest(secret, _PURPOSE, "sha256") for secret in secrets]

    def cursor(self, request: ListRequest) -> str:
        """Return the key of the last item of the previous page; empty for the first page.

        Raises:
            InvalidArgument: The token is not one for these filters.
        """
        if not request.page_token:
            return ""
        mac, cursor = _taken_apart(request.page_token)
        if not any(hmac.compare_digest(mac, _mac(key, request, cursor)) for key in self._keys):
            raise InvalidArgument.of("page_token", "must be the next_page_token of a page with the same filters")
        return cursor

    def page(
        self,
        request: ListRequest,
        items: Iterable[_Item],
        *,
        convert: Callable[[_Item], portions.Item],
        key: Callable[[_Item], str],
    ) -> tuple[list[portions.Item], str]:
        """Return a page, and the token of the next page; empty when there is none.

        A page ends below 1 MiB, so it may be shorter than the request wants. It has one item at least, if there is any.

        Args:
            request: The request.
            items: In order. At most one is taken that is not on the page, so they may be read one by one.
            convert: Makes what the response lists.
            key: Returns the cursor of an item.
        """
        taken = []

        def converted() -> Iterator[portions.Item]:
            for item in islice(items, read_limit(request)):
                taken.append(item)
                yield convert(item)

        page = next(portions.portions(converted()))[: page_size(request)]
        return page, "" if len(page) == len(taken) else self.token(request, key(taken[len(page) - 1]))

    def paged(
        self, request: ListRequest, *, convert: Callable[[_Item], portions.Item], key: Callable[[_Item], str]
    ) -> Callable[[Iterable[_Item]], tuple[list[portions.Item], str]]:
        """Return the function that makes a page of items, see `page`, for a store that reads them as they are taken."""
        return lambda items: self.page(request, items, convert=convert, key=key)

    def token(self, request: ListRequest, cursor: str) -> str:
        """Make the token of the page that continues after a cursor."""
        return _written(_mac(self._keys[0], request, cursor) + cursor.encode())


def page_size(request: ListRequest) -> int:
    """Return the number of items of a page: 100 unless the request says.

    Raises:
        InvalidArgument: It is not 1 to 1,000.
    """
    if not 0 <= request.page_size <= MAX_PAGE_SIZE:
        raise InvalidArgument.of("page_size", f"must be 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}")
    return request.page_size or DEFAULT_PAGE_SIZE


def read_limit(request: ListRequest) -> int:
    """Return how many items to read: one more than the page has, to learn whether there is a next page.

    Raises:
        InvalidArgument: As `page_size`.
    """
    return page_size(request) + 1


def _written(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode()


def _taken_apart(token: str) -> tuple[bytes, str]:
    try:
        raw = urlsafe_b64decode(token)
        cursor = raw[_MAC_BYTES:].decode()
    except ValueError:
        return b"", ""
    # The decoder ignores unknown characters: only the canonical spelling of a token is valid.
    return (raw[:_MAC_BYTES], cursor) if _written(raw) == token else (b"", "")


def _mac(key: bytes, request: ListRequest, cursor: str) -> bytes:
    """Authenticate a cursor together with its request, without the paging fields."""
    filters = copy.deepcopy(request)
    filters.page_size, filters.page_token = 0, ""
    scope = type(request).__name__.encode() + b"\0" + filters.SerializeToString(deterministic=True) + b"\0"
    return hmac.digest(key, scope + cursor.encode(), "sha256")[:_MAC_BYTES]
