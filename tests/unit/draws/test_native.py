"""The library: what is no kernel is not used, the interpreter is kept or released, and plans are small."""

import gc
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gatekeeper_grpc.draws import implementation, use
from gatekeeper_grpc.draws.native import LIBRARY, MAX_UNIT_BYTES, Kernel, KernelUnusable, NativeDraws, load_kernel
from gatekeeper_grpc.draws.python import PythonDraws
from hatch_build import LIBRARY as BUILT
from tests.support.kernels import ROOT, build, compile_or_skip

SALTS = [f":flag-{number}".encode() for number in range(200)]


def test_the_build_puts_the_library_where_it_is_searched() -> None:
    assert ROOT / BUILT == LIBRARY


def no_library(folder: Path) -> Path:
    path = folder / "kernel.so"
    path.write_text("no library")
    return path


def another_library(folder: Path) -> Path:
    (folder / "other.c").write_text("int other;\n")
    compile_or_skip(folder / "kernel.so", "-shared", "-fPIC", str(folder / "other.c"))
    return folder / "kernel.so"


def another_version(folder: Path) -> Path:
    return build(folder, changed=("#define VERSION 2", "#define VERSION 3"))


def other_draws(folder: Path) -> Path:
    return build(folder, changed=("0xeb86d391", "0xeb86d390"))


def other_draws_of_long_texts(folder: Path) -> Path:
    return build(folder, changed=("unfinished = (lanes)(blocks > number)", "unfinished = (lanes)(blocks > 0)"))


def other_records(folder: Path) -> Path:
    return build(folder, changed=("to = append(to, text, bytes)", "to = append(to, text, bytes) - 1"))


def other_slots(folder: Path) -> Path:
    return build(folder, changed=("text[slots[number]]", "text[number]"))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (no_library, "file too short|invalid ELF header"),
        (another_library, "undefined symbol: draws_version"),
        (another_version, "the library has version 3, and 2 is needed"),
        (other_draws, "the library makes other draws than the reference"),
        (other_draws_of_long_texts, "the library makes other draws than the reference"),
        (other_records, "the library joins other records than the reference"),
        (other_slots, "the library puts values elsewhere than the reference"),
    ],
)
def test_a_library_that_is_no_kernel_is_refused_with_the_reason(tmp_path: Path, broken: object, reason: str) -> None:
    assert callable(broken)

    with pytest.raises(KernelUnusable, match=reason):
        load_kernel(broken(tmp_path))


def test_a_refused_library_leaves_the_draws_to_python(tmp_path: Path) -> None:
    reason = use(native=True, library=no_library(tmp_path))

    assert reason
    assert implementation() == "python"


def test_units_that_are_too_long_for_the_kernel_are_drawn_in_python(kernel: Kernel) -> None:
    units = [b"a" * size for size in (MAX_UNIT_BYTES + 1, 1, MAX_UNIT_BYTES, 5_000)]
    flags = SALTS, [50_500] * len(SALTS)

    assert NativeDraws(kernel, *flags).of_many(units) == PythonDraws(*flags).of_many(units)


def test_a_thousand_flags_take_less_than_40_bytes_each(kernel: Kernel) -> None:
    salts = [f":team.service-{number}".encode() for number in range(1_000)]

    draws = NativeDraws(kernel, salts, [50_000] * len(salts))

    assert len(draws._memory) < 40 * len(salts)


@contextmanager
def counting() -> Iterator[list[int]]:
    """Yield how often another thread had its turn, while the interpreter changes hands only if it is released."""
    turns, ended = [0], threading.Event()

    def count() -> None:
        while not ended.is_set():
            turns[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    sys.setswitchinterval(300)
    thread.start()
    try:
        yield turns
    finally:
        ended.set()
        sys.setswitchinterval(interval)
        thread.join()


def test_other_threads_run_while_many_are_drawn(kernel: Kernel) -> None:
    draws, units = NativeDraws(kernel, SALTS, [50_000] * len(SALTS)), [b"unit"] * 1_000

    with counting() as turns:
        before = turns[0]
        while turns[0] == before:
            draws.of_many(units)


def test_the_draw_of_one_keeps_the_interpreter(kernel: Kernel) -> None:
    draws = NativeDraws(kernel, SALTS, [50_000] * len(SALTS))

    with counting() as turns:
        before = turns[0]
        for _ in range(1_000):
            draws.of_one(b"unit")
        assert turns[0] == before


def test_compiled_draws_leave_nothing_for_the_garbage_collector(kernel: Kernel) -> None:
    """Each change of a flag makes new ones."""
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for count in range(1, 51):
            NativeDraws(kernel, SALTS[:1] * count, [50_500] * count).of_many([b"anna"])
            NativeDraws(kernel, SALTS[:1] * count, [50_500] * count).of_one(b"anna")
        after = len(gc.get_objects())
    finally:
        gc.enable()

    assert after - before < 50, "less than one object for each"
