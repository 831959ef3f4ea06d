"""A secret in a file is read whole; a file that cannot be used is refused by variable and path, without its content."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gatekeeper_grpc.config.secret_file import MAX_BYTES
from gatekeeper_grpc.config.settings import (
    SettingsError,
    load_settings,
    secret_fields,
    secret_files,
    settings_table,
    unknown_variables,
    variable_of,
)

CANARY = "canary7f3a-canary7f3a-canary7f3a"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GATEKEEPER_ERASURE_KEY_FILE", str(tmp_path / "secret"))
    return tmp_path / "secret"


def read() -> str:
    secret = load_settings().erasure_key
    return secret.get_secret_value() if secret else ""


@pytest.mark.parametrize("field", secret_fields())
def test_every_secret_can_come_from_a_file(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(f"{CANARY}\n")
    monkeypatch.setenv(f"{variable_of(field)}_FILE", str(tmp_path / "secret"))
    loaded = load_settings()

    assert getattr(loaded, field).get_secret_value() == CANARY
    assert CANARY not in f"{loaded!r} {loaded} {settings_table(loaded)} {os.environ}"
    assert list(secret_files()) == [field]
    assert list(unknown_variables()) == []


@pytest.mark.parametrize(
    ("content", "secret"),
    [(CANARY, CANARY), (f"{CANARY}\n", CANARY), (f"{CANARY}\r\n", CANARY), (f" {CANARY} \n\n", f" {CANARY} ")],
    ids=["bare", "line", "CRLF", "spaces"],
)
def test_only_line_ends_at_the_end_are_left_out(file: Path, content: str, secret: str) -> None:
    file.write_bytes(content.encode())

    assert read() == secret


def test_a_link_to_a_file_is_followed(file: Path) -> None:
    (file.parent / "version1").write_text(CANARY)
    file.symlink_to("version1")

    assert read() == CANARY


def be_absent(_: Path) -> None:
    """Leave it out."""


def be_a_loop(file: Path) -> None:
    file.symlink_to(file)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (be_absent, "cannot be read: No such file or directory"),
        (be_a_loop, "cannot be read: Too many levels of symbolic links"),
        (Path.mkdir, "must be a regular file, or a link to one"),
        (os.mkfifo, "must be a regular file, or a link to one"),
        (Path.touch, "must not be empty"),
        (lambda file: file.write_text(" \n\n"), "must not be empty"),
        (lambda file: file.write_text(CANARY * 3000), f"must have at most {MAX_BYTES} bytes"),
        (lambda file: file.write_bytes(CANARY.encode() + b"\xff"), "must be UTF-8"),
        (lambda file: file.write_bytes(CANARY.encode() + b"\0x"), "must have no NUL"),
    ],
    ids=["absent", "loop", "directory", "pipe", "empty", "blank", "too large", "no UTF-8", "NUL"],
)
def test_a_file_that_cannot_be_used_is_refused_by_name_without_content(
    file: Path, make: Callable[[Path], object], fault: str
) -> None:
    make(file)

    with pytest.raises(SettingsError) as refused:
        load_settings()

    assert str(refused.value) == f"GATEKEEPER_ERASURE_KEY_FILE: '{file}' {fault}"


def test_a_secret_that_is_given_twice_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(CANARY)
    monkeypatch.setenv("GATEKEEPER_ERASURE_KEY", CANARY)

    with pytest.raises(SettingsError) as refused:
        load_settings()

    assert str(refused.value) == "GATEKEEPER_ERASURE_KEY_FILE: must not be set together with GATEKEEPER_ERASURE_KEY"


def test_an_empty_variable_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL_FILE", "")

    assert load_settings().redis_url is None
