"""Access tokens: what we issue is accepted while it is in force, and nothing else is."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper_grpc.auth.keys import KeyRing, SigningKey
from gatekeeper_grpc.auth.tokens import MAX_TOKEN_CHARS, AccessTokens
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import Unauthenticated

pytestmark = pytest.mark.promise("D1", "D2")

NOW = datetime(2026, 11, 23, 7, 0, 0, 250_000, tzinfo=UTC)
IAT = int(NOW.timestamp())
NEW = SigningKey(kid="new", secret="n" * 32)
OLD = SigningKey(kid="old", secret="o" * 32)
ALGORITHM_HEADER = {"alg": "HS256", "kid": "new", "typ": "JWT"}
SESSION = UUID("5d7d3c1e-7d0a-4a55-9c6e-2f0c1c9e8a11")
CALLER = Caller(admin_id=7, username="ada", role=Role.EDITOR, token_epoch=3, session_id=SESSION)
CLAIMS: dict[str, Any] = {
    "iss": "gatekeeper",
    "aud": "gatekeeper-admin",
    "sub": "7",
    "username": "ada",
    "role": "editor",
    "epoch": 3,
    "iat": IAT,
    "exp": IAT + 900,
    "sid": "5d7d3c1e-7d0a-4a55-9c6e-2f0c1c9e8a11",
    "jti": "1b4e28ba-2fa1-4d3b-a3f5-ef19b5a7633b",
}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> AccessTokens:
    return AccessTokens(KeyRing((NEW, OLD)), clock=clock)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def sign(
    payload: object, header: object = ALGORITHM_HEADER, secret: str = NEW.secret, digest: Any = hashlib.sha256
) -> str:
    """Sign by hand whatever is given: bytes as they are, all else as JSON."""
    signed = f"{b64(compact(header))}.{b64(compact(payload))}"
    return f"{signed}.{b64(hmac.digest(secret.encode(), signed.encode(), digest))}"


def refused(tokens: AccessTokens, token: str) -> bool:
    """Tell whether a token is refused; any other error than the one, with its one text, is none."""
    try:
        tokens.verify(token)
    except Unauthenticated as refusal:
        return str(refusal) == "a valid access token is required: send it as metadata 'authorization: Bearer <token>'"
    return False


def test_issued_token_names_its_caller_until_it_expires(tokens: AccessTokens, clock: Clock) -> None:
    token = tokens.issue(CALLER)

    assert tokens.verify(token.text) == CALLER
    assert token.expire_time == NOW.replace(microsecond=0) + timedelta(minutes=15)
    clock.now = token.expire_time - timedelta(microseconds=1)
    assert tokens.verify(token.text) == CALLER
    clock.now = token.expire_time
    assert refused(tokens, token.text)


def test_a_token_from_a_clock_up_to_10_s_ahead_is_accepted(tokens: AccessTokens, clock: Clock) -> None:
    token = tokens.issue(CALLER).text

    clock.now = NOW.replace(microsecond=0) - timedelta(seconds=10)
    assert tokens.verify(token) == CALLER
    clock.now -= timedelta(microseconds=1)
    assert refused(tokens, token)


def test_the_control_token_of_the_refusals_below_is_accepted(tokens: AccessTokens) -> None:
    assert tokens.verify(sign(CLAIMS)) == CALLER
    assert tokens.verify(sign(CLAIMS, ALGORITHM_HEADER | {"kid": "old"}, OLD.secret)) == CALLER


def test_the_header_is_the_same_in_every_release(tokens: AccessTokens) -> None:
    header = tokens.issue(CALLER).text.partition(".")[0]

    assert header == b64(b'{"alg":"HS256","kid":"new","typ":"JWT"}')


def test_every_token_has_an_id_of_its_own(tokens: AccessTokens) -> None:
    assert tokens.issue(CALLER).text != tokens.issue(CALLER).text


def test_token_of_the_longest_name_fits_the_metadata(clock: Clock) -> None:
    tokens = AccessTokens(KeyRing((SigningKey(kid="k" * 64, secret="s" * 32),)), clock=clock)
    caller = Caller(admin_id=10**18 - 1, username="\U0001f600" * 128, role=Role.EDITOR, token_epoch=2**63 - 1)

    token = tokens.issue(caller).text

    assert len(token) <= MAX_TOKEN_CHARS
    assert tokens.verify(token) == caller


@pytest.mark.parametrize(
    "ttl", [timedelta(0), timedelta(seconds=-1), timedelta(seconds=1.5), timedelta(days=1, seconds=1)]
)
def test_odd_lifetime_is_refused_at_start(ttl: timedelta) -> None:
    with pytest.raises(ValueError, match="whole seconds, 1 second to 1 day"):
        AccessTokens(KeyRing((NEW,)), ttl=ttl)


def test_token_does_not_show_its_text(tokens: AccessTokens) -> None:
    token = tokens.issue(CALLER)

    assert token.text not in f"{token!r} {token}"


# --- rotation: D2 -----------------------------------------------------------------------------------------------------


def test_valid_tokens_survive_a_rotation_and_a_dropped_key_is_refused(clock: Clock) -> None:
    rings = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]
    stages = [AccessTokens(KeyRing(ring), clock=clock) for ring in rings]
    issued = [stage.issue(CALLER).text for stage in stages]

    accepted = [[not refused(stage, token) for stage in stages] for token in issued]

    # Neighbouring stages run side by side: each accepts the other's tokens.
    signed_by_old, signed_by_new = [True, True, True, False], [False, True, True, True]
    assert accepted == [signed_by_old, signed_by_old, signed_by_new, signed_by_new]


def test_new_key_under_a_used_kid_does_not_revive_old_tokens(tokens: AccessTokens, clock: Clock) -> None:
    renewed = AccessTokens(KeyRing((SigningKey(kid="new", secret="x" * 32),)), clock=clock)

    assert refused(renewed, tokens.issue(CALLER).text)


# --- forged and odd tokens: D1 ----------------------------------------------------------------------------------------

NOT_OUR_CLAIMS: list[tuple[str, Any]] = [
    ("iss", "Gatekeeper"),
    ("iss", 7),
    ("iss", ["gatekeeper"]),
    ("iss", {"gatekeeper": True}),
    ("iss", None),
    ("aud", ["gatekeeper-admin"]),
    ("aud", ["gatekeeper-admin", "other"]),
    ("aud", "other"),
    ("aud", ""),
    ("sub", 7),
    ("sub", "07"),
    ("sub", "-7"),
    ("sub", "0"),
    ("sub", " 7"),
    ("sub", "7\n"),
    ("sub", "\u0667"),
    ("sub", "7" * 30),
    ("sub", True),
    ("username", ""),
    ("username", "a" * 129),
    ("username", "ada\0"),
    ("username", "\ud800"),
    ("username", ["ada"]),
    ("username", None),
    ("role", "owner"),
    ("role", "EDITOR"),
    ("role", "editor\n"),
    ("role", 2),
    ("role", ["editor"]),
    ("epoch", "3"),
    ("epoch", 3.0),
    ("epoch", True),
    ("epoch", 0),
    ("epoch", -1),
    ("epoch", 2**63),
    ("iat", str(IAT)),
    ("iat", float(IAT)),
    ("iat", True),
    ("iat", -1),
    ("iat", IAT + 60),
    ("iat", None),
    ("exp", str(IAT + 900)),
    ("exp", 1e30),
    ("exp", 10**30),
    ("exp", float(IAT + 900)),
    ("exp", True),
    ("exp", [IAT + 900]),
    ("exp", IAT + 86_401),
    ("exp", IAT),
    ("exp", IAT - 900),
    ("exp", None),
    ("sid", "5D7D3C1E-7D0A-4A55-9C6E-2F0C1C9E8A11"),
    ("sid", ""),
    ("sid", None),
    ("jti", "1B4E28BA-2FA1-4D3B-A3F5-EF19B5A7633B"),
    ("jti", "1b4e28ba2fa14d3ba3f5ef19b5a7633b"),  # pragma: allowlist secret
    ("jti", 7),
    ("jti", None),
    ("nbf", IAT + 60),
    ("admin", True),
]


@pytest.mark.parametrize(("claim", "value"), NOT_OUR_CLAIMS)
def test_signed_token_with_an_odd_claim_is_refused(tokens: AccessTokens, claim: str, value: object) -> None:
    assert refused(tokens, sign(CLAIMS | {claim: value}))


@pytest.mark.parametrize("claim", CLAIMS)
def test_signed_token_without_a_claim_is_refused(tokens: AccessTokens, claim: str) -> None:
    assert refused(tokens, sign({name: value for name, value in CLAIMS.items() if name != claim}))


NOT_OUR_HEADERS: dict[str, object] = {
    "no kid": {"alg": "HS256", "typ": "JWT"},
    "unknown kid": ALGORITHM_HEADER | {"kid": "other"},
    "kid of the other key": ALGORITHM_HEADER | {"kid": "old"},
    "kid a number": ALGORITHM_HEADER | {"kid": 1},
    "kid a list": ALGORITHM_HEADER | {"kid": ["new"]},
    "kid null": ALGORITHM_HEADER | {"kid": None},
    "kid a path": ALGORITHM_HEADER | {"kid": "../../dev/null"},
    "kid twice": b'{"alg":"HS256","kid":"old","kid":"new","typ":"JWT"}',
    "algorithm none": ALGORITHM_HEADER | {"alg": "none"},
    "algorithm lower-case": ALGORITHM_HEADER | {"alg": "hs256"},
    "algorithm HS512": ALGORITHM_HEADER | {"alg": "HS512"},
    "algorithm RS256": ALGORITHM_HEADER | {"alg": "RS256"},
    "algorithm a list": ALGORITHM_HEADER | {"alg": ["HS256"]},
    "no algorithm": {"kid": "new", "typ": "JWT"},
    "algorithm twice": b'{"alg":"none","alg":"HS256","kid":"new","typ":"JWT"}',
    "another type": ALGORITHM_HEADER | {"typ": "at+jwt"},
    "critical extension": ALGORITHM_HEADER | {"crit": ["b64"], "b64": True},
    "detached payload": ALGORITHM_HEADER | {"crit": ["b64"], "b64": False},
    "key to be fetched": ALGORITHM_HEADER | {"jku": "https://attacker.example/keys"},
    "key included": ALGORITHM_HEADER | {"jwk": {"kty": "oct", "k": "bmV3"}},
    "other spacing": b'{"alg": "HS256", "kid": "new", "typ": "JWT"}',
    "other order": b'{"typ":"JWT","kid":"new","alg":"HS256"}',
    "a list": [ALGORITHM_HEADER],
    "empty object": {},
    "not JSON": b"\xff\xfe",
}


@pytest.mark.parametrize("header", NOT_OUR_HEADERS.values(), ids=NOT_OUR_HEADERS.keys())
def test_token_with_another_header_is_refused(tokens: AccessTokens, header: object) -> None:
    assert refused(tokens, sign(CLAIMS, header))


NOT_OUR_PAYLOADS: dict[str, object] = {
    "a list": [CLAIMS],
    "a string": "ada",
    "null": None,
    "empty object": {},
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "UTF-16": json.dumps(CLAIMS).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + compact(CLAIMS),
    "nested deep": b'{"exp":' * 400 + b"1" + b"}" * 400,
    "nested deeper": b"[" * 2_500,
    "name twice": b'{"role":"admin",' + compact(CLAIMS)[1:],
    "exp not a number": compact(CLAIMS).replace(str(IAT + 900).encode(), b"NaN"),
    "exp infinite": compact(CLAIMS).replace(str(IAT + 900).encode(), b"Infinity"),
    "trailing text": compact(CLAIMS) + b"{}",
}


@pytest.mark.parametrize("payload", NOT_OUR_PAYLOADS.values(), ids=NOT_OUR_PAYLOADS.keys())
def test_signed_token_with_another_payload_is_refused(tokens: AccessTokens, payload: object) -> None:
    assert refused(tokens, sign(payload))


def unsigned(token: str) -> str:
    return token.rpartition(".")[0] + "."


def with_lax_signature(token: str) -> str:
    """Write the same 32 bytes of signature another way: lax decoders ignore the last two bits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"  # pragma: allowlist secret
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


NOT_COMPACT: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "dots": lambda _: "..",
    "padded": lambda token: token + "=",
    "padded twice": lambda token: token + "==",
    "padded header": lambda token: token.replace(".", "=.", 1),
    "newline after": lambda token: token + "\n",
    "space before": lambda token: " " + token,
    "fourth segment": lambda token: token + "." + token.rpartition(".")[2],
    "five segments": lambda token: token + ".a.b",
    "dot after": lambda token: token + ".",
    "dot before": lambda token: "." + token,
    "no signature": unsigned,
    "two segments": lambda token: token.rpartition(".")[0],
    "empty payload": lambda token: token.partition(".")[0] + ".." + token.rpartition(".")[2],
    "short signature": lambda token: token[:-1],
    "long signature": lambda token: token + "A",
    "lax signature": with_lax_signature,
    "classic alphabet": lambda token: unsigned(token) + "+/" + token.rpartition(".")[2][2:],
    "not ASCII": lambda token: token.replace("e", "е", 1),  # noqa: RUF001 # A Cyrillic letter is the point.
    "NUL": lambda token: token + "\0",
    "lone surrogate": lambda token: token + "\ud800",
    "scheme twice": lambda token: "Bearer " + token,
    "two tokens": lambda token: f"{token},{token}",
    "one MiB": lambda token: token + "A" * 2**20,
}


@pytest.mark.parametrize("change", NOT_COMPACT.values(), ids=NOT_COMPACT.keys())
def test_token_in_another_form_is_refused(tokens: AccessTokens, change: Callable[[str], str]) -> None:
    assert refused(tokens, change(tokens.issue(CALLER).text))


def test_a_signed_token_above_4_kib_is_refused(tokens: AccessTokens) -> None:
    def padded(spaces: int) -> str:
        return sign(compact(CLAIMS) + b" " * spaces)

    fitting = next(spaces for spaces in range(3_000, 0, -1) if len(padded(spaces)) <= MAX_TOKEN_CHARS)

    assert tokens.verify(padded(fitting)) == CALLER
    assert refused(tokens, padded(fitting + 3))


def test_a_token_that_expires_before_its_issue_is_refused(tokens: AccessTokens) -> None:
    assert refused(tokens, sign(CLAIMS | {"iat": IAT + 5, "exp": IAT + 3}))


def test_change_of_any_one_character_is_refused(tokens: AccessTokens) -> None:
    token = tokens.issue(CALLER).text

    accepted = [
        position
        for position, character in enumerate(token)
        if not refused(tokens, token[:position] + ("A" if character != "A" else "B") + token[position + 1 :])
    ]

    assert accepted == []


def test_segments_of_two_valid_tokens_do_not_mix(tokens: AccessTokens) -> None:
    mine = tokens.issue(CALLER).text.split(".")
    theirs = tokens.issue(Caller(admin_id=8, username="root", role=Role.ADMIN, token_epoch=1)).text.split(".")

    assert refused(tokens, ".".join([mine[0], theirs[1], mine[2]]))
    assert refused(tokens, ".".join([mine[0], mine[1], theirs[2]]))


SIGNED_WITH: dict[str, str] = {
    "another key": sign(CLAIMS, secret="x" * 32),
    "an empty key": sign(CLAIMS, secret=""),
    "the kid": sign(CLAIMS, secret="new"),
    "the key of another kid": sign(CLAIMS, secret=OLD.secret),
    "SHA-512 cut short": sign(CLAIMS, digest=hashlib.sha512)[: len(sign(CLAIMS))],
}


@pytest.mark.parametrize("token", SIGNED_WITH.values(), ids=SIGNED_WITH.keys())
def test_token_signed_otherwise_is_refused(tokens: AccessTokens, token: str) -> None:
    assert refused(tokens, token)


def test_at_least_sixty_odd_tokens_were_tried() -> None:
    tried = (NOT_OUR_CLAIMS, CLAIMS, NOT_OUR_HEADERS, NOT_OUR_PAYLOADS, NOT_COMPACT, SIGNED_WITH)

    assert sum(map(len, tried)) >= 60


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(CLAIMS)), JSON)
def test_no_signed_value_of_a_claim_causes_another_error(claim: str, value: object) -> None:
    tokens = AccessTokens(KeyRing((NEW,)), clock=Clock())
    try:
        tokens.verify(sign(CLAIMS | {claim: value}))
    except Unauthenticated:
        return
    # What got through is of the claim's type: a name, a number in range, the claim as it was.
    assert type(value) is type(CLAIMS[claim])


@given(st.text())
def test_no_text_causes_another_error(text: str) -> None:
    assert refused(AccessTokens(KeyRing((NEW,)), clock=Clock()), text)


# --- the twin: what PyJWT alone, with the algorithm pinned, lets through ----------------------------------------------


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(sign(CLAIMS | {"iat": 0, "exp": "9999999999"}), id="exp is text"),
        pytest.param(sign(CLAIMS | {"iat": 0, "exp": 1e30}), id="exp in a million years"),
        pytest.param(sign(CLAIMS | {"iat": 0, "exp": 9_999_999_999, "aud": ["gatekeeper-admin"]}), id="aud is a list"),
        pytest.param(sign(CLAIMS | {"iat": False, "exp": 9_999_999_999}), id="iat is a bool"),
        pytest.param(sign({"aud": "gatekeeper-admin"}), id="claims missing"),
        pytest.param(sign(CLAIMS | {"iat": 0, "exp": 9_999_999_999}, {"alg": "HS256"}), id="kid missing"),
        pytest.param(sign(CLAIMS | {"iat": 0, "exp": 9_999_999_999}) + "=", id="padded"),
    ],
)
def test_library_alone_accepts_what_we_refuse(tokens: AccessTokens, token: str) -> None:
    assert jwt.decode(token, NEW.secret, algorithms=["HS256"], audience="gatekeeper-admin")
    assert refused(tokens, token)
