"""Passwords: what may be set, what matches, and that every failure costs the work of one check."""

import re
from functools import cache
from unittest.mock import Mock

import bcrypt
import pytest

from gatekeeper_grpc.auth.passwords import MAX_PASSWORD_CHARS, MIN_COST, PREHASHED, Passwords, generate_password
from gatekeeper_grpc.domain.errors import InvalidArgument

pytestmark = pytest.mark.promise("D4")

PASSWORD = "correct horse battery staple"
LONGEST = "é" * (MAX_PASSWORD_CHARS - 1) + "x"


@pytest.fixture(scope="module")
def passwords() -> Passwords:
    return Passwords(cost=MIN_COST)


@pytest.fixture(scope="module")
def stored(passwords: Passwords) -> str:
    return passwords.hash(PASSWORD)


@pytest.fixture
def checkpw(monkeypatch: pytest.MonkeyPatch) -> Mock:
    spy = Mock(wraps=bcrypt.checkpw)
    monkeypatch.setattr(bcrypt, "checkpw", spy)
    return spy


def costs(spy: Mock) -> list[int]:
    """The cost of every check that was made, as its hash says."""
    return [int(bytes(call.args[1]).decode().split("$")[2]) for call in spy.call_args_list]


@cache
def plain_hash(password: str, cost: int = MIN_COST) -> str:
    """Hash a password as earlier releases did, once for all tests."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


# --- what may be set --------------------------------------------------------------------------------------------------

WORDS = "must not be made of the username or the name of the product"
REFUSED = {
    "empty": ("", "must be 12 to 1,024 characters without NUL"),
    "a letter": ("a", "must be 12 to 1,024 characters without NUL"),
    "11 characters": ("elevenchars", "must be 12 to 1,024 characters without NUL"),
    "11 characters of many bytes": ("全" * 10 + "員", "must be 12 to 1,024 characters without NUL"),
    "1,025 characters": ("x" * 1_024 + "y", "must be 12 to 1,024 characters without NUL"),
    "NUL": ("correct\0horse", "must be 12 to 1,024 characters without NUL"),
    "spaces": (" " * 12, "must not be one character repeated"),
    "one letter": ("z" * 40, "must not be one character repeated"),
    "one letter in two cases": ("zZ" * 10, "must not be one character repeated"),
    "username": ("ann.example@corp", WORDS),
    "username in capitals, with digits": ("ANN.example@corp2026", WORDS),
    "username twice": ("ann.example@corp-ann.example@corp", WORDS),
    "product": ("gatekeeper-2026!", WORDS),
    "product twice": ("GatekeeperGatekeeper", WORDS),
}


@pytest.mark.parametrize(("password", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_password_that_may_not_be_set_is_refused_and_never_repeated(
    passwords: Passwords, password: str, rule: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"^new_password {rule}$") as refusal:
        passwords.hash(password, username="ann.example@corp", field="new_password")

    assert [violation.field for violation in refusal.value.violations] == ["new_password"]


@pytest.mark.parametrize(
    "password",
    [
        "twelve chars",
        "123456789012",
        "全" * 11 + "員",
        "gatekeeper and a horse",
        "my name is ann.example@corp",
        LONGEST,
    ],
)
def test_other_passwords_of_12_to_1024_characters_may_be_set(passwords: Passwords, password: str) -> None:
    passwords.check(password, username="ann.example@corp")


# --- what matches -----------------------------------------------------------------------------------------------------


def test_the_password_that_was_set_matches_and_no_other(passwords: Passwords, stored: str) -> None:
    assert stored.startswith(f"{PREHASHED}$2b$10$")
    assert passwords.verify(PASSWORD, stored)
    assert not passwords.verify(PASSWORD + "r", stored)


def test_two_hashes_of_a_password_differ(passwords: Passwords, stored: str) -> None:
    assert passwords.hash(PASSWORD) != stored


def test_the_longest_password_is_whole(passwords: Passwords) -> None:
    stored = passwords.hash(LONGEST)

    assert passwords.verify(LONGEST, stored)
    assert not passwords.verify(LONGEST[:-1] + "y", stored)


@pytest.mark.parametrize("password", ["a", "é" * 36, PASSWORD])
def test_hashes_of_earlier_releases_still_match(passwords: Passwords, password: str) -> None:
    assert passwords.verify(password, plain_hash(password))
    assert not passwords.verify(password + "!", plain_hash(password))


def test_a_hash_is_of_the_form_that_its_prefix_says(passwords: Passwords, stored: str) -> None:
    assert not passwords.verify(PASSWORD, stored.removeprefix(PREHASHED))
    assert not passwords.verify(PASSWORD, PREHASHED + plain_hash(PASSWORD))


def test_hashes_of_another_form_or_cost_are_outdated(passwords: Passwords, stored: str) -> None:
    other_cost = stored.replace("$2b$10$", "$2b$12$")

    assert not passwords.is_outdated(stored)
    assert [passwords.is_outdated(made) for made in (plain_hash(PASSWORD), other_cost, "plain text")] == [True] * 3


def test_a_verified_password_is_hashed_again_even_if_it_is_too_short(passwords: Passwords) -> None:
    assert passwords.verify("a", passwords.rehash("a"))


def test_nobody_has_a_password_not_even_an_empty_one(passwords: Passwords) -> None:
    assert not any(passwords.verify(password, None) for password in ("", "\0", PASSWORD))


def test_password_repeated_around_a_nul_matches_for_bcrypt_alone(passwords: Passwords) -> None:
    stored = plain_hash("abc")

    assert bcrypt.checkpw(b"abc\0abc", stored.encode())
    assert not passwords.verify("abc\0abc", stored)


def test_composed_and_decomposed_letters_are_different_passwords(passwords: Passwords) -> None:
    assert not passwords.verify("e\u0301" + PASSWORD, passwords.hash("\u00e9" + PASSWORD))


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "password_hash"),
    [
        pytest.param("wrong", "stored", id="wrong password"),
        pytest.param(PASSWORD, None, id="nobody"),
        pytest.param(PASSWORD, "", id="empty hash"),
        pytest.param(PASSWORD, "plain text", id="malformed hash"),
        pytest.param(PASSWORD, PREHASHED, id="prefix alone"),
        pytest.param(PASSWORD, "$2b$10$" + "!" * 53, id="hash of wrong characters"),
        pytest.param(PASSWORD, "$2b$10$" + "a" * 53, id="salt that is not canonical"),
        pytest.param(PASSWORD, "$2b$04$" + "." * 53, id="hash too cheap"),
        pytest.param(PASSWORD, "$2b$31$" + "." * 53, id="hash that takes days"),
        pytest.param(PASSWORD, "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA", id="hash of another kind"),
        pytest.param("a" * 1_025, "stored", id="long password"),
        pytest.param("a" * 73, "plain", id="long password of an older hash"),
        pytest.param("a" * 1_025, None, id="long password of nobody"),
        pytest.param("a" * 2**20, "stored", id="password of a MiB"),
        pytest.param("", "stored", id="empty password"),
        pytest.param("a\0b", "plain", id="NUL"),
    ],
)
def test_every_failure_does_the_work_of_one_check_of_the_same_cost(
    passwords: Passwords, stored: str, checkpw: Mock, password: str, password_hash: str | None
) -> None:
    kinds = {"stored": stored, "plain": plain_hash("abc")}

    matches = passwords.verify(password, kinds.get(password_hash or "", password_hash))

    assert not matches
    assert costs(checkpw) == [10]


CHANGED_COSTS = {"raised": (12, 10), "lowered": (10, 12)}


@pytest.mark.parametrize(("cost", "highest_cost"), CHANGED_COSTS.values(), ids=CHANGED_COSTS.keys())
def test_after_a_change_of_the_cost_every_name_costs_the_same_work(
    checkpw: Mock, stored: str, cost: int, highest_cost: int
) -> None:
    passwords, newer = Passwords(cost=cost), plain_hash(PASSWORD, cost=12)
    for password_hash in (stored, newer, None):
        passwords.verify("wrong", password_hash, highest_cost=highest_cost)
        passwords.verify(PASSWORD, password_hash, highest_cost=highest_cost)

    done = costs(checkpw)
    assert done == [10, 10, 11] * 2 + [12] * 4
    assert {sum(2**cost for cost in check) for check in ([10, 10, 11], [12])} == {2**12}


def test_long_password_and_malformed_hash_raise_from_bcrypt_alone() -> None:
    with pytest.raises(ValueError, match="72 bytes"):
        bcrypt.checkpw(b"a" * 73, plain_hash("abc").encode())
    with pytest.raises(ValueError, match="Invalid salt"):
        bcrypt.checkpw(b"a", b"plain text")


@pytest.mark.parametrize("cost", [4, 9, 17])
def test_cost_out_of_range_is_refused_at_start(cost: int) -> None:
    with pytest.raises(ValueError, match=f"must be 10 to 16, not {cost}"):
        Passwords(cost=cost)


def test_default_cost_is_12() -> None:
    assert "$2b$12$" in Passwords().hash(PASSWORD)


def test_generated_passwords_are_legible_and_differ(passwords: Passwords) -> None:
    first, second = generate_password(), generate_password()

    assert first != second
    assert re.fullmatch("([a-hjkmnp-z2-9]{5}-){3}[a-hjkmnp-z2-9]{5}", first)
    passwords.check(first, username="admin")
