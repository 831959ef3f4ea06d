"""Calls of known clients, who send a bearer key or a signature; EvaluationService says more.

`verify` needs metadata alone and runs when a call arrives. `use` runs when a worker takes the call: one that is refused
for lack of room may be sent again as it is. `check_body` compares the body of a signed call with the signed one.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gatekeeper_grpc.auth.client_keys import ClientKeyCache, hash_of_bearer
from gatekeeper_grpc.auth.refused_credentials import Cause, RefusedCredentials
from gatekeeper_grpc.auth.signatures import (
    CLOCK_WINDOW_S,
    SIGNATURE_PARTS,
    UNSIGNED,
    Signature,
    sign,
    signature_of,
)
from gatekeeper_grpc.auth.tokens import Clock, utc_now
from gatekeeper_grpc.domain.client_key import ClientKeyType, EvaluationAccess, VerificationKey

_AUTHORIZATION: Final = "authorization"
_CREDENTIALS: Final = SIGNATURE_PARTS | {_AUTHORIZATION}
_BEARER: Final = re.compile(r"(?i:bearer) (?P<secret>gkc_(?P<unique>[0-9a-f]{20})_[A-Za-z0-9_-]{43})")
# Other tokens, such as an admin user's, are nobody's business here. This finds ours, the scheme forgotten too.
_OURS: Final = re.compile(r"(?i:bearer )?\s*gkc_")
# The secret of an unknown key: the response time must not reveal which keys exist.
_NOBODY: Final = bytes(32)


class UsedNonces(Protocol):
    """Remembers which nonces were used, for as long as their signatures are valid."""

    def use(self, key_id: str, nonce: str) -> bool:
        """Use a nonce of a key; return False when it was used before.

        Raises:
            ResourceExhausted: It cannot be remembered.
            Unavailable: Nobody can tell.
        """
        ...


class Incoming(Protocol):
    """What is known of a call when it arrives."""

    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What the client sent."""
        ...

    @property
    def authority(self) -> str:
        """What the client calls the server, in lower case."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCall:
    """A call with a valid credential: of which key, and, if it is signed, with which nonce and for which body."""

    key: VerificationKey
    nonce: str | None = None
    content_sha256: str = UNSIGNED

    @property
    def key_id(self) -> str:
        """The public name of the key."""
        return self.key.key_id


class ClientVerifier:
    """Authenticates calls by client keys, and refuses those without the credential that is required.

    Args:
        keys: The client keys.
        nonces: Those that were used.
        refusals: Keeps why calls were refused.
        access: Which credential is required.
        allow_unsigned_bodies: Whether the signature of a unary call may leave its body out; that of a stream always
            does.
        clock: Returns the current aware time.
    """

    def __init__(
        self,
        keys: ClientKeyCache,
        nonces: UsedNonces,
        refusals: RefusedCredentials,
        *,
        access: EvaluationAccess,
        allow_unsigned_bodies: bool,
        clock: Clock = utc_now,
    ) -> None:
        self._keys = keys
        self._nonces = nonces
        self._refusals = refusals
        self._access = access
        self._is_open = access is EvaluationAccess.OPEN
        self._allow_unsigned_bodies = allow_unsigned_bodies
        self._clock = clock

    def verify(self, call: Incoming, *, method: str, is_stream: bool) -> ClientCall | None:
        """Return whose call it is; None if it has no credential and needs none. Takes tens of microseconds and no I/O.

        It is not known yet whether a signed call was sent before: `use` it.

        Args:
            call: The call.
            method: Full name, such as "/gatekeeper.v1.EvaluationService/EvaluateFlags".
            is_stream: Whether the request or the response is a stream.

        Raises:
            Unauthenticated: The credential is invalid, or missing where one is required; one text for all.
            Unavailable: It may be valid.
        """
        sent = [pair for pair in call.metadata if pair[0] in _CREDENTIALS]
        # Most calls have none, and this is all that they cost.
        if not sent and self._is_open:
            return None
        parts = [pair for pair in sent if pair[0] != _AUTHORIZATION]
        for key, value in sent:
            if key == _AUTHORIZATION and isinstance(value, str) and _OURS.match(value):
                return self._verify_bearer(value, method, is_alone=len(sent) == 1)
        if parts:
            return self._verify_signed(parts, call.authority, method=method, is_stream=is_stream)
        if self._is_open:
            return None
        raise self._refusals.refuse(Cause.MISSING, method=method)

    def use(self, call: ClientCall) -> None:
        """Use a verified call, a signed one once: only the holder of a key can make anybody remember a nonce.

        Raises:
            Unauthenticated: It was sent before.
            ResourceExhausted: This instance cannot remember further nonces.
            Unavailable: Nobody can tell whether it was sent before.
        """
        if call.nonce is not None and not self._nonces.use(call.key_id, call.nonce):
            raise self._refusals.refuse(Cause.REPEATED, key_id=call.key_id)
        self._keys.uses.note(call.key_id)

    def check_key(self, call: ClientCall) -> None:
        """Require that the key of a call that is still open is still valid.

        Raises:
            Unauthenticated: It has expired or was revoked.
        """
        if self._keys.find(call.key_id) is None:
            raise self._refusals.refuse(Cause.UNKNOWN_KEY, key_id=call.key_id)

    def check_body(self, call: ClientCall, body: bytes) -> None:
        """Check that a body is the one that was signed.

        Raises:
            Unauthenticated: It is another one.
        """
        if call.content_sha256 == UNSIGNED:
            return
        if not hmac.compare_digest(hashlib.sha256(body).hexdigest(), call.content_sha256):
            raise self._refusals.refuse(Cause.OTHER_BODY, key_id=call.key_id, bytes=len(body))

    def _verify_bearer(self, bearer: str, method: str, *, is_alone: bool) -> ClientCall:
        found = _BEARER.fullmatch(bearer)
        if found is None or not is_alone:
            raise self._refusals.refuse(Cause.MALFORMED, method=method)
        key_id = f"{ClientKeyType.BEARER.prefix}{found['unique']}"
        if self._access is EvaluationAccess.SIGNED:
            raise self._refusals.refuse(Cause.BEARER_NOT_ALLOWED, method=method, key_id=key_id)
        key = self._keys.find(key_id)
        matches = hmac.compare_digest(hash_of_bearer(found["secret"]), key.secret if key else _NOBODY)
        if key is None or not matches:
            cause = Cause.WRONG_SECRET if key else Cause.UNKNOWN_KEY
            raise self._refusals.refuse(cause, method=method, key_id=key_id)
        return ClientCall(key=key)

    def _verify_signed(
        self, parts: list[tuple[str, str | bytes]], authority: str, *, method: str, is_stream: bool
    ) -> ClientCall:
        sent = signature_of(parts)
        if sent is None:
            raise self._refusals.refuse(Cause.MALFORMED, method=method)
        key = self._keys.find(sent.key_id)
        if cause := self._fault_of(sent, key, authority, method=method, is_stream=is_stream):
            raise self._refusals.refuse(
                cause,
                method=method,
                key_id=sent.key_id,
                authority=authority,
                clock_off_s=round(self._clock_off_s(sent)),
            )
        assert key is not None  # noqa: S101 - see `_fault_of`
        return ClientCall(key=key, nonce=sent.nonce, content_sha256=sent.content_sha256)

    def _fault_of(
        self, sent: Signature, key: VerificationKey | None, authority: str, *, method: str, is_stream: bool
    ) -> Cause | None:
        expected = sign(
            key.secret if key else _NOBODY,
            key_id=sent.key_id,
            timestamp=sent.timestamp,
            nonce=sent.nonce,
            content_sha256=sent.content_sha256,
            authority=authority,
            method=method,
        )
        matches = hmac.compare_digest(expected, sent.signature)
        if key is None:
            return Cause.UNKNOWN_KEY
        if not matches:
            return Cause.WRONG_SIGNATURE
        if abs(self._clock_off_s(sent)) > CLOCK_WINDOW_S:
            return Cause.CLOCK
        return None if self._covers_enough(sent, is_stream=is_stream) else Cause.BODY_NOT_SIGNED

    def _covers_enough(self, sent: Signature, *, is_stream: bool) -> bool:
        unsigned_body = sent.content_sha256 == UNSIGNED
        if is_stream:
            return unsigned_body
        return self._allow_unsigned_bodies or not unsigned_body

    def _clock_off_s(self, sent: Signature) -> float:
        """Return by how many seconds the client's clock is ahead of the server's."""
        return int(sent.timestamp) - self._clock().timestamp()
