"""Signatures: what a client signs."""

import hashlib
import hmac

import pytest

from gatekeeper_grpc.auth.signatures import sign

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
