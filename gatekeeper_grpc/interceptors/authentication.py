"""From the metadata of a call to its caller: `authorization: Bearer <access token>`, or a signature."""

from collections.abc import Iterable
from typing import Protocol

from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.errors import Unauthenticated

_HEADER = "authorization"
_SCHEME = "bearer"


class TokenVerifier(Protocol):
    """What authentication needs of the keeper of keys."""

    def verify(self, token: str) -> Caller:
        """Return whom `token` was issued to; raise `Unauthenticated` unless it is valid in every respect."""
        ...


class SignedCall(Protocol):
    """A call whose signature is good."""

    @property
    def key_id(self) -> str:
        """The public name of the client key that signed it."""
        ...

    def check_body(self, body: bytes) -> None:
        """Raise `Unauthenticated` unless this body was signed, or none was."""
        ...


class SignatureGate(Protocol):
    """What authentication needs of the keeper of client keys."""

    def admit(self, metadata: Iterable[tuple[str, str | bytes]], *, method: str, is_stream: bool) -> SignedCall | None:
        """Return who signed a call, None when nobody did; raise `Unauthenticated` unless it may pass."""
        ...


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
