"""Stored attributes in a snapshot: memory, build time, lookups, updates: `python -m bench.attributes [users]`.

Builds an index of one attribute of `users` users from entries in the form that the database sends. The baseline is a
dict from user ids to the same values.
"""

import gc
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from gatekeeper_grpc.domain.attribute_index import AttributeEntry, AttributeIndex, UserAttributes

SHAPES: dict[str, Callable[[int], str]] = {
    "plan, one of four words": lambda number: ('"free"', '"pro"', '"team"', '"enterprise"')[number % 4],
    "email, 26 characters": lambda number: f'"user-{number:09}@example.org"',
    "age, a number": lambda number: str(number % 100),
}
READS = 100_000


def entries(users: int, text: Callable[[int], str]) -> Iterator[AttributeEntry]:
    """Make the entries that the database sends for one attribute."""
    return (AttributeEntry(f"user-{number}", "name", text(number)) for number in range(users))


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def read_us(index: AttributeIndex, users: int) -> float:
    """Return the CPU time in us that a condition takes to read one stored attribute, digest included."""
    began = time.process_time()
    for number in range(READS):
        UserAttributes(f"user-{number * 7919 % users}", {}, index).get("name")
    return (time.process_time() - began) / READS * 1e6


def update_ms(index: AttributeIndex) -> float:
    """Return the CPU time in ms of a refresh that changes one user."""
    began = time.process_time()
    for number in range(100):
        index.with_entries([AttributeEntry(f"user-{number}", "name", '"changed"')])
    return (time.process_time() - began) / 100 * 1e3


def measure(shape: str, users: int) -> str:
    """Build one index and return its figures."""
    before, began = rss_bytes(), time.process_time()
    index = AttributeIndex.build(["name"], entries(users, SHAPES[shape]))
    seconds, held = time.process_time() - began, rss_bytes() - before
    size_bytes = sum(map(len, index.shards["name"].values()))
    text_bytes = sum(len(SHAPES[shape](number)) for number in range(users)) / users
    return (
        f"{shape}: {size_bytes / users:.1f} bytes a value, {text_bytes:.1f} of them its JSON; process grew by"
        f" {held / users:.1f}; built in {seconds:.1f} s; lookup {read_us(index, users):.1f} us;"
        f" update of one user {update_ms(index):.2f} ms"
    )


def measure_dict(users: int) -> str:
    """Build the baseline and return its size."""
    before = rss_bytes()
    plain = {f"user-{number}": f"user-{number:09}@example.org" for number in range(users)}
    return f"a dict of the emails: process grew by {(rss_bytes() - before) / len(plain):.1f} bytes a value"


def main(users: int = 1_000_000) -> None:
    """Measure and print, each in a process of its own: memory freed by one would hide what the next takes."""
    print(f"  {users} users with one attribute each; times are CPU")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as fresh:
        for shape in SHAPES:
            print(f"  {fresh.submit(measure, shape, users).result()}")
        print(f"  {fresh.submit(measure_dict, users).result()}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
