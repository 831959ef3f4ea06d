"""The erasure ledger: it reveals no id, its keys can be rotated, and a damaged line damages no other."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.privacy.erasure_ledger import UNNAMED, ErasureLedger

OLD, NEW = "old:" + "o" * 32, "new:" + "n" * 32
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


def ring(*keys: str) -> KeyRing:
    return KeyRing.parse(",".join(keys), unnamed_kid=UNNAMED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "erasures"


@pytest.fixture
def ledger(path: Path) -> ErasureLedger:
    return ErasureLedger(path, ring(OLD))


def test_it_is_empty_before_the_first_erasure(ledger: ErasureLedger) -> None:
    assert ledger.erasures() == {}


def test_it_tells_when_each_was_last_erased(ledger: ErasureLedger) -> None:
    for user_id, time in (("anna", LATER), ("bob", NOON), ("anna", NOON)):
        ledger.record(user_id, time)

    assert ledger.erasures() == {ledger.names("anna")[0]: LATER, ledger.names("bob")[0]: NOON}


def test_it_contains_no_id_and_another_key_recognises_none(ledger: ErasureLedger, path: Path) -> None:
    ledger.record("anna", NOON)

    assert "anna" not in path.read_text()
    assert not ErasureLedger(path, ring(NEW)).erasures().keys() & ErasureLedger(path, ring(NEW)).names("anna")


def test_only_the_owner_can_read_it(ledger: ErasureLedger, path: Path) -> None:
    ledger.record("anna", NOON)

    assert [file.stat().st_mode & 0o777 for file in (path, path.parent)] == [0o600, 0o700]


def test_a_line_is_json_and_names_its_key(ledger: ErasureLedger, path: Path) -> None:
    ledger.record("anna", NOON)

    assert json.loads(path.read_text()) == {
        "time": "2026-01-01T12:00:00+00:00",
        "mac": ledger.names("anna")[0],
        "kid": "old",
    }


def test_a_full_disk_within_a_line_fails_that_erasure_and_no_other(
    ledger: ErasureLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.record("anna", NOON)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:30]))
        with pytest.raises(Unavailable, match="the person was not erased"):
            ledger.record("bob", NOON)
    ledger.record("carl", NOON)

    assert ledger.erasures() == {ledger.names("anna")[0]: NOON, ledger.names("carl")[0]: NOON}


def test_a_file_that_cannot_be_written_fails_the_erasure(path: Path) -> None:
    path.parent.write_text("a file")

    with pytest.raises(Unavailable):
        ErasureLedger(path, ring(OLD)).record("anna", NOON)


# --- Rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps_the_old_key", [True, False], ids=["kept", "twin: dropped"])
def test_who_was_erased_under_an_old_key_is_recognised_by_it(
    ledger: ErasureLedger, path: Path, *, keeps_the_old_key: bool
) -> None:
    ledger.record("anna", NOON)
    rotated = ErasureLedger(path, ring(NEW, *([OLD] if keeps_the_old_key else [])))
    rotated.record("bob", LATER)

    recognised = [any(name in rotated.erasures() for name in rotated.names(user_id)) for user_id in ("anna", "bob")]

    assert recognised == [keeps_the_old_key, True]
    assert rotated.needed_keys() == {"old": 1, "new": 1}
    assert bool(rotated.missing()) is not keeps_the_old_key


def test_lines_of_before_need_the_key_that_has_no_name(path: Path) -> None:
    key, mac = "f" * 32, "6f" * 32
    path.parent.mkdir()
    path.write_text(f'\n{{"time": "2026-01-01T12:00:00+00:00", "mac": "{mac}"}}\n')

    assert ErasureLedger(path, ring(NEW, key)).needed_keys() == {UNNAMED: 1}
    assert ErasureLedger(path, ring(NEW, f"unnamed:{key}")).missing() == ""
    assert ErasureLedger(path, ring(NEW)).missing() == (
        "key 'unnamed' is missing, by whose names alone the erasure ledger knows 1 of the erased people"
    )


def test_a_name_is_replaced_once_the_id_is_known_again(ledger: ErasureLedger, path: Path) -> None:
    for user_id in ("anna", "bob"):
        ledger.record(user_id, NOON)
    rotated = ErasureLedger(path, ring(NEW, OLD))

    renamed = [rotated.rename(["anna", "carl"]), rotated.rename(["anna", "carl"])]

    alone = ErasureLedger(path, ring(NEW))
    assert renamed == [1, 0]
    assert rotated.needed_keys() == {"old": 1, "new": 1}
    assert [alone.erasures().get(alone.names(user_id)[0]) for user_id in ("anna", "bob")] == [NOON, None]


def test_an_erasure_under_the_old_key_after_the_renaming_needs_it_again(ledger: ErasureLedger, path: Path) -> None:
    ledger.record("anna", NOON)
    rotated = ErasureLedger(path, ring(NEW, OLD))
    rotated.rename(["anna"])
    ledger.record("anna", LATER)

    assert rotated.needed_keys() == {"old": 1, "new": 1}
    assert rotated.rename(["anna"]) == 1
    assert rotated.needed_keys() == {"new": 1}


def test_erasures_before_the_oldest_backup_need_no_key(ledger: ErasureLedger, path: Path) -> None:
    ledger.record("anna", NOON)
    ledger.record("bob", LATER)

    ledger.forget_before(LATER)

    assert ledger.needed_keys() == {"old": 1}
    ledger.forget_before(LATER + timedelta(hours=1))
    assert ledger.needed_keys() == {}
    assert ErasureLedger(path, ring(NEW)).missing() == ""


def test_a_running_instance_takes_no_ring_without_a_needed_key(ledger: ErasureLedger) -> None:
    ledger.record("anna", NOON)
    canary = "canary7f3a" * 4

    with pytest.raises(ValueError, match="key 'old' is missing, by whose names alone") as missing:
        ledger.use(ring(f"new:{canary}"))
    with pytest.raises(ValueError, match="key 'old' has another secret than before") as changed:
        ledger.use(ring(f"old:{canary}"))
    assert ledger.names("anna")[0] in ledger.erasures()
    assert "canary" not in f"{missing.value} {changed.value}"
    ledger.use(ring(NEW, OLD))
    assert len(ledger.names("anna")) == 2
