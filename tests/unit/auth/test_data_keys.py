"""Sealing: what is sealed opens under any key of the ring, and nothing else does."""

import pytest

from gatekeeper_grpc.auth.data_keys import DataKeys, SealError
from gatekeeper_grpc.auth.keys import KeyRing

pytestmark = pytest.mark.promise("D7")

OLD = "old:" + "o" * 32
NEW = "new:" + "n" * 32


def ring(*keys: str) -> DataKeys:
    return DataKeys(KeyRing.parse(",".join(keys)))


@pytest.mark.parametrize("plain", [b"", b"canary", b"\0" * 100_000])
def test_what_was_sealed_opens_again_and_does_not_show(plain: bytes) -> None:
    sealed = ring(OLD).seal(plain)

    assert ring(OLD).open(sealed) == plain
    assert not plain or plain not in sealed


def test_the_same_is_never_sealed_alike_twice() -> None:
    assert len({ring(OLD).seal(b"canary") for _ in range(100)}) == 100


def test_newest_key_seals_and_older_ones_open() -> None:
    before = ring(OLD).seal(b"canary")
    rotated = ring(NEW, OLD)

    assert (rotated.open(before), rotated.key_of(rotated.seal(b""))) == (b"canary", "new")


def test_rewrapped_bytes_need_the_newest_key_only() -> None:
    after = ring(NEW, OLD).rewrap(ring(OLD).seal(b"canary"))

    assert ring(NEW).open(after) == b"canary"
    with pytest.raises(SealError, match="'new'"):
        ring(OLD).open(after)


def test_only_data_sealed_with_the_newest_key_starts_with_its_header() -> None:
    newer = ring("k:" + "n" * 32, "k2:" + "o" * 32)

    assert newer.seal(b"x").startswith(newer.newest_header)
    assert not ring("k2:" + "o" * 32).seal(b"x").startswith(newer.newest_header)


def test_every_altered_byte_and_every_cut_is_noticed() -> None:
    keys = ring(OLD)
    sealed = keys.seal(b"canary")
    altered = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]

    for forged in [
        *altered,
        *(sealed[:end] for end in range(len(sealed))),
        sealed + b"\0",
        b"\x01\xff" + b"\xff" * 300,
    ]:
        with pytest.raises(SealError):
            keys.open(forged)


def test_another_key_under_the_same_name_opens_nothing() -> None:
    with pytest.raises(SealError) as refusal:
        ring("old:" + "x" * 32).open(ring(OLD).seal(b"canary"))
    assert "canary" not in str(refusal.value)
