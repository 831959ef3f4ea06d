"""Draws in C, and answers of them: finds the library of kernel.c, checks it, and calls it."""

import ctypes
import sys
import sysconfig
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatekeeper_grpc.draws.python import PythonDraws, PythonRecords, PythonTemplate

# Where hatch_build.py puts it. The name lets checkouts and volumes be shared by different machines.
LIBRARY = Path(__file__).with_name(f"_kernel.{sysconfig.get_platform()}.so")
VERSION = 2
MAX_UNIT_BYTES = 256
# What the kernel keeps for the head of a record, of which the first byte is its length.
_HEAD_BYTES = 16
# To call the kernel takes longer than to fill in so many.
_FEW_VALUES = 32
# Of a cache line. The kernel reads vectors of this size.
_ALIGNMENT = 64
# Units and salts that end at, before and after the ends of words and blocks of MD5.
_TRIED_BYTES = (1, 2, 3, 5, 36, 41, 42, 43, 44, 50, 55, 56, 64, 100, 127, 129, 135, 200, MAX_UNIT_BYTES)

_ADDRESS, _BYTES, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t


class KernelUnusable(Exception):
    """The library is missing, cannot be loaded, or computes something else. The message says why."""


class KernelRefuses(Exception):
    """Flags that the kernel cannot compile: a salt is too long, or there are too many."""


@dataclass(frozen=True)
class Kernel:
    """The functions of the library."""

    plan_bytes: Callable[..., int]
    make_plan: Callable[..., int]
    of_one: Callable[..., int]
    of_many: Callable[..., int]
    put: Callable[..., int]
    join: Callable[..., int]


def load_kernel(path: Path = LIBRARY) -> Kernel:
    """Load the library and compare its draws with the reference.

    Raises:
        KernelUnusable: It must not be used.
    """
    if sys.byteorder != "little":
        raise KernelUnusable("the processor is big-endian")
    try:
        kernel = _functions_of(path)
    except (OSError, AttributeError) as exc:
        raise KernelUnusable(str(exc)) from exc
    _compare_with_reference(kernel)
    return kernel


def _functions_of(path: Path) -> Kernel:
    # PyDLL keeps the interpreter, CDLL releases it while C runs.
    keeping, releasing = ctypes.PyDLL(str(path)), ctypes.CDLL(str(path))
    if (version := keeping.draws_version()) != VERSION:
        raise KernelUnusable(f"the library has version {version}, and {VERSION} is needed")
    return Kernel(
        plan_bytes=_typed(keeping.draws_plan_bytes, _SIZE, ctypes.c_uint32, _ADDRESS),
        make_plan=_typed(
            keeping.draws_make_plan,
            ctypes.c_int,
            *(_ADDRESS, _SIZE),
            *(ctypes.c_uint32, _BYTES, _SIZE),
            *[_ADDRESS] * 2,
        ),
        of_one=_typed(keeping.draws_of_one, ctypes.c_int, _ADDRESS, *(_BYTES, _SIZE), *(_ADDRESS, _SIZE)),
        of_many=_typed(
            releasing.draws_of_many, ctypes.c_int64, _ADDRESS, *(_SIZE, _BYTES, _SIZE, _ADDRESS), *(_ADDRESS, _SIZE)
        ),
        put=_typed(keeping.draws_put, ctypes.c_int, *(_ADDRESS, _SIZE), *(_BYTES, _SIZE), *(_ADDRESS, _SIZE)),
        join=_typed(
            releasing.draws_join,
            ctypes.c_int64,
            *(_SIZE, _BYTES, _SIZE, _ADDRESS),
            *[_BYTES, _SIZE] * 3,
            *(_ADDRESS, _SIZE),
        ),
    )


def _typed(function: Any, result: Any, *arguments: Any) -> Callable[..., int]:
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


def _compare_with_reference(kernel: Kernel) -> None:
    texts = [bytes(range(length % 7, 256))[:length].ljust(length, b"~") for length in _TRIED_BYTES]
    flags = texts, [50_500] * len(texts)
    expected = PythonDraws(*flags).of_many(texts)
    draws = NativeDraws(kernel, *flags)
    if draws.of_many(texts) != expected or b"".join(map(draws.of_one, texts)) != expected:
        raise KernelUnusable("the library makes other draws than the reference")
    _compare_answers(kernel, texts, expected)


def _compare_answers(kernel: Kernel, units: Sequence[bytes], rows: bytes) -> None:
    heads = [bytes(length % _HEAD_BYTES) for length in range(MAX_UNIT_BYTES + 1)]
    if NativeRecords(kernel, heads, b"~").joined(units, rows) != PythonRecords(heads, b"~").joined(units, rows):
        raise KernelUnusable("the library joins other records than the reference")
    template = bytes(2 * len(rows)), range(0, 2 * len(rows), 2)
    if NativeTemplate(kernel, *template).filled(rows) != PythonTemplate(*template).filled(rows):
        raise KernelUnusable("the library puts values elsewhere than the reference")


class NativeDraws:
    """The draws of some flags, as the kernel keeps them.

    They take 64 bytes for each group of 16 flags and 4 bytes of the longest salt in it, and 192 bytes more: 30 to 40
    bytes for each flag with a usual key.
    """

    at_once = 20_000

    def __init__(self, kernel: Kernel, salts: Sequence[bytes], weights: Sequence[int]) -> None:
        """Compile the flags, of which there is at least one.

        Raises:
            KernelRefuses: The kernel cannot compile them.
            MemoryError: There is no memory for them.
        """
        self._kernel, self._salts, self._weights = kernel, salts, weights
        lengths, thresholds = array("I", map(len, salts)), array("I", weights)
        size = kernel.plan_bytes(len(salts), lengths.buffer_info()[0])
        if not size:
            raise KernelRefuses
        self._memory = bytearray(size + _ALIGNMENT)
        self._plan = -(-_address_of(self._memory) // _ALIGNMENT) * _ALIGNMENT
        text = b"".join(salts)
        addresses = lengths.buffer_info()[0], thresholds.buffer_info()[0]
        if not kernel.make_plan(self._plan, size, len(salts), text, len(text), *addresses):
            raise KernelRefuses

    def of_one(self, unit: bytes) -> bytes:
        """Return a byte for each flag: 1 if the unit is drawn, else 0.

        It keeps the interpreter: the call is over long before another thread would give it back.
        """
        row = bytearray(len(self._salts))
        if self._kernel.of_one(self._plan, unit, len(unit), _address_of(row), len(row)):
            return bytes(row)
        return PythonDraws(self._salts, self._weights).of_one(unit)

    def of_many(self, units: Sequence[bytes]) -> bytes:
        """Return the rows of `of_one`, one after the other. Other threads run while C works."""
        if not units:
            return b""
        text, lengths = b"".join(units), array("I", map(len, units))
        rows = bytearray(len(units) * len(self._salts))
        left = self._kernel.of_many(
            *(self._plan, len(units), text, len(text), lengths.buffer_info()[0]), *(_address_of(rows), len(rows))
        )
        if left:
            self._draw_long_units(units, rows)
        return bytes(rows)

    def _draw_long_units(self, units: Sequence[bytes], rows: bytearray) -> None:
        """Fill the rows that the kernel leaves out."""
        reference, flags = PythonDraws(self._salts, self._weights), len(self._salts)
        for number, unit in enumerate(units):
            if len(unit) > MAX_UNIT_BYTES:
                rows[number * flags : (number + 1) * flags] = reference.of_one(unit)


class NativeTemplate(PythonTemplate):
    """A text with a slot for each value, filled by the kernel. It keeps the interpreter."""

    def __init__(self, kernel: Kernel, text: bytes, slots: Sequence[int]) -> None:
        super().__init__(text, slots)
        self._kernel, self._packed = kernel, array("I", slots)

    def filled(self, values: bytes) -> bytes:
        """Return the text with these values, 0 or 1, at their slots."""
        if len(values) < _FEW_VALUES:
            return super().filled(values)
        text = bytearray(self._text)
        slots = self._packed.buffer_info()
        if not self._kernel.put(_address_of(text), len(text), values, len(values), *slots):
            raise IndexError("a slot is not in the text, or there is none for a value")
        return bytes(text)


class NativeRecords(PythonRecords):
    """Records of units and their rows, joined by the kernel. It releases the interpreter."""

    def __init__(self, kernel: Kernel, heads: Sequence[bytes], between: bytes) -> None:
        """Take what is the same for all units.

        Raises:
            KernelRefuses: A head is too long.
        """
        super().__init__(heads, between)
        if max(map(len, heads)) >= _HEAD_BYTES:
            raise KernelRefuses
        self._kernel = kernel
        self._table = b"".join([(bytes((len(head),)) + head).ljust(_HEAD_BYTES, b"\0") for head in heads])

    def joined(self, units: Sequence[bytes], rows: bytes) -> bytes:
        """Return the records, one after the other."""
        if not units:
            return b""
        text, lengths = b"".join(units), array("I", map(len, units))
        joined = bytearray(len(text) + len(rows) + len(units) * (_HEAD_BYTES + len(self._between)))
        written = self._kernel.join(
            *(len(units), text, len(text), lengths.buffer_info()[0]),
            *(self._table, len(self._table), self._between, len(self._between), rows, len(rows)),
            *(_address_of(joined), len(joined)),
        )
        if written < 0:  # A unit is too long.
            return super().joined(units, rows)
        del joined[written:]
        return bytes(joined)


def _address_of(memory: bytearray) -> int:
    """Return where memory is. An array of ctypes would need a class for each size, which is in a cycle."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
