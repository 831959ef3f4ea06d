"""Signed checkpoints: exactly the bytes of audit.proto, and nothing altered or signed by others passes."""

from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gatekeeper_grpc.auth.checkpoints import (
    CheckpointError,
    CheckpointSigner,
    key_from_text,
    new_signing_key,
    verify_checkpoint,
)
from gatekeeper_grpc.domain.audit import AuditAnchor, AuditCheckpoint, AuditHead

NOW = datetime(2026, 11, 23, 7, 46, 16, 5, tzinfo=UTC)
HEAD = AuditHead(anchor=AuditAnchor(seq=7, hash=bytes(range(32))), revision=9)
SIGNER = CheckpointSigner(b"canary-seed-of-exactly-32-bytes!", clock=lambda: NOW)


def test_a_checkpoint_signs_the_bytes_of_the_contract() -> None:
    checkpoint = SIGNER.sign(HEAD)

    statement = f"gatekeeper audit checkpoint v1\n7\n{bytes(range(32)).hex()}\n9\n2026-11-23T07:46:16.000005+00:00\n"
    assert (checkpoint.head, checkpoint.create_time) == (HEAD, NOW)
    Ed25519PublicKey.from_public_bytes(checkpoint.public_key).verify(checkpoint.signature, statement.encode())


def test_a_checkpoint_is_verified_with_the_public_key() -> None:
    verify_checkpoint(SIGNER.sign(HEAD), SIGNER.public_key)


@pytest.mark.parametrize(
    "altered",
    [
        replace(SIGNER.sign(HEAD), create_time=NOW + timedelta(microseconds=1)),
        replace(SIGNER.sign(HEAD), head=replace(HEAD, revision=10)),
        replace(SIGNER.sign(HEAD), head=replace(HEAD, anchor=AuditAnchor(seq=8, hash=HEAD.anchor.hash))),
        replace(SIGNER.sign(HEAD), head=replace(HEAD, anchor=AuditAnchor(seq=7, hash=bytes(32)))),
        replace(SIGNER.sign(HEAD), signature=bytes(64)),
        replace(SIGNER.sign(HEAD), signature=b""),
    ],
    ids=["time", "revision", "seq", "hash", "signature", "no signature"],
)
def test_an_altered_checkpoint_is_refused(altered: AuditCheckpoint) -> None:
    with pytest.raises(CheckpointError, match="altered"):
        verify_checkpoint(altered, SIGNER.public_key)


def test_a_checkpoint_with_a_foreign_key_inside_is_refused() -> None:
    forged = CheckpointSigner(bytes(32)).sign(HEAD)

    with pytest.raises(CheckpointError, match="another key"):
        verify_checkpoint(forged, SIGNER.public_key)
    with pytest.raises(CheckpointError, match="altered"):
        verify_checkpoint(replace(forged, public_key=SIGNER.public_key), SIGNER.public_key)


def test_a_new_key_is_one_that_can_be_read() -> None:
    first, second = new_signing_key(), new_signing_key()

    assert first != second
    assert CheckpointSigner.parse(f"{first}\n").public_key == CheckpointSigner(key_from_text(first)).public_key


@pytest.mark.parametrize("text", ["", "canary", b64encode(bytes(31)).decode(), b64encode(bytes(33)).decode(), "é" * 44])
def test_a_key_that_cannot_be_read_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="32 bytes in base64") as refusal:
        CheckpointSigner.parse(text)
    assert not text or text not in str(refusal.value)
