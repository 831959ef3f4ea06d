"""Signatures: what a client signs, and that a nonce is used once."""

import hashlib
import hmac

import pytest

from gatekeeper_grpc.auth.signatures import Nonces, sign

pytestmark = pytest.mark.promise("D1")

KEY_ID = "ck_0123456789abcdef0123"
SECRET = b"canary-secret-of-43-characters-in-base64url"


def test_signature_is_the_hmac_of_six_lines() -> None:
    method = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
    canonical = f"{KEY_ID}\n1795417200\n{'n' * 16}\nUNSIGNED\nflags.example:50051\n{method}"
    expected = hmac.new(SECRET, canonical.encode(), hashlib.sha256).hexdigest()

    assert expected == sign(
        SECRET,
        key_id=KEY_ID,
        timestamp="1795417200",
        nonce="n" * 16,
        content_sha256="UNSIGNED",
        authority="flags.example:50051",
        method=method,
    )


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
