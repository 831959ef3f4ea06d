"""All implementations draw the same units, by the rule of the contract; what cannot be used says why."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatekeeper_grpc import draws
from gatekeeper_grpc.draws import ALL, Draws, compile_draws, implementation, use
from gatekeeper_grpc.draws.hashing import position_of
from gatekeeper_grpc.draws.native import MAX_UNIT_BYTES, Kernel, NativeDraws, NativeRecords, NativeTemplate
from gatekeeper_grpc.draws.python import PythonDraws, PythonRecords, PythonTemplate
from tests.support.kernels import ROOT, build

Compile = Callable[[Sequence[bytes], Sequence[int]], Draws]

GOLDEN = json.loads((ROOT / "tests/golden/bucketing.json").read_text(encoding="utf-8"))
salts = st.binary(min_size=2, max_size=140)
flags = st.lists(st.tuples(salts, st.integers(0, ALL) | st.integers(0, 100).map(lambda part: part * 1_000)), min_size=1)
units = st.lists(st.binary(max_size=300), max_size=8)
# The fixture is the same for all examples.
examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def undecided() -> Iterator[None]:
    """Leaves the process as it was."""
    before = draws._kernel
    yield
    draws._kernel = before


def number_of(unit: bytes, salt: bytes) -> int:
    return int(hashlib.md5(unit + salt, usedforsecurity=False).hexdigest()[:8], 16)


@pytest.mark.promise("A6")
def test_every_golden_vector_is_drawn_just_above_its_bucket(compiled: Compile) -> None:
    for vector in GOLDEN["vectors"]:
        unit, salt, bucket = vector["user_id"].encode(), f":{vector['flag_key']}".encode(), vector["bucket"]
        weights = [0, bucket * 1_000, (bucket + 1) * 1_000, ALL]

        assert compiled([salt] * 4, weights).of_one(unit) == bytes([0, 0, 1, 1]), vector


@examples
@given(flags=flags, units=units)
def test_a_unit_is_drawn_if_its_position_is_below_the_weight(
    compiled: Compile, flags: list[tuple[bytes, int]], units: list[bytes]
) -> None:
    numbers = [[number_of(unit, salt) for salt, _ in flags] for unit in units]
    weights = [weight for _, weight in flags]
    expected = [
        [(number % 100) * 1_000 + (number // 100) % 1_000 < weight for number, weight in zip(row, weights, strict=True)]
        for row in numbers
    ]
    drawn = compiled([salt for salt, _ in flags], weights)

    assert drawn.of_many(units) == b"".join(map(bytes, expected))
    assert [drawn.of_one(unit) for unit in units] == [*map(bytes, expected)]


@examples
@given(unit=st.binary(max_size=300), some=st.lists(salts, min_size=1))
def test_a_weight_is_reached_at_a_thousandth_above_the_position(
    compiled: Compile, unit: bytes, some: list[bytes]
) -> None:
    positions = [position_of(unit, salt) for salt in some]

    assert compiled(some, positions).of_one(unit) == bytes(len(some))
    assert compiled(some, [position + 1 for position in positions]).of_one(unit) == b"\1" * len(some)


@examples
@given(unit=st.binary(min_size=1, max_size=256), salt=salts, per_cent=st.integers(0, 100))
def test_whole_per_cents_are_the_rule_of_the_hundred_buckets(
    compiled: Compile, unit: bytes, salt: bytes, per_cent: int
) -> None:
    assert compiled([salt], [per_cent * 1_000]).of_one(unit) == bytes([number_of(unit, salt) % 100 < per_cent])


@examples
@given(unit=st.binary(max_size=300), salt=salts, some=st.lists(st.integers(0, ALL), min_size=1))
def test_a_higher_weight_takes_the_flag_from_nobody(
    compiled: Compile, unit: bytes, salt: bytes, some: list[int]
) -> None:
    rising = [0, *sorted(some), ALL]

    drawn = compiled([salt] * len(rising), rising).of_one(unit)

    assert drawn == bytes(sorted(drawn))
    assert (drawn[0], drawn[-1]) == (0, 1)


def test_twenty_thousand_flags_are_drawn_at_once(compiled: Compile) -> None:
    keys = [f":flag-{number}".encode() for number in range(20_000)]

    drawn = compiled(keys, [33_333] * len(keys)).of_one(b"anna")

    assert drawn == PythonDraws(keys, [33_333] * len(keys)).of_one(b"anna")


@examples
@given(values=st.lists(st.integers(0, 1), max_size=100).map(bytes), gap=st.integers(0, 3))
def test_a_template_is_filled_in_only_at_the_slots_of_its_values(kernel: Kernel, values: bytes, gap: int) -> None:
    text, slots = (b"\0" + b"~" * gap) * len(values) + b"rest", range(0, len(values) * (gap + 1), gap + 1)

    expected = b"".join([bytes((value,)) + b"~" * gap for value in values]) + b"rest"

    assert PythonTemplate(text, slots).filled(values) == expected
    assert NativeTemplate(kernel, text, slots).filled(values) == expected


@examples
@given(units=units, flags=st.integers(0, 40), chance=st.randoms())
def test_a_record_is_a_head_for_the_length_the_unit_and_its_row(
    kernel: Kernel, units: list[bytes], flags: int, chance: Random
) -> None:
    heads = [bytes([length % 251] * (length % 16)) for length in range(301)]
    rows = [chance.randbytes(flags) for _ in units]

    expected = b"".join([heads[len(unit)] + unit + b"~" + row for unit, row in zip(units, rows, strict=True)])

    assert PythonRecords(heads, b"~").joined(units, b"".join(rows)) == expected
    assert NativeRecords(kernel, heads, b"~").joined(units, b"".join(rows)) == expected
    assert NativeRecords(kernel, heads[: MAX_UNIT_BYTES + 1], b"~").joined(
        [unit[:MAX_UNIT_BYTES] for unit in units], b"".join(rows)
    ) == PythonRecords(heads, b"~").joined([unit[:MAX_UNIT_BYTES] for unit in units], b"".join(rows))


def test_values_without_a_slot_are_refused_by_the_kernel(kernel: Kernel) -> None:
    with pytest.raises(IndexError):
        NativeTemplate(kernel, bytes(40), range(40)).filled(bytes(41))
    with pytest.raises(IndexError):
        NativeTemplate(kernel, bytes(39), range(40)).filled(bytes(40))


def test_heads_that_are_too_long_for_the_kernel_are_joined_in_python(tmp_path: Path) -> None:
    use(native=True, library=build(tmp_path))

    assert isinstance(draws.records([b"~" * 15], b""), NativeRecords)
    assert not isinstance(draws.records([b"~" * 16], b""), NativeRecords)


def test_without_units_or_without_flags_there_is_nothing() -> None:
    use(native=True)

    assert compile_draws([b":key"], [ALL]).of_many([]) == b""
    assert (compile_draws([], []).of_one(b"anna"), compile_draws([], []).of_many([b"a", b"b"])) == (b"", b"")


@pytest.mark.parametrize("weights", [[], [1, 2], [-1], [ALL + 1]])
def test_weights_out_of_their_range_are_refused(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="weight"):
        compile_draws([b":key"], weights)


def test_python_draws_until_the_kernel_is_asked_for() -> None:
    asked = "from gatekeeper_grpc.draws import implementation; print(implementation())"

    assert (
        subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "python\n"
    )


def test_the_kernel_draws_once_it_is_asked_for_and_not_if_it_is_off(tmp_path: Path) -> None:
    library = build(tmp_path)

    for native, name, kind in ((True, "native", NativeDraws), (False, "python", PythonDraws)):
        assert use(native=native, library=library) is None
        assert implementation() == name
        assert isinstance(compile_draws([b":key"], [ALL]), kind)


def test_without_a_library_python_draws_and_nothing_is_wrong(tmp_path: Path) -> None:
    assert use(native=True, library=tmp_path / "none.so") is None
    assert implementation() == "python"


def test_a_salt_that_the_kernel_does_not_take_is_drawn_in_python(tmp_path: Path) -> None:
    use(native=True, library=build(tmp_path))
    longest, longer = b":" * 512, b":" * 513

    assert isinstance(compile_draws([b":key", longest], [ALL, ALL]), NativeDraws)
    assert isinstance(compile_draws([b":key", longer], [ALL, ALL]), PythonDraws)


_COMPILE_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from gatekeeper_grpc import draws
assert draws.use(native=True, library=Path(sys.argv[1])) is None
salts, weights = [b":" * 512] * 16_000, [50_000] * 16_000  # 16 MB of a plan and of the text that it is made from.
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = int(sys.argv[2])
limit = pages * resource.getpagesize() + (room << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(type(draws.compile_draws(salts, weights)).__name__)
"""


@pytest.mark.parametrize(("room_mib", "kind"), [(6, "PythonDraws"), (64, "NativeDraws")])
def test_flags_for_which_the_memory_lacks_are_drawn_in_python(tmp_path: Path, room_mib: int, kind: str) -> None:
    command = [sys.executable, "-c", _COMPILE_WITH_LITTLE_MEMORY, str(build(tmp_path)), str(room_mib)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout == f"{kind}\n", done.stderr
