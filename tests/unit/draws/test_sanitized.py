"""Under the sanitizers of the compiler, the kernel stays within its memory, and draws what the reference draws."""

import random
import subprocess
from array import array
from pathlib import Path

import pytest

from gatekeeper_grpc.draws import ALL
from gatekeeper_grpc.draws.native import MAX_UNIT_BYTES
from gatekeeper_grpc.draws.python import PythonDraws, PythonRecords
from tests.support.kernels import BASELINE, compile_or_skip, copy_sources

HARNESS = Path(__file__).with_name("harness.c")
# Optimized, the compiler takes 40 times as long, and sees less.
SANITIZERS = ("-g", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ACCEPTED = 2  # How the harness ends if the kernel accepts a size that does not fit.
Case = tuple[list[bytes], list[int], list[bytes]]


def cases() -> list[Case]:
    """Salts, weights and units of all lengths that the kernel takes or leaves out, in random groups."""
    chance = random.Random(7)
    units = [chance.randbytes(size) for size in range(301)]
    chance.shuffle(units)
    return [case_of(chance, [units.pop() for _ in range(min(len(units), 7))]) for _ in range(43)]


def case_of(chance: random.Random, units: list[bytes]) -> Case:
    salts = [chance.randbytes(chance.randrange(chance.choice((20, 140, 513)))) for _ in range(chance.randrange(1, 50))]
    return salts, [chance.choice((0, 50_000, ALL, chance.randrange(ALL))) for _ in salts], units


def encoded(case: Case) -> bytes:
    salts, weights, units = case
    numbers = [len(salts), len(units), *map(len, salts), *weights, *map(len, units)]
    return array("I", numbers).tobytes() + b"".join(salts) + b"".join(units)


def expected(case: Case) -> bytes:
    salts, weights, units = case
    reference = PythonDraws(salts, weights)
    rows = [reference.of_one(unit) if len(unit) <= MAX_UNIT_BYTES else b"\2" * len(salts) for unit in units]
    drawn = b"".join(rows)
    joined = PythonRecords([bytes(length % 16) for length in range(MAX_UNIT_BYTES + 1)], b"~~~").joined
    records = b"" if max(map(len, units)) > MAX_UNIT_BYTES else joined(units, drawn)
    return drawn * 2 + b"".join([bytes((value, 0)) for value in drawn]) + records


def run(folder: Path, *options: str, changed: tuple[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    sources = copy_sources(folder, changed).parent
    program = folder / "harness"
    compile_or_skip(program, *SANITIZERS, *options, f"-I{sources}", str(HARNESS))
    return subprocess.run([program], input=b"".join(map(encoded, cases())), capture_output=True, check=False)


@pytest.mark.parametrize("options", [(), (BASELINE,)], ids=["best", "baseline"])
def test_no_unit_and_no_salt_leads_the_kernel_out_of_its_memory(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = run(tmp_path, *options)

    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"".join(map(expected, cases()))


@pytest.mark.parametrize(
    "changed",
    [
        ("unit_bytes[unit] > MAX_UNIT_BYTES", "0"),
        ("rest < LANES ? rest : LANES", "LANES"),
        ("memory_bytes != needed || ", ""),
        ("slots[number] >= text_bytes", "0"),
        ("(size_t)(end - to) < ", "0 > "),
        ("*head >= HEAD_BYTES || ", ""),
    ],
    ids=["length of a unit", "length of a row", "size of the plan", "slot", "size of records", "length of a head"],
)
def test_twin_what_a_missing_check_does_is_found(tmp_path: Path, changed: tuple[str, str]) -> None:
    done = run(tmp_path, BASELINE, changed=changed)

    assert b"ERROR: AddressSanitizer" in done.stderr or done.returncode == ACCEPTED, done.stderr.decode()
