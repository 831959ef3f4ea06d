"""The build of the kernel: with a C compiler, without, and again after a change."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from hatch_build import LIBRARY, SOURCES, build_kernel
from tests.support.kernels import ROOT

PACKED = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "gatekeeper_grpc", "migrations", "generated")
WITHOUT_COMPILER = {"CC": "no-such-compiler"}
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a wheel is made from, without a kernel."""
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run(checkout: Path, *arguments: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wheel_of(checkout: Path, **variables: str) -> Path:
    run(checkout, "-m", "hatchling", "build", "--target", "wheel", "--directory", "dist", **variables)
    (wheel,) = (checkout / "dist").iterdir()
    return wheel


def kernels_in(wheel: Path) -> list[str]:
    return [name for name in ZipFile(wheel).namelist() if name.endswith((".so", ".c", ".h"))]


def test_without_a_compiler_a_build_says_so_in_one_line_and_succeeds(checkout: Path) -> None:
    said = run(checkout, "hatch_build.py", **WITHOUT_COMPILER)

    assert said == "no C compiler (no-such-compiler): draws are made in Python\n"
    assert not (checkout / LIBRARY).exists()


def test_a_compiler_that_fails_is_said_in_one_line(checkout: Path) -> None:
    said = run(checkout, "hatch_build.py", CC="false")

    assert said == "the C compiler failed: draws are made in Python (exit 1)\n"


def test_without_a_compiler_the_wheel_is_for_any_platform(checkout: Path) -> None:
    wheel = wheel_of(checkout, **WITHOUT_COMPILER)

    assert wheel.name.endswith("-py3-none-any.whl")
    assert kernels_in(wheel) == []


@needs_compiler
def test_with_a_compiler_the_wheel_has_the_kernel_of_its_platform(checkout: Path) -> None:
    wheel = wheel_of(checkout)

    assert kernels_in(wheel) == [str(LIBRARY)]
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")


@needs_compiler
def test_a_changed_source_is_built_again_and_an_unchanged_one_is_not(checkout: Path) -> None:
    first = build_kernel(checkout).stat().st_ino
    again = build_kernel(checkout).stat()
    os.utime(checkout / SOURCES[1], (again.st_mtime + 1, again.st_mtime + 1))
    changed = build_kernel(checkout)

    assert again.st_ino == first
    assert changed.stat().st_mtime_ns > again.st_mtime_ns


@needs_compiler
def test_a_kernel_whose_source_has_changed_goes_if_nothing_can_build_it(checkout: Path) -> None:
    library = build_kernel(checkout)
    later = library.stat().st_mtime + 1
    os.utime(checkout / SOURCES[0], (later, later))

    run(checkout, "hatch_build.py", **WITHOUT_COMPILER)

    assert not library.exists()
