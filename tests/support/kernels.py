"""Kernels of the draws, built for tests with the compiler of the machine."""

import shutil
from pathlib import Path

import pytest

from gatekeeper_grpc.draws import native
from hatch_build import SOURCES, NotBuilt, compile_kernel

ROOT = Path(__file__).parents[2]
BASELINE = "-DDRAWS_BASELINE"  # What runs on a processor without AVX2.


def build(folder: Path, *options: str, changed: tuple[str, str] | None = None) -> Path:
    """Build a kernel in a folder; `changed`: a text of the sources to replace, and by what."""
    library = folder / "kernel.so"
    compile_or_skip(library, "-shared", "-fPIC", *options, str(copy_sources(folder, changed)))
    return library


def copy_sources(folder: Path, changed: tuple[str, str] | None = None) -> Path:
    """Copy the sources; returns kernel.c."""
    for source in SOURCES:
        text = (ROOT / source).read_text(encoding="utf-8")
        (folder / source.name).write_text(text.replace(*changed) if changed else text, encoding="utf-8")
    assert not changed or changed[1] in "".join((folder / source.name).read_text() for source in SOURCES)
    return folder / SOURCES[0].name


def compile_or_skip(output: Path, *arguments: str) -> None:
    """Compile; the test is skipped only if the machine has no compiler."""
    try:
        compile_kernel(output, arguments)
    except NotBuilt as exc:
        if shutil.which("cc"):
            raise
        pytest.skip(str(exc))


def load(folder: Path, *options: str) -> native.Kernel:
    """Build and load a kernel."""
    return native.load_kernel(build(folder, *options))
