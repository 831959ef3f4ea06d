"""Deadlines: never early, soon after, in constant time, on one thread that sleeps while nothing is due."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import grpc_testing  # type: ignore[import-untyped] # Published without types.
import pytest
import structlog

from gatekeeper_grpc.transport.deadlines import Deadlines

TIMEOUT_S = 60.0


@pytest.fixture
def deadlines() -> Iterator[Deadlines]:
    deadlines = Deadlines()
    yield deadlines
    deadlines.close()


@contextmanager
def fake_time() -> Iterator[tuple[Deadlines, Callable[[float], None]]]:
    """Deadlines whose time passes only when the test says so; the test ends what is due, and no thread does."""
    clock = grpc_testing.strict_fake_time(1_000.0)
    deadlines = Deadlines(clock=clock.time)
    deadlines.close()  # The thread never starts.

    def passes(seconds: float) -> None:
        clock.sleep_for(seconds)
        deadlines.end_overdue()

    yield deadlines, passes


def test_an_item_ends_at_its_deadline_and_not_before() -> None:
    ended: list[str] = []
    with fake_time() as (deadlines, passes):
        deadlines.group("calls", ended.append).add("a", within_s=5.0)

        passes(4.75)
        assert ended == []
        passes(0.25)
        assert ended == ["a"]


def test_items_with_different_limits_end_each_at_its_own() -> None:
    ended: list[str] = []
    with fake_time() as (deadlines, passes):
        group, other = deadlines.group("calls", ended.append), deadlines.group("responses", ended.append)
        group.add("long", within_s=60.0)
        group.add("short", within_s=2.0)
        other.add("other", within_s=5.0)

        for seconds, expected in ((2.0, ["short"]), (3.0, ["short", "other"]), (55.0, ["short", "other", "long"])):
            passes(seconds)
            assert ended == expected


def test_a_removed_item_does_not_end() -> None:
    ended: list[str] = []
    with fake_time() as (deadlines, passes):
        group = deadlines.group("calls", ended.append)
        group.add("a", within_s=5.0)
        group.remove("a")
        passes(60.0)

    assert (ended, len(group)) == ([], 0)


def test_an_item_that_is_added_again_keeps_its_first_deadline() -> None:
    ended: list[str] = []
    with fake_time() as (deadlines, passes):
        group = deadlines.group("responses", ended.append)
        group.add("a", within_s=5.0)
        passes(4.0)
        group.add("a", within_s=5.0)
        passes(1.0)

    assert ended == ["a"]


def test_an_item_that_fails_to_end_does_not_keep_the_next() -> None:
    ended: list[str] = []

    def end(item: str) -> None:
        if item == "broken":
            raise RuntimeError(item)
        ended.append(item)

    with fake_time() as (deadlines, passes), structlog.testing.capture_logs() as logs:
        group = deadlines.group("calls", end)
        for item in ("broken", "sound"):
            group.add(item, within_s=5.0)
        passes(5.0)

    assert ended == ["sound"]
    assert [(line["event"], line["group"]) for line in logs] == [
        ("deadline_failed", "calls"),
        ("deadline_exceeded", "calls"),
    ]


# --- The thread -------------------------------------------------------------------------------------------------------


def test_the_thread_ends_every_item_and_none_early(deadlines: Deadlines) -> None:
    ended: SimpleQueue[tuple[float, float]] = SimpleQueue()

    def end(due: float) -> None:
        ended.put((due, time.monotonic()))

    group = deadlines.group("calls", end)
    for within_s in (0.3, 0.1, 0.2):
        group.add(time.monotonic() + within_s, within_s=within_s)

    assert all(at >= due for due, at in (ended.get(timeout=TIMEOUT_S) for _ in range(3)))


def test_a_deadline_earlier_than_all_others_wakes_the_thread(deadlines: Deadlines) -> None:
    ended = threading.Event()
    group = deadlines.group("calls", sets(ended))
    group.add("an hour", within_s=3_600.0)
    wait_until_asleep(deadlines)
    group.add("soon", within_s=0.05)

    assert ended.wait(TIMEOUT_S)
    assert len(group) == 1


def test_all_groups_share_one_thread_which_starts_with_the_first_item(deadlines: Deadlines) -> None:
    before = threading.active_count()
    groups = [deadlines.group(name, str) for name in ("calls", "responses")]
    assert threading.active_count() == before

    for group in groups:
        group.add("a", within_s=60.0)

    assert threading.active_count() == before + 1


def test_without_items_the_thread_does_not_wake_up(deadlines: Deadlines) -> None:
    ended = threading.Event()
    deadlines.group("calls", sets(ended)).add("a", within_s=0.01)
    assert ended.wait(TIMEOUT_S)
    thread = wait_until_asleep(deadlines)

    assert wake_ups(thread, during_s=1.0) == 0


def test_twin_a_thread_that_polls_wakes_up_all_the_time() -> None:
    stopping = threading.Event()

    def poll() -> None:
        while not stopping.wait(0.2):
            pass

    thread = threading.Thread(target=poll)
    thread.start()

    assert wake_ups(thread, during_s=1.0) > 0
    stopping.set()
    thread.join()


def test_with_items_that_are_not_due_the_thread_sleeps(deadlines: Deadlines) -> None:
    group = deadlines.group("calls", str)
    group.add("first", within_s=60.0)
    thread = wait_until_asleep(deadlines)
    before = switches(thread)
    for number in range(1_000):
        group.add(f"call {number}", within_s=60.0)
        group.remove(f"call {number}")

    assert switches(thread) == before


def test_a_closed_one_starts_no_thread_and_ends_nothing(deadlines: Deadlines) -> None:
    ended = threading.Event()
    group = deadlines.group("calls", sets(ended))
    group.add("a", within_s=0.2)
    deadlines.close()
    group.add("b", within_s=0.0)

    assert not ended.wait(0.4)
    assert not thread_of(deadlines).is_alive()


def test_a_thread_that_cannot_start_is_tried_again(deadlines: Deadlines, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ended: SimpleQueue[str] = SimpleQueue()
    group = deadlines.group("calls", ended.put)
    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", fails)
        group.add("a", within_s=0.0)
    group.add("b", within_s=0.0)

    assert {ended.get(timeout=TIMEOUT_S) for _ in range(2)} == {"a", "b"}


def sets(event: threading.Event) -> Callable[[str], None]:
    return lambda _item: event.set()


def thread_of(deadlines: Deadlines) -> threading.Thread:
    assert deadlines._thread is not None
    return deadlines._thread


def switches(thread: threading.Thread) -> int:
    """How often the thread has gone to sleep, and so woken up."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("voluntary_ctxt_switches"))
    return int(line.split()[1])


def wake_ups(thread: threading.Thread, *, during_s: float) -> int:
    before = switches(thread)
    time.sleep(during_s)
    return switches(thread) - before


def wait_until_asleep(deadlines: Deadlines) -> threading.Thread:
    """Wait until the thread sleeps, which nothing signals."""
    thread = thread_of(deadlines)
    give_up_at = time.monotonic() + TIMEOUT_S
    while wake_ups(thread, during_s=0.1) and time.monotonic() < give_up_at:
        pass
    return thread
