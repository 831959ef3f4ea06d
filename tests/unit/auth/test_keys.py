"""What operators may write as a key ring, and that no error gives a secret away."""

import pytest

from gatekeeper_grpc.auth.keys import KeyRing, SigningKey

SECRET = "canary-" + "s" * 25
SHORT = "canary-" + "s" * 24


def test_ring_is_read_newest_first_and_a_secret_may_hold_colons() -> None:
    ring = KeyRing.parse(f" 2026-11:{SECRET}:x, 2026-10:{SECRET}\n")

    assert ring.keys == (SigningKey(kid="2026-11", secret=f"{SECRET}:x"), SigningKey(kid="2026-10", secret=SECRET))
    assert ring.newest.kid == "2026-11"


def test_one_entry_may_be_a_secret_alone_where_it_has_a_name_to_get() -> None:
    ring = KeyRing.parse(f"b:{SECRET}, {SECRET}x", unnamed_kid="unnamed")

    assert ring.keys == (SigningKey(kid="b", secret=SECRET), SigningKey(kid="unnamed", secret=f"{SECRET}x"))
    with pytest.raises(ValueError, match="two keys have the same kid"):
        KeyRing.parse(f"{SECRET},{SECRET}x", unnamed_kid="unnamed")


def test_no_name_may_mean_another_key_in_the_next_ring() -> None:
    ring = KeyRing.parse(f"a:{SECRET},b:{SECRET}")

    ring.check_successor(KeyRing.parse(f"c:{SECRET},a:{SECRET}"))
    with pytest.raises(
        ValueError, match="key 'b' has another secret than before: give a new key a new name"
    ) as refusal:
        ring.check_successor(KeyRing.parse(f"b:{SECRET}x"))
    assert "canary" not in str(refusal.value)


def test_secret_length_counts_bytes_of_utf8() -> None:
    assert KeyRing.parse("a:" + "é" * 16).newest.secret == "é" * 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "key 1 must be written kid:secret", id="empty"),
        pytest.param(SECRET, "key 1 must be written kid:secret", id="no kid"),
        pytest.param(f"a:{SECRET},", "key 2 must be written kid:secret", id="trailing comma"),
        pytest.param(f":{SECRET}", "key 1: the kid must be 1 to 64 characters of A-Z a-z 0-9 . _ -", id="empty kid"),
        pytest.param(f"{SECRET}!:a", "key 1: the kid must be 1 to 64 characters of A-Z a-z 0-9 . _ -", id="swapped"),
        pytest.param(f"{'k' * 65}:{SECRET}", "key 1: the kid must be 1 to 64", id="kid too long"),
        pytest.param(f"k\n:{SECRET}", "key 1: the kid must be 1 to 64", id="newline in kid"),
        pytest.param(f"a:{SECRET},b:{SHORT}", "key 2: the secret must be at least 32 bytes, not 31", id="short secret"),
        pytest.param("a:", "key 1: the secret must be at least 32 bytes, not 0", id="empty secret"),
        pytest.param(f"a:{SECRET},a:{SECRET}x", "two keys have the same kid", id="kid repeated"),
    ],
)
def test_bad_ring_is_refused_by_position_without_repeating_it(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        KeyRing.parse(text)

    assert "canary" not in str(refusal.value)


def test_keys_do_not_show_their_secrets() -> None:
    ring = KeyRing.parse(f"a:{SECRET}")

    assert "canary" not in f"{ring} {ring!r} {ring.newest}"


def test_ring_without_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one key is needed"):
        KeyRing(())
