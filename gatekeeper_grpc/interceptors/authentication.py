"""Authenticates a call by its metadata: `authorization: Bearer <access token>`."""

from collections.abc import Iterable
from typing import Protocol

from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.errors import Unauthenticated

_HEADER = "authorization"
_SCHEME = "bearer"


class TokenVerifier(Protocol):
    """Verifies access tokens."""

    def verify(self, token: str) -> Caller:
        """Return the caller to whom `token` was issued.

        Raises:
            Unauthenticated: The token is not valid.
        """
        ...


class NoTokens:
    """The verifier of a server whose methods are all public: no token is valid."""

    def verify(self, token: str) -> Caller:
        """Refuse `token`.

        Raises:
            Unauthenticated: Always.
        """
        del token
        raise Unauthenticated("this server accepts no tokens")


def authenticate(metadata: Iterable[tuple[str, str | bytes]], verifier: TokenVerifier) -> Caller:
    """Return the caller named by the one access token in `metadata`.

    Raises:
        Unauthenticated: No token, several, a malformed header or a bad token; always with the same text.
    """
    try:
        return verifier.verify(_bearer_token(metadata))
    except Unauthenticated as cause:
        raise Unauthenticated.access_token() from cause


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    values = [value for key, value in metadata if key == _HEADER]
    if len(values) != 1 or not isinstance(values[0], str):
        raise Unauthenticated("exactly one authorization header is needed")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != _SCHEME or not token or not token.isascii() or token != "".join(token.split()):
        raise Unauthenticated("the authorization header is malformed")
    return token
