"""Migration files: how a folder is read, and which folders are refused before any database is touched."""

import hashlib
from pathlib import Path

import pytest

from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.store.migrations import files as migration_files
from gatekeeper_grpc.store.migrations.files import default_folder, load_migrations


def write(folder: Path, label: str, up: str = "SELECT 1;", down: str = "SELECT 2;") -> None:
    (folder / f"{label}.up.sql").write_text(up)
    (folder / f"{label}.down.sql").write_text(down)


def test_migrations_are_read_in_order_with_the_checksum_of_sha256sum(tmp_path: Path) -> None:
    write(tmp_path, "0002_two")
    write(tmp_path, "0001_one", up="CREATE TABLE one ();\n")
    (tmp_path / "README.md").touch()

    first, second = load_migrations(tmp_path)

    assert (first.version, first.name, first.label) == (1, "one", "0001_one")
    assert second.version == 2
    assert first.checksum == hashlib.sha256(b"CREATE TABLE one ();\n").hexdigest()


def test_line_ends_of_a_checkout_do_not_change_a_checksum(tmp_path: Path) -> None:
    for name, newline in (("unix", b"\n"), ("dos", b"\r\n")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "0001_one")
        (tmp_path / name / "0001_one.up.sql").write_bytes(b"SELECT 1;" + newline)

    [unix], [dos] = load_migrations(tmp_path / "unix"), load_migrations(tmp_path / "dos")

    assert unix.checksum == dos.checksum


def test_body_of_a_function_may_say_begin_and_end(tmp_path: Path) -> None:
    body = "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$\nBEGIN\n  PERFORM 1;\nEND;\n$$;\n-- COMMIT;"
    write(tmp_path, "0001_function", up=body)

    [migration] = load_migrations(tmp_path)

    assert migration.up_sql == body


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param([], "no migrations in", id="empty"),
        pytest.param(["0001_a", "0003_c"], "0002 is missing: found 0003_c", id="gap"),
        pytest.param(["0002_b"], "0001 is missing", id="late-start"),
        pytest.param(["0001_a", "0002_b", "0002_c"], "0002_b and 0002_c have the same number", id="doubled"),
        pytest.param(["0000_zero"], "0001 is missing", id="zero"),
        pytest.param(["1_short"], "1_short.* is not named like", id="short-number"),
        pytest.param(["0001-dash"], "0001-dash.* is not named like", id="dash"),
    ],
)
def test_folder_that_is_not_a_sequence_is_refused(tmp_path: Path, labels: list[str], message: str) -> None:
    for label in labels:
        write(tmp_path, label)

    with pytest.raises(FailedPrecondition, match=message):
        load_migrations(tmp_path)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_half_of_a_pair_is_refused(tmp_path: Path, direction: str) -> None:
    write(tmp_path, "0001_one")
    (tmp_path / f"0001_one.{direction}.sql").unlink()

    with pytest.raises(FailedPrecondition, match=f"0001_one.{direction}.sql is missing"):
        load_migrations(tmp_path)


@pytest.mark.parametrize(
    ("up", "message"),
    [
        pytest.param("BEGIN;\nCREATE TABLE a ();\nCOMMIT;", "begins or ends a transaction", id="begin"),
        pytest.param("CREATE TABLE a ();\ncommit ;", "begins or ends a transaction", id="commit"),
        pytest.param("START TRANSACTION;", "begins or ends a transaction", id="start"),
    ],
)
def test_file_that_would_break_the_one_transaction_is_refused(tmp_path: Path, up: str, message: str) -> None:
    write(tmp_path, "0001_one", up=up)

    with pytest.raises(FailedPrecondition, match=message):
        load_migrations(tmp_path)


def test_file_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, "0001_one")
    (tmp_path / "0001_one.up.sql").write_bytes(b"-- caf\xe9")

    with pytest.raises(FailedPrecondition, match=r"0001_one.up.sql is not UTF-8"):
        load_migrations(tmp_path)


def test_the_folder_of_a_checkout_wins_over_the_installed_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_files, "_CHECKOUT", tmp_path)
    (tmp_path / "migrations").mkdir()
    assert default_folder().name == "_migrations", "another package's migrations/ next to an installed package"

    (tmp_path / "pyproject.toml").touch()

    assert default_folder() == tmp_path / "migrations"
