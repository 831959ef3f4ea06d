"""Authenticates a call by its metadata: `authorization: Bearer <token>`."""

from collections.abc import Callable, Iterable

from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.errors import Unauthenticated

_HEADER = "authorization"
_SCHEME = "bearer"


VerifyToken = Callable[[str], Caller]
"""Returns the caller whose access token or API token it is; raises Unauthenticated if the token is not valid."""


def refuse_token(_token: str) -> Caller:
    """Refuse every token: for a server whose methods are all public.

    Raises:
        Unauthenticated: Always.
    """
    raise Unauthenticated("this server accepts no tokens")


def authenticate(metadata: Iterable[tuple[str, str | bytes]], verify_token: VerifyToken) -> Caller:
    """Return the caller named by the one token in `metadata`.

    Raises:
        Unauthenticated: No token, several, a malformed header or a bad token; always with the same text.
    """
    try:
        return verify_token(_bearer_token(metadata))
    except Unauthenticated as cause:
        raise Unauthenticated.access_token() from cause


def has_token(metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Return whether a call has a token, valid or not."""
    return any(key == _HEADER for key, _ in metadata)


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    values = [value for key, value in metadata if key == _HEADER]
    if len(values) != 1 or not isinstance(values[0], str):
        raise Unauthenticated("exactly one authorization header is needed")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != _SCHEME or not token or not token.isascii() or token != "".join(token.split()):
        raise Unauthenticated("the authorization header is malformed")
    return token
