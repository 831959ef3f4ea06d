"""Access tokens (JWT, HS256): issued at login, verified on every admin call."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import jwt

from gatekeeper_grpc.auth.keys import KeyRing, SigningKey
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import Unauthenticated

ISSUER = "gatekeeper"
AUDIENCE = "gatekeeper-admin"
ACCESS_TTL = timedelta(minutes=15)
MAX_ACCESS_TTL = timedelta(days=1)
# gRPC refuses metadata above 8 KiB, some of it at random.
MAX_TOKEN_CHARS = 4096
# Another instance's clock may be ahead: without leeway, its tokens would be refused right after login. Expiry has no
# leeway: no token lives longer than its holder was told, and a client that is refused early refreshes.
CLOCK_LEEWAY_S = 10.0

_ALGORITHM = "HS256"
_MAX_BIGINT = 2**63 - 1

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the current time: the clock of production."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A secret that its holder presents, and when it expires. Its text form does not show it."""

    text: str = field(repr=False)
    expire_time: datetime


class AccessTokens:
    """Issues and verifies access tokens. Holds no state: instances with the same keys accept each other's tokens.

    A token must be exactly one that this release issues: the same header byte for byte, the same claims, types and
    ranges. A release that adds a claim must therefore follow one that accepts it.

    Args:
        keys: Newest first. A token whose key has been dropped is refused.
        ttl: How long tokens live, 1 second to 1 day, in whole seconds.
        clock: Returns the current aware time.
    """

    def __init__(self, keys: KeyRing, *, ttl: timedelta = ACCESS_TTL, clock: Clock = utc_now) -> None:
        if ttl % timedelta(seconds=1) or not timedelta(seconds=1) <= ttl <= MAX_ACCESS_TTL:
            raise ValueError(f"the lifetime of access tokens must be whole seconds, 1 second to 1 day, not {ttl}")
        self._ttl = ttl
        self._clock = clock
        self.use_keys(keys)

    def use_keys(self, keys: KeyRing) -> None:
        """Sign and verify with other keys from now on."""
        # In this order: what is signed from now on can be verified.
        self._secrets = {_header_of(key): key.secret for key in keys.keys}
        self._newest = keys.newest

    def issue(self, caller: Caller) -> Token:
        """Sign the current state of an admin user; the token is below 4 KiB for every valid username."""
        issue_time = self._clock().replace(microsecond=0)
        expire_time = issue_time + self._ttl
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(caller.admin_id),
            "username": caller.username,
            "role": caller.role.name.lower(),
            "epoch": caller.token_epoch,
            "sid": str(caller.session_id),
            "iat": int(issue_time.timestamp()),
            "exp": int(expire_time.timestamp()),
            "jti": str(uuid4()),
        }
        return Token(text=_sign(self._newest, claims), expire_time=expire_time)

    def verify(self, token: str) -> Caller:
        """Return the caller that a token was issued to. Takes tens of microseconds and no I/O.

        Raises:
            Unauthenticated: The token is not valid; one text for every cause.
        """
        try:
            claims = _parse_claims(self._signed_payload(token))
            self._check_in_force(claims)
        # RecursionError: JSON nested too deep. No cause is kept: it would quote the token.
        except (jwt.PyJWTError, KeyError, ValueError, RecursionError):
            raise Unauthenticated.access_token() from None
        return Caller(
            admin_id=int(claims["sub"]),
            username=claims["username"],
            role=_ROLES[claims["role"]],
            token_epoch=claims["epoch"],
            expire_time_s=claims["exp"],
            session_id=UUID(claims["sid"]),
        )

    def _signed_payload(self, token: str) -> bytes:
        if len(token) > MAX_TOKEN_CHARS or not _COMPACT.fullmatch(token):
            raise ValueError("not a token in compact form")
        secret = self._secrets[token.partition(".")[0]]
        payload: bytes = _JWS.decode(token, secret, algorithms=[_ALGORITHM])
        return payload

    def _check_in_force(self, claims: Mapping[str, Any]) -> None:
        now = self._clock().timestamp()
        issued, expires = claims["iat"], claims["exp"]
        if not 0 < expires - issued <= MAX_ACCESS_TTL.total_seconds():
            raise ValueError("no token of ours lives that long")
        if not issued - CLOCK_LEEWAY_S <= now < expires:
            raise ValueError("not yet or no longer valid")


_JWS = jwt.PyJWS(algorithms=[_ALGORITHM], options={"verify_signature": True, "enforce_minimum_key_length": True})

# Three segments of canonical base64url without padding. 32 bytes end in a character whose last two bits are zero; lax
# decoders accept other characters, which would give every token four spellings.
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")


def _sign(key: SigningKey, claims: Mapping[str, Any]) -> str:
    payload = json.dumps(claims, separators=(",", ":")).encode()
    return _JWS.encode(payload, key.secret, algorithm=_ALGORITHM, headers={"kid": key.kid})


def _header_of(key: SigningKey) -> str:
    """Return the first segment of every token that a key signs: comparing it checks algorithm, kid and the rest."""
    return _sign(key, {}).partition(".")[0]


_Check = Callable[[Any], bool]


def _text(pattern: str) -> _Check:
    whole = re.compile(pattern)
    return lambda value: isinstance(value, str) and whole.fullmatch(value) is not None


def _integer(least: int, most: int) -> _Check:
    # Not isinstance: a bool is an int as well.
    return lambda value: type(value) is int and least <= value <= most


_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ROLES: Mapping[str, Role] = MappingProxyType({role.name.lower(): role for role in Role})

# Every claim, all of them required, and its check.
_CLAIMS: Mapping[str, _Check] = MappingProxyType(
    {
        "iss": _text(re.escape(ISSUER)),
        "aud": _text(re.escape(AUDIENCE)),
        "sub": _text("[1-9][0-9]{0,17}"),
        "username": _text("[^\0\ud800-\udfff]{1,128}"),
        "role": _text("|".join(_ROLES)),
        "epoch": _integer(1, _MAX_BIGINT),
        "iat": _integer(0, _MAX_BIGINT),
        "exp": _integer(0, _MAX_BIGINT),
        "sid": _text(_UUID),
        "jti": _text(_UUID),
    }
)


def _parse_claims(payload: bytes) -> dict[str, Any]:
    claims = json.loads(payload.decode(), object_pairs_hook=_distinct)
    if not isinstance(claims, dict) or claims.keys() != _CLAIMS.keys():
        raise ValueError("not our claims")
    if not all(check(claims[name]) for name, check in _CLAIMS.items()):
        raise ValueError("a claim has a wrong type or is out of range")
    return claims


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a repeated name is refused, because parsers disagree on which one counts."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name is repeated")
    return members
