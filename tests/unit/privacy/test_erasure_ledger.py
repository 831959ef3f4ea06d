"""The erasure ledger: without its key it reveals no id, and a damaged line damages no other."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.privacy.erasure_ledger import ErasureLedger

KEY = b"k" * 32
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "erasures"


@pytest.fixture
def ledger(path: Path) -> ErasureLedger:
    return ErasureLedger(path, KEY)


def test_it_is_empty_before_the_first_erasure(ledger: ErasureLedger) -> None:
    assert ledger.erasures() == {}


def test_it_tells_when_each_was_last_erased(ledger: ErasureLedger) -> None:
    for user_id, time in (("anna", LATER), ("bob", NOON), ("anna", NOON)):
        ledger.record(user_id, time)

    assert ledger.erasures() == {ledger.mac("anna"): LATER, ledger.mac("bob"): NOON}


def test_it_contains_no_id_and_another_key_recognises_none(ledger: ErasureLedger, path: Path) -> None:
    ledger.record("anna", NOON)

    assert "anna" not in path.read_text()
    assert ErasureLedger(path, b"x" * 32).mac("anna") not in ledger.erasures()


def test_only_the_owner_can_read_it(ledger: ErasureLedger, path: Path) -> None:
    ledger.record("anna", NOON)

    assert [file.stat().st_mode & 0o777 for file in (path, path.parent)] == [0o600, 0o700]


def test_a_line_is_json(ledger: ErasureLedger, path: Path) -> None:
    ledger.record("anna", NOON)

    assert json.loads(path.read_text()) == {"time": "2026-01-01T12:00:00+00:00", "mac": ledger.mac("anna")}


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

    assert ledger.erasures() == {ledger.mac("anna"): NOON, ledger.mac("carl"): NOON}


def test_a_file_that_cannot_be_written_fails_the_erasure(path: Path) -> None:
    path.parent.write_text("a file")

    with pytest.raises(Unavailable):
        ErasureLedger(path, KEY).record("anna", NOON)
