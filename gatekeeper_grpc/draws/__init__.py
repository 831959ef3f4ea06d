"""Draws: whether a unit, such as a user, is within the rollouts of flags. In C if the kernel can be used, or in Python.

Which flags of a snapshot need a draw, and of what, is for `domain/` to decide. What was drawn is also put into answers
here, many bytes at a time; what the other bytes of an answer are is for `wire/` to say.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gatekeeper_grpc.draws.native import (
    LIBRARY,
    Kernel,
    KernelRefuses,
    KernelUnusable,
    NativeDraws,
    NativeRecords,
    NativeTemplate,
    load_kernel,
)
from gatekeeper_grpc.draws.python import PythonDraws, PythonRecords, PythonTemplate

__all__ = ["ALL", "Draws", "Records", "Template", "compile_draws", "implementation", "records", "template", "use"]

# The weight that draws every unit: thousandths of a per cent.
ALL = 100_000

_kernel: Kernel | None = None


class Draws(Protocol):
    """The draws of some flags, compiled. Any thread may use them."""

    at_once: int
    """So many draws take some half a millisecond, with what is made of them."""

    def of_one(self, unit: bytes) -> bytes:
        """Return a byte for each flag: 1 if the unit is drawn, else 0. It keeps the interpreter."""
        ...

    def of_many(self, units: Sequence[bytes]) -> bytes:
        """Return the rows of `of_one`, one after the other. The kernel releases the interpreter while it works."""
        ...


def compile_draws(salts: Sequence[bytes], weights: Sequence[int]) -> Draws:
    """Compile the draws of some flags. What cannot be compiled for the kernel is drawn in Python.

    Args:
        salts: For each flag, what follows the unit in the text that is hashed, as `bucketing.salt` returns it.
        weights: For each flag, how many are drawn, in thousandths of a per cent: a unit is if its position is below.
            0: none, 100,000: all.

    Raises:
        ValueError: There are not as many weights as salts, or a weight is out of its range.
    """
    if len(salts) != len(weights):
        raise ValueError("there must be a weight for each salt")
    if weights and not 0 <= min(weights) <= max(weights) <= ALL:
        raise ValueError(f"weights must be 0 to {ALL:,} thousandths of a per cent")
    if _kernel and salts:
        try:
            return NativeDraws(_kernel, salts, weights)
        except (KernelRefuses, MemoryError):
            pass
    return PythonDraws(salts, weights)


Template = PythonTemplate
Records = PythonRecords


def template(text: bytes, slots: Sequence[int]) -> Template:
    """Return a text to fill values in, of which each has a slot; at all of them the text has 0."""
    return NativeTemplate(_kernel, text, slots) if _kernel else PythonTemplate(text, slots)


def records(heads: Sequence[bytes], between: bytes) -> Records:
    """Return what joins records of units and their rows.

    Args:
        heads: What a record begins with, for each length that a unit may have, from 0 on.
        between: What follows the unit.
    """
    if _kernel:
        try:
            return NativeRecords(_kernel, heads, between)
        except KernelRefuses:
            pass
    return PythonRecords(heads, between)


def use(*, native: bool, library: Path | None = None) -> str | None:
    """Decide who makes the draws that are compiled from now on. Before the first call, Python does.

    Args:
        native: Whether to use the kernel if that is possible.
        library: The file of the kernel. None: where a build puts it.

    Returns:
        Why a library that is there cannot be used; None if all is as asked, or none was built.
    """
    global _kernel  # noqa: PLW0603 - a process has one kernel
    _kernel = None
    library = library or LIBRARY
    if not native or not library.exists():
        return None
    try:
        _kernel = load_kernel(library)
    except KernelUnusable as exc:
        return str(exc)
    return None


def implementation() -> str:
    """Return who makes the draws: "native" or "python"."""
    return "native" if _kernel else "python"
