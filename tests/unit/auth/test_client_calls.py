"""Calls of known clients: nothing forged, odd, old or repeated passes, and the operator is told why."""

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.auth.api_tokens import new_api_token
from gatekeeper_grpc.auth.client_calls import ClientCall, ClientVerifier
from gatekeeper_grpc.auth.client_keys import NewClientKey, new_client_key
from gatekeeper_grpc.auth.nonces import Nonces
from gatekeeper_grpc.auth.refused_credentials import Cause, RefusedCredentials
from gatekeeper_grpc.auth.signatures import UNSIGNED, sign
from gatekeeper_grpc.domain.client_key import ClientKeyType, EvaluationAccess, RateTier, VerificationKey
from gatekeeper_grpc.domain.errors import ResourceExhausted, Unauthenticated

pytestmark = pytest.mark.promise("D1")

NOW = datetime(2026, 11, 23, 7, 0, tzinfo=UTC)
KEY_ID = "ck_0123456789abcdef0123"
SECRET = b"canary-secret-of-43-characters-in-base64url"
BODY = b"a request message"
METHOD = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
AUTHORITY = "flags.example:50051"
BEARER = new_client_key(ClientKeyType.BEARER)
OPEN = EvaluationAccess.OPEN
Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass
class Arrived:
    metadata: Metadata
    authority: str = AUTHORITY


class World:
    """The valid keys, and the time."""

    def __init__(self) -> None:
        self.now = NOW
        self.seconds = 0.0
        self.used: list[str] = []
        self.nonces = Nonces(keep_s=60, capacity=3, clock=lambda: self.seconds)
        self.refusals = RefusedCredentials()
        self.uses = self

    def find(self, key_id: str) -> VerificationKey | None:
        secret = {KEY_ID: SECRET, BEARER.key_id: BEARER.kept}.get(key_id)
        if secret is None:
            return None
        return VerificationKey(key_id=key_id, secret=secret, tier=RateTier.HIGH, expire_time=None)

    def note(self, key_id: str) -> None:
        self.used.append(key_id)

    def verifier(self, *, access: EvaluationAccess = OPEN, allow_unsigned_bodies: bool = True) -> ClientVerifier:
        keys: Any = self
        return ClientVerifier(
            keys,
            self.nonces,
            self.refusals,
            access=access,
            allow_unsigned_bodies=allow_unsigned_bodies,
            clock=lambda: self.now,
        )

    def admit(self, metadata: Metadata, *, access: EvaluationAccess = OPEN) -> ClientCall | None:
        verifier = self.verifier(access=access)
        call = verifier.verify(Arrived(metadata), method=METHOD, is_stream=False)
        if call is not None:
            verifier.use(call)
        return call

    def refuses(self, metadata: Metadata, *, access: EvaluationAccess = OPEN) -> bool:
        try:
            self.admit(metadata, access=access)
        except Unauthenticated as refusal:
            return str(refusal) == str(Unauthenticated.client())
        return False

    def causes(self) -> dict[Cause, int]:
        return {cause: count for cause, count in self.refusals.counts().items() if count}


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
    authority: str = AUTHORITY,
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
            sign(
                secret,
                key_id=key_id,
                timestamp=timestamp,
                nonce=nonce,
                content_sha256=content,
                authority=authority,
                method=method,
            ),
        ),
    )


def bearer(value: str = f"Bearer {BEARER.secret}") -> Metadata:
    return (("user-agent", "grpc-go"), ("authorization", value))


def test_a_valid_signature_names_its_key_and_counts_as_a_use(world: World) -> None:
    call = world.admit(signed())

    assert call is not None
    assert (call.key_id, call.key.tier, world.used) == (KEY_ID, RateTier.HIGH, [KEY_ID])
    world.verifier().check_body(call, BODY)


def test_other_body_than_the_signed_one_is_refused(world: World) -> None:
    call = world.admit(signed())

    assert call is not None
    with pytest.raises(Unauthenticated):
        world.verifier().check_body(call, BODY + b"!")
    assert world.causes() == {Cause.OTHER_BODY: 1}


def test_unsigned_body_may_be_any(world: World) -> None:
    call = world.admit(signed(content=UNSIGNED))

    assert call is not None
    world.verifier().check_body(call, b"anything")


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
    verifier = world.verifier(access=EvaluationAccess.SIGNED, allow_unsigned_bodies=allowed)

    with nullcontext() if passes else pytest.raises(Unauthenticated):
        assert verifier.verify(Arrived(signed(content=content)), method=METHOD, is_stream=streams)


@pytest.mark.parametrize("access", [EvaluationAccess.KEY, EvaluationAccess.SIGNED])
def test_call_without_a_credential_is_anonymous_unless_one_is_required(world: World, access: EvaluationAccess) -> None:
    assert world.admit((("user-agent", "grpc-go"),)) is None
    assert world.refuses((("user-agent", "grpc-go"),), access=access)
    assert world.causes() == {Cause.MISSING: 1}


@pytest.mark.parametrize(
    ("access", "signature", "key"),
    [(EvaluationAccess.OPEN, True, True), (EvaluationAccess.KEY, True, True), (EvaluationAccess.SIGNED, True, False)],
)
def test_a_required_credential_is_accepted(world: World, access: EvaluationAccess, signature: bool, key: bool) -> None:
    assert world.refuses(signed(), access=access) is not signature
    assert world.refuses(bearer(), access=access) is not key


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
    "other authority": signed(authority="staging.example:50051"),
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


def test_secrets_do_not_show(world: World) -> None:
    assert "canary" not in repr(world.admit(signed()))
    assert BEARER.secret not in repr((BEARER, world.admit(bearer())))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_bearer_key_names_its_key_any_number_of_times(world: World, scheme: str) -> None:
    calls = [world.admit(bearer(f"{scheme} {BEARER.secret}")) for _ in range(5)]

    assert [call and call.key_id for call in calls] == [BEARER.key_id] * 5 == world.used
    assert calls[0] is not None
    world.verifier().check_body(calls[0], b"anything")


def test_only_a_hash_of_a_bearer_secret_is_kept() -> None:
    assert BEARER.kept == hashlib.sha256(BEARER.secret.encode()).digest()


@pytest.mark.parametrize(
    "value",
    ["Bearer eyJhbGciOi.payload.gkc_", "Basic Z2tjXw==", "", b"Bearer gkc_x", f"Bearer {new_api_token().secret}"],
    ids=["of another service", "basic", "empty", "bytes", "an API token"],
)
@pytest.mark.parametrize("access", [EvaluationAccess.KEY, EvaluationAccess.SIGNED])
def test_another_token_is_no_client_key(world: World, value: Any, access: EvaluationAccess) -> None:
    assert world.admit((("authorization", value),)) is None
    assert world.refuses((("authorization", value),), access=access)


OTHER: NewClientKey = new_client_key(ClientKeyType.BEARER)
ODD_BEARERS: dict[str, tuple[Metadata, Cause]] = {
    "without its scheme": (bearer(BEARER.secret), Cause.MALFORMED),
    "two spaces": (bearer(f"Bearer  {BEARER.secret}"), Cause.MALFORMED),
    "cut": (bearer(f"Bearer {BEARER.secret[:-1]}"), Cause.MALFORMED),
    "long": (bearer(f"Bearer {BEARER.secret}x"), Cause.MALFORMED),
    "sent twice": ((*bearer(), *bearer()), Cause.MALFORMED),
    "and a signature": ((*bearer(), *signed()), Cause.MALFORMED),
    "and a part of one": ((*bearer(), signed()[1]), Cause.MALFORMED),
    "of an unknown key": (bearer(f"Bearer {OTHER.secret}"), Cause.UNKNOWN_KEY),
    "of another key's id": (bearer(f"Bearer {BEARER.secret[:25]}{OTHER.secret[25:]}"), Cause.WRONG_SECRET),
    "of a signing key": (bearer(f"Bearer gkc_{KEY_ID[3:]}_{SECRET.decode()}"), Cause.UNKNOWN_KEY),
}


@pytest.mark.parametrize(("metadata", "cause"), ODD_BEARERS.values(), ids=ODD_BEARERS.keys())
def test_an_odd_bearer_key_is_refused_and_the_cause_counted(world: World, metadata: Metadata, cause: Cause) -> None:
    assert world.refuses(metadata)
    assert (world.causes(), world.used) == ({cause: 1}, [])


def test_a_bearer_key_is_refused_where_a_signature_is_required(world: World) -> None:
    assert world.refuses(bearer(), access=EvaluationAccess.SIGNED)
    assert world.causes() == {Cause.BEARER_NOT_ALLOWED: 1}


def test_a_bearer_key_signs_nothing(world: World) -> None:
    key_id = f"ck_{BEARER.key_id[3:]}"

    assert world.refuses(signed(key_id=key_id, secret=BEARER.secret.encode()))
    assert world.refuses(signed(key_id=key_id, secret=BEARER.kept))
    assert world.refuses(signed(key_id=BEARER.key_id, secret=BEARER.kept))


CAUSES: dict[str, tuple[Metadata, Cause]] = {
    "clock": (signed(time=NOW - timedelta(seconds=31)), Cause.CLOCK),
    "secret": (signed(secret=b"guessed"), Cause.WRONG_SIGNATURE),
    "authority": (signed(authority="staging.example:50051"), Cause.WRONG_SIGNATURE),
    "key": (signed(key_id="ck_" + "f" * 20), Cause.UNKNOWN_KEY),
    "form": (without("nonce"), Cause.MALFORMED),
}


@pytest.mark.parametrize(("metadata", "cause"), CAUSES.values(), ids=CAUSES.keys())
def test_the_cause_is_counted_and_logged_and_the_text_is_one(world: World, metadata: Metadata, cause: Cause) -> None:
    with capture_logs() as logs:
        assert all(world.refuses(metadata) for _ in range(20))

    assert world.causes() == {cause: 20}
    assert [(entry["event"], entry["cause"], entry["method"]) for entry in logs][:1] == [
        ("client_credential_refused", cause, METHOD)
    ]
    assert "guessed" not in str(logs)


def test_a_cause_is_logged_once_a_second_with_the_number_of_refusals() -> None:
    now = [0.0]
    refusals = RefusedCredentials(clock=lambda: now[0])
    with capture_logs() as logs:
        for now[0] in (0.0, 0.1, 0.9, 1.0, 1.5):
            refusals.refuse(Cause.CLOCK)

    assert [entry["count"] for entry in logs] == [1, 3]


def test_the_authority_of_an_anonymous_call_is_not_read(world: World) -> None:
    class Anonymous:
        metadata: Metadata = (("user-agent", "grpc-go"),)

        @property
        def authority(self) -> str:
            raise AssertionError("read for nothing")

    assert world.verifier().verify(Anonymous(), method=METHOD, is_stream=False) is None
