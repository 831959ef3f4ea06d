"""Signed calls: what a client signs, and that nothing forged, odd, old or repeated passes."""

import hashlib
import hmac
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gatekeeper_grpc.auth.signatures import (
    UNSIGNED,
    Nonces,
    SignatureVerifier,
    SignedCall,
    sign,
    signature_in,
)
from gatekeeper_grpc.domain.client_key import RateTier, VerificationKey
from gatekeeper_grpc.domain.errors import ResourceExhausted, Unauthenticated

pytestmark = pytest.mark.promise("D1")

NOW = datetime(2026, 11, 23, 7, 0, tzinfo=UTC)
KEY_ID = "ck_0123456789abcdef0123"
SECRET = b"canary-secret-of-43-characters-in-base64url"
BODY = b"a request message"
METHOD = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
Metadata = tuple[tuple[str, str | bytes], ...]


class World:
    """The valid keys, and the time."""

    def __init__(self) -> None:
        self.now = NOW
        self.seconds = 0.0
        self.used: list[str] = []
        self.nonces = Nonces(keep_s=60, capacity=3, clock=lambda: self.seconds)

    def find(self, key_id: str) -> VerificationKey | None:
        key = VerificationKey(key_id=KEY_ID, secret=SECRET, tier=RateTier.HIGH, expire_time=None)
        return key if key_id == KEY_ID else None

    def note_use(self, key_id: str) -> None:
        self.used.append(key_id)

    def verifier(self, *, required: bool = False, allow_unsigned_bodies: bool = True) -> SignatureVerifier:
        keys: Any = self
        return SignatureVerifier(
            keys,
            self.nonces,
            required=required,
            allow_unsigned_bodies=allow_unsigned_bodies,
            clock=lambda: self.now,
        )

    def admit(self, metadata: Metadata, *, method: str = METHOD, required: bool = False) -> SignedCall | None:
        verifier = self.verifier(required=required)
        call = verifier.verify(metadata, method=method, is_stream=False)
        if call is not None:
            verifier.use(call)
        return call

    def refuses(self, metadata: Metadata, *, method: str = METHOD, required: bool = False) -> bool:
        try:
            self.admit(metadata, method=method, required=required)
        except Unauthenticated as refusal:
            return str(refusal) == str(Unauthenticated.signature())
        return False


@pytest.fixture
def world() -> World:
    return World()


def signed(
    *,
    key_id: str = KEY_ID,
    secret: bytes = SECRET,
    time: datetime = NOW,
    nonce: str = "n" * 16,
    content: str = hashlib.sha256(BODY).hexdigest(),
    method: str = METHOD,
) -> Metadata:
    """What a client sends that follows the contract."""
    timestamp = str(int(time.timestamp()))
    return (
        ("user-agent", "grpc-go"),
        ("x-gatekeeper-key-id", key_id),
        ("x-gatekeeper-timestamp", timestamp),
        ("x-gatekeeper-nonce", nonce),
        ("x-gatekeeper-content-sha256", content),
        (
            "x-gatekeeper-signature",
            sign(secret, key_id=key_id, timestamp=timestamp, nonce=nonce, content_sha256=content, method=method),
        ),
    )


def test_signature_is_the_hmac_of_five_lines() -> None:
    canonical = f"{KEY_ID}\n1795417200\n{'n' * 16}\nUNSIGNED\n{METHOD}"
    expected = hmac.new(SECRET, canonical.encode(), hashlib.sha256).hexdigest()

    assert expected == sign(
        SECRET, key_id=KEY_ID, timestamp="1795417200", nonce="n" * 16, content_sha256="UNSIGNED", method=METHOD
    )


def test_a_valid_signature_names_its_key_and_counts_as_a_use(world: World) -> None:
    call = world.admit(signed())

    assert call is not None
    assert (call.key_id, call.key.tier, world.used) == (KEY_ID, RateTier.HIGH, [KEY_ID])
    call.check_body(BODY)


def test_other_body_than_the_signed_one_is_refused(world: World) -> None:
    call = world.admit(signed())

    assert call is not None
    with pytest.raises(Unauthenticated):
        call.check_body(BODY + b"!")


def test_unsigned_body_may_be_any(world: World) -> None:
    call = world.admit(signed(content=UNSIGNED))

    assert call is not None
    call.check_body(b"anything")


@pytest.mark.parametrize(
    ("streams", "allowed", "content", "passes"),
    [
        (False, True, UNSIGNED, True),
        (False, False, UNSIGNED, False),
        (False, False, "0" * 64, True),
        (True, False, UNSIGNED, True),
        (True, True, "0" * 64, False),
    ],
)
def test_stream_leaves_its_body_out_and_a_unary_call_where_that_is_allowed(
    world: World, streams: bool, allowed: bool, content: str, passes: bool
) -> None:
    verifier = world.verifier(required=True, allow_unsigned_bodies=allowed)

    with nullcontext() if passes else pytest.raises(Unauthenticated):
        assert verifier.verify(signed(content=content), method=METHOD, is_stream=streams)


def test_call_without_a_signature_is_anonymous_unless_one_is_required(world: World) -> None:
    assert signature_in((("user-agent", "grpc-go"),)) is None
    assert world.admit((("user-agent", "grpc-go"),)) is None
    assert world.refuses((("user-agent", "grpc-go"),), required=True)


def without(name: str) -> Metadata:
    return tuple(pair for pair in signed() if pair[0] != f"x-gatekeeper-{name}")


def with_value(name: str, value: str | bytes) -> Metadata:
    return (*without(name), (f"x-gatekeeper-{name}", value))


PARTS = ("key-id", "timestamp", "nonce", "content-sha256", "signature")
SENT = {str(key).removeprefix("x-gatekeeper-"): str(value) for key, value in signed()}
ODD: dict[str, Metadata] = {
    **{f"no {part}": without(part) for part in PARTS},
    **{f"{part} alone": ((f"x-gatekeeper-{part}", SENT[part]),) for part in PARTS},
    **{f"two {part}": (*signed(), (f"x-gatekeeper-{part}", SENT[part])) for part in PARTS},
    **{f"empty {part}": with_value(part, "") for part in PARTS},
    **{f"{part} as bytes": with_value(part, SENT[part].encode()) for part in PARTS},
    **{f"{part} with a space": with_value(part, SENT[part] + " ") for part in PARTS},
    **{f"{part} with a line feed": with_value(part, SENT[part] + "\n") for part in PARTS},
    "upper-case signature": with_value("signature", SENT["signature"].upper()),
    "cut signature": with_value("signature", SENT["signature"][:-2]),
    "long signature": with_value("signature", SENT["signature"] + "00"),
    "signature of zeros": with_value("signature", "0" * 64),
    "other key": with_value("key-id", "ck_" + "f" * 20),
    "unknown key": signed(key_id="ck_" + "f" * 20),
    "other secret": signed(secret=SECRET + b"x"),
    "empty secret": signed(secret=b""),
    "secret of nobody": signed(key_id="ck_" + "f" * 20, secret=b"\0" * 43),
    "other time": with_value("timestamp", str(int(NOW.timestamp()) + 1)),
    "time with sign": with_value("timestamp", "+" + SENT["timestamp"]),
    "time with zero": with_value("timestamp", "0" + SENT["timestamp"]),
    "time with fraction": with_value("timestamp", SENT["timestamp"] + ".0"),
    "time in Arabic digits": with_value("timestamp", "١٧٩٥٤١٧٢٠٠"),
    "endless time": with_value("timestamp", "9" * 10_000),
    "other nonce": with_value("nonce", "m" * 16),
    "short nonce": signed(nonce="n" * 15),
    "long nonce": signed(nonce="n" * 129),
    "nonce with a line feed": signed(nonce="n" * 16 + "\n" + "n"),
    "other content": with_value("content-sha256", "0" * 64),
    "body left out later": with_value("content-sha256", UNSIGNED),
    "unsigned in lower case": signed(content="unsigned"),
    "other method": signed(method=METHOD.replace("EvaluateFlags", "BulkEvaluateFlags")),
    "too old": signed(time=NOW - timedelta(seconds=31)),
    "from the future": signed(time=NOW + timedelta(seconds=31)),
}


@pytest.mark.parametrize("metadata", ODD.values(), ids=ODD.keys())
def test_whatever_is_wrong_the_call_is_refused_with_one_text(world: World, metadata: Metadata) -> None:
    # An upper-case signature may be all digits.
    assert metadata != signed()
    assert world.refuses(metadata)
    assert world.used == []


@pytest.mark.parametrize("seconds", [-30, 0, 30])
def test_clock_may_be_half_a_minute_off(world: World, seconds: int) -> None:
    assert world.admit(signed(time=NOW + timedelta(seconds=seconds))) is not None


def test_call_that_is_sent_again_is_refused_for_as_long_as_it_is_timely(world: World) -> None:
    early = signed(time=NOW + timedelta(seconds=30))
    world.admit(early)
    for seconds in range(61):
        world.seconds, world.now = float(seconds), NOW + timedelta(seconds=seconds)
        assert world.refuses(early)


def test_nonce_is_remembered_only_of_who_holds_a_key(world: World) -> None:
    assert world.refuses(signed(secret=b"guessed"))

    assert world.admit(signed()) is not None


def test_a_nonce_that_cannot_be_remembered_is_refused(world: World) -> None:
    for number in range(3):
        world.admit(signed(nonce=f"{number:016}"))

    with pytest.raises(ResourceExhausted):
        world.admit(signed(nonce="x" * 16))
    assert world.refuses(signed(nonce=f"{0:016}"))


@pytest.mark.parametrize(("after_s", "known"), [(59.0, True), (60.0, True), (121.0, False), (500.0, False)])
def test_nonces_are_forgotten_when_their_signatures_are_no_good_any_more(after_s: float, known: bool) -> None:
    now = [0.0]
    nonces = Nonces(keep_s=60, capacity=10, clock=lambda: now[0])
    nonces.use(KEY_ID, "n")

    now[0] = after_s

    assert nonces.use(KEY_ID, "n") is not known


def test_two_keys_may_use_one_nonce() -> None:
    nonces = Nonces(keep_s=60, capacity=10)

    assert [nonces.use(key_id, "n") for key_id in ("a", "b", "a")] == [True, True, False]


def test_secrets_do_not_show(world: World) -> None:
    assert "canary" not in repr(world.admit(signed()))
