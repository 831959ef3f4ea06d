"""Passwords: what may be set, what matches, and that every failure costs the work of one check."""

import re
from unittest.mock import Mock

import bcrypt
import pytest

from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords, generate_password
from gatekeeper_grpc.domain.errors import InvalidArgument

pytestmark = pytest.mark.promise("D4")

PASSWORD = "correct horse battery staple"
LONGEST = "é" * 36


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


def costs(spy: Mock) -> list[str]:
    """The cost of every check that was made, as its hash says."""
    return [bytes(call.args[1]).decode().split("$")[2] for call in spy.call_args_list]


def test_the_password_that_was_set_matches_and_no_other(passwords: Passwords, stored: str) -> None:
    assert stored.startswith("$2b$10$")
    assert passwords.verify(PASSWORD, stored)
    assert not passwords.verify(PASSWORD + "r", stored)


def test_two_hashes_of_a_password_differ(passwords: Passwords, stored: str) -> None:
    assert passwords.hash(PASSWORD) != stored


def test_password_of_72_bytes_is_whole(passwords: Passwords) -> None:
    stored = passwords.hash(LONGEST)

    assert passwords.verify(LONGEST, stored)
    assert not passwords.verify(LONGEST[:-1] + "è", stored)


@pytest.mark.parametrize("password", ["", "a" * 73, LONGEST + "a", "a\0b", "\0"])
def test_password_that_cannot_be_kept_is_refused_when_it_is_set(passwords: Passwords, password: str) -> None:
    with pytest.raises(InvalidArgument, match="new_password must be 1 to 72 bytes of UTF-8 without NUL") as refusal:
        passwords.hash(password, field="new_password")

    assert [violation.field for violation in refusal.value.violations] == ["new_password"]


@pytest.mark.parametrize(
    ("password", "password_hash"),
    [
        pytest.param("wrong", "stored", id="wrong password"),
        pytest.param(PASSWORD, None, id="nobody"),
        pytest.param(PASSWORD, "", id="empty hash"),
        pytest.param(PASSWORD, "plain text", id="malformed hash"),
        pytest.param(PASSWORD, "$2b$10$" + "!" * 53, id="hash of wrong characters"),
        pytest.param(PASSWORD, "$2b$10$" + "a" * 53, id="salt that is not canonical"),
        pytest.param(PASSWORD, "$2b$04$" + "." * 53, id="hash too cheap"),
        pytest.param(PASSWORD, "$2b$31$" + "." * 53, id="hash that takes days"),
        pytest.param(PASSWORD, "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA", id="hash of another kind"),
        pytest.param("a" * 73, "stored", id="long password"),
        pytest.param("a" * 73, None, id="long password of nobody"),
        pytest.param("a" * 2**20, "stored", id="password of a MiB"),
        pytest.param("", "stored", id="empty password"),
        pytest.param("a\0b", "stored", id="NUL"),
    ],
)
def test_every_failure_does_the_work_of_one_check_of_the_same_cost(
    passwords: Passwords, stored: str, checkpw: Mock, password: str, password_hash: str | None
) -> None:
    matches = passwords.verify(password, stored if password_hash == "stored" else password_hash)

    assert not matches
    assert costs(checkpw) == ["10"]


def test_nobody_has_a_password_not_even_an_empty_one(passwords: Passwords) -> None:
    assert not any(passwords.verify(password, None) for password in ("", "\0", PASSWORD))


def test_password_repeated_around_a_nul_matches_for_bcrypt_alone(passwords: Passwords) -> None:
    stored = passwords.hash("abc")

    assert bcrypt.checkpw(b"abc\0abc", stored.encode())
    assert not passwords.verify("abc\0abc", stored)


def test_long_password_and_malformed_hash_raise_from_bcrypt_alone(stored: str) -> None:
    with pytest.raises(ValueError, match="72 bytes"):
        bcrypt.checkpw(b"a" * 73, stored.encode())
    with pytest.raises(ValueError, match="Invalid salt"):
        bcrypt.checkpw(b"a", b"plain text")


def test_composed_and_decomposed_letters_are_different_passwords(passwords: Passwords) -> None:
    assert not passwords.verify("e\u0301", passwords.hash("\u00e9"))


@pytest.mark.parametrize("cost", [4, 9, 17])
def test_cost_out_of_range_is_refused_at_start(cost: int) -> None:
    with pytest.raises(ValueError, match=f"must be 10 to 16, not {cost}"):
        Passwords(cost=cost)


def test_default_cost_is_12() -> None:
    assert Passwords().hash(PASSWORD).startswith("$2b$12$")


def test_generated_passwords_are_legible_and_differ() -> None:
    first, second = generate_password(), generate_password()

    assert first != second
    assert re.fullmatch("([a-hjkmnp-z2-9]{5}-){3}[a-hjkmnp-z2-9]{5}", first)
