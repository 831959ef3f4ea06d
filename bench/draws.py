"""What draws cost: `python -m bench.draws [seconds]`.

Flags with a rollout of 50 %, compiled for Python and for the kernel, in one process and in turn. Each figure is the
best of its turns, in CPU time: other processes of the machine disturb it less.
"""

import sys
import time
from collections.abc import Callable

from gatekeeper_grpc.draws import Draws, compile_draws, implementation, use

FLAGS = (1, 20, 200, 1_000)
ONE = b"user-123456"
UNITS = [f"user-{number}".encode() for number in range(1_000)]


def best_s(call: Callable[[], object], seconds: float) -> float:
    """Repeat a call for some seconds; returns the CPU seconds of the fastest."""
    best = float("inf")
    until = time.monotonic() + seconds
    while best == float("inf") or time.monotonic() < until:
        began = time.process_time_ns()
        call()
        best = min(best, (time.process_time_ns() - began) / 1e9)
    return best


def many_times(call: Callable[[], object], count: int) -> Callable[[], None]:
    """Return what calls it `count` times."""

    def run() -> None:
        for _ in range(count):
            call()

    return run


def compiling(flags: int) -> Callable[[], Draws]:
    """Return what compiles flags for the implementation in use."""
    salts = [f":checkout-flag-{number}".encode() for number in range(flags)]
    return lambda: compile_draws(salts, [50_000] * flags)


def compiled(flags: int, *, native: bool) -> Draws:
    """Compile flags for one implementation, and leave that in use."""
    use(native=native)
    return compiling(flags)()


def one_us(draws: Draws, flags: int, seconds: float) -> float:
    """Return the microseconds of the draws of one unit."""
    count = max(1, 2_000 // flags)
    return best_s(many_times(lambda: draws.of_one(ONE), count), seconds) / count * 1e6


def many_per_s(draws: Draws, flags: int, seconds: float) -> float:
    """Return millions of draws per second, for 1,000 units."""
    return len(UNITS) * flags / best_s(lambda: draws.of_many(UNITS), seconds) / 1e6


def main(seconds: float = 1.0) -> None:
    """Measure and print."""
    use(native=True)
    if implementation() != "native":
        sys.exit("the kernel was not built: make install")
    print("   flags   one unit: python     native   times   1,000 units: python       native   times   compiled in")
    for flags in FLAGS:
        python, native = (compiled(flags, native=native) for native in (False, True))
        slow, fast = (one_us(draws, flags, seconds) for draws in (python, native))
        few, lots = (many_per_s(draws, flags, seconds) for draws in (python, native))
        making_us = best_s(many_times(compiling(flags), 10), seconds) / 10 * 1e6
        print(
            f"  {flags:6,}        {slow:8.2f} us {fast:7.2f} us   {slow / fast:5.1f}"
            f"          {few:6.2f} M/s  {lots:6.1f} M/s   {lots / few:5.1f}   {making_us:8.0f} us"
        )


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
