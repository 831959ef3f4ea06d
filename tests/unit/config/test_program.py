"""How a reader's shell calls this program: by its name if PATH leads to it, else by a path that is quoted."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from gatekeeper_grpc.config.program import program, with_program


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation in a folder with spaces."""
    folder = tmp_path / "Łódź proj ü" / "bin"
    folder.mkdir(parents=True)
    script = folder / "gatekeeper"
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", os.defpath)
    return script


def test_a_program_that_is_not_on_the_path_is_called_by_its_path(script: Path) -> None:
    assert shlex.split(program()) == [str(script)]
    assert with_program("run `gatekeeper migrate up`") == f"run `'{script}' migrate up`"


def test_a_program_that_is_on_the_path_is_called_by_its_name(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gatekeeper").symlink_to(script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")

    assert program() == "gatekeeper"


def test_another_program_of_that_name_is_not_called(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gatekeeper").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")

    assert shlex.split(program()) == [str(script)]


def test_without_a_script_the_module_is_called(script: Path) -> None:
    script.unlink()

    assert shlex.split(program()) == [sys.executable, "-m", "gatekeeper_grpc"]
