"""Background work runs again and again, whatever fails, until it is closed; held tasks hold nobody else."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc import scheduler as scheduler_module
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.scheduler import OnDemandThread, RepeatingThread, Scheduler
from tests.support.waiting import eventually

TIMEOUT_S = 60.0
OFTEN_S = 0.001


@contextmanager
def running(thread: RepeatingThread) -> Iterator[RepeatingThread]:
    thread.start()
    try:
        yield thread
    finally:
        thread.close()


def test_a_task_runs_at_once_and_then_again_and_again() -> None:
    runs = threading.Semaphore(0)

    with running(RepeatingThread("count", runs.release, interval_s=OFTEN_S)):
        assert [runs.acquire(timeout=TIMEOUT_S) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("failure", "logged"),
    [
        pytest.param(
            Unavailable("the database is not reachable"),
            [
                {
                    "event": "task_failed",
                    "task": "work",
                    "log_level": "warning",
                    "reason": "UNAVAILABLE",
                    "error": "the database is not reachable",
                },
                {"event": "task_recovered", "task": "work", "log_level": "info"},
            ],
            id="expected",
        ),
        pytest.param(
            ZeroDivisionError(),
            [{"event": "task_failed", "task": "work", "log_level": "error", "exc_info": True}],
            id="a bug",
        ),
    ],
)
def test_a_failing_run_is_logged_and_the_next_one_comes(failure: Exception, logged: list[dict[str, Any]]) -> None:
    outcomes = iter([failure])
    recovered = threading.Event()

    def task() -> None:
        for outcome in outcomes:
            raise outcome
        recovered.set()

    with capture_logs() as logs, running(RepeatingThread("work", task, interval_s=OFTEN_S)):
        assert recovered.wait(TIMEOUT_S)

    assert logs == logged


def failing(*failures: Exception, went_well_s: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a task fail so often, one failure after the other, and then succeed; returns what was logged."""
    monkeypatch.setattr(scheduler_module, "_WENT_WELL_S", went_well_s)
    outcomes = iter(failures)
    recovered = threading.Event()

    def task() -> None:
        for outcome in outcomes:
            raise outcome
        recovered.set()

    with capture_logs() as logs, running(RepeatingThread("work", task, interval_s=OFTEN_S)):
        assert recovered.wait(TIMEOUT_S)
    return [log.get("error", log["event"]) for log in logs]


def test_a_repeated_failure_is_logged_once_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    away, slow = Unavailable("away"), Unavailable("slow")

    logged = failing(away, away, away, slow, slow, away, went_well_s=TIMEOUT_S, monkeypatch=monkeypatch)

    assert logged == ["away", "slow", "away", "task_recovered"]


def test_a_failure_after_a_run_that_went_well_for_a_while_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Unavailable("away")

    assert failing(away, away, went_well_s=-1.0, monkeypatch=monkeypatch) == ["away", "away", "task_recovered"]


def test_closing_lets_the_current_run_end_and_makes_it_the_last() -> None:
    started, ended = threading.Event(), threading.Event()

    def run_until_told() -> None:
        started.set()
        while not thread.is_stopping:
            threading.Event().wait(OFTEN_S)
        ended.set()

    thread = RepeatingThread("long", run_until_told, interval_s=OFTEN_S)
    thread.start()
    assert started.wait(TIMEOUT_S)
    thread.close()

    assert (ended.is_set(), thread._thread.is_alive()) == (True, False)


def test_closing_ends_a_long_wait() -> None:
    ran = threading.Event()
    thread = RepeatingThread("rare", ran.set, interval_s=3_600.0)
    thread.start()
    assert ran.wait(TIMEOUT_S)

    thread.close()

    assert not thread._thread.is_alive()


def test_between_runs_it_waits_with_the_given_function() -> None:
    waits: list[float] = []
    waited_twice = threading.Event()

    def wait(timeout_s: float) -> None:
        waits.append(timeout_s)
        if len(waits) == 2:
            waited_twice.set()

    with running(RepeatingThread("told", lambda: None, interval_s=7.0, wait=wait)):
        assert waited_twice.wait(TIMEOUT_S)

    assert waits[:2] == [7.0, 7.0]


def test_a_task_that_was_never_started_can_be_closed() -> None:
    idle = RepeatingThread("idle", lambda: None, interval_s=1.0)

    idle.close()

    assert idle.is_stopping


def test_its_thread_has_a_name_and_keeps_no_process_alive() -> None:
    thread = RepeatingThread("refresh", lambda: None, interval_s=1.0)._thread

    assert (thread.name, thread.daemon) == ("gatekeeper-refresh", True)


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def scheduling(*, overdue_after_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> Iterator[Scheduler]:
    scheduler = Scheduler(overdue_after_s=overdue_after_s, clock=clock)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


class Held:
    """A task that blocks until it is released."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.released = threading.Event()
        self.at_once = self.most_at_once = 0

    def __call__(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.began.release()
        self.released.wait(TIMEOUT_S)
        self.at_once -= 1


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("gatekeeper-")}


@pytest.mark.parametrize("blocks", [False, True])
def test_a_scheduled_task_runs_at_once_and_then_again(blocks: bool) -> None:
    runs = threading.Semaphore(0)

    with scheduling() as scheduler:
        scheduler.add("count", runs.release, interval_s=OFTEN_S, blocks=blocks)
        assert [runs.acquire(timeout=TIMEOUT_S) for _ in range(3)] == [True] * 3


def test_a_task_that_never_blocks_has_no_thread() -> None:
    names: list[str] = []
    ran = threading.Event()

    def run() -> None:
        names.append(threading.current_thread().name)
        ran.set()

    with scheduling() as scheduler:
        scheduler.add("quick", run, interval_s=3_600.0, blocks=False)
        assert ran.wait(TIMEOUT_S)

    assert names == ["gatekeeper-scheduler"]


def test_a_task_that_may_block_has_a_thread_while_it_runs() -> None:
    held, names = [Held(), Held()], {"gatekeeper-held-0", "gatekeeper-held-1"}

    with scheduling() as scheduler:
        for number, task in enumerate(held):
            scheduler.add(f"held-{number}", task, interval_s=3_600.0, blocks=True)
            assert task.began.acquire(timeout=TIMEOUT_S)
        during = threads() & names
        for task in held:
            task.released.set()
        assert eventually(lambda: not threads() & names)

    assert during == names


def test_a_thread_that_cannot_start_is_logged_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, start = threading.Event(), threading.Thread.start
    refusals = iter([RuntimeError("can't start new thread")])

    def start_later(thread: threading.Thread) -> None:
        for refusal in refusals if thread.name == "gatekeeper-work" else ():
            raise refusal
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    with capture_logs() as logs, scheduling() as scheduler:
        scheduler.add("work", ran.set, interval_s=OFTEN_S, blocks=True)
        assert ran.wait(TIMEOUT_S)

    assert [log["event"] for log in logs] == ["task_failed"]


def test_a_held_task_holds_no_other_task() -> None:
    held, quick, blocking = Held(), threading.Semaphore(0), threading.Semaphore(0)

    with scheduling() as scheduler:
        scheduler.add("held", held, interval_s=OFTEN_S, blocks=True)
        assert held.began.acquire(timeout=TIMEOUT_S)
        scheduler.add("quick", quick.release, interval_s=OFTEN_S, blocks=False)
        scheduler.add("blocking", blocking.release, interval_s=OFTEN_S, blocks=True)
        assert [runs.acquire(timeout=TIMEOUT_S) for runs in (quick, blocking) for _ in range(3)] == [True] * 6
        held.released.set()

    assert held.most_at_once == 1


def test_twin_on_the_thread_of_the_scheduler_a_held_task_holds_the_others() -> None:
    held, other = Held(), threading.Semaphore(0)

    with scheduling() as scheduler:
        scheduler.add("held", held, interval_s=OFTEN_S, blocks=False)
        assert held.began.acquire(timeout=TIMEOUT_S)
        scheduler.add("other", other.release, interval_s=OFTEN_S, blocks=False)
        assert not other.acquire(timeout=0.1)
        held.released.set()
        assert other.acquire(timeout=TIMEOUT_S)


def test_a_task_that_is_not_due_is_not_dispatched() -> None:
    checks, runs = threading.Semaphore(0), threading.Semaphore(0)

    def is_due() -> bool:
        checks.release()
        return False

    with scheduling() as scheduler:
        scheduler.add("idle", runs.release, interval_s=OFTEN_S, blocks=True, is_due=is_due)
        assert [checks.acquire(timeout=TIMEOUT_S) for _ in range(3)] == [True] * 3

    assert not runs.acquire(blocking=False)


def test_a_failing_task_is_logged_once_and_stops_no_other() -> None:
    failures, others = iter([Unavailable("away")] * 3), threading.Semaphore(0)
    recovered = threading.Event()

    def fail() -> None:
        for failure in failures:
            raise failure
        recovered.set()

    def is_due() -> bool:
        raise ZeroDivisionError

    with capture_logs() as logs, scheduling() as scheduler:
        scheduler.add("failing", fail, interval_s=OFTEN_S, blocks=False)
        scheduler.add("broken", others.release, interval_s=3_600.0, blocks=True, is_due=is_due)
        scheduler.add("other", others.release, interval_s=OFTEN_S, blocks=True)
        assert recovered.wait(TIMEOUT_S)
        assert others.acquire(timeout=TIMEOUT_S)

    assert [log["event"] for log in logs if log["task"] == "failing"] == ["task_failed", "task_recovered"]
    assert [log["event"] for log in logs if log["task"] == "broken"] == ["task_failed"]


def test_a_run_that_takes_too_long_is_logged_once_and_so_is_its_end() -> None:
    """The clock is the test's: an hour passes between two wake-ups of the scheduler."""
    clock, held, ticks = Clock(), Held(), threading.Semaphore(0)

    with capture_logs() as logs, scheduling(clock=clock) as scheduler:
        scheduler.add("held", held, interval_s=7_200.0, blocks=True)
        assert held.began.acquire(timeout=TIMEOUT_S)
        clock.now_s += 3_600.0
        for number in range(3):  # Each new task wakes the scheduler.
            scheduler.add(f"tick-{number}", ticks.release, interval_s=1e6, blocks=False)
            assert ticks.acquire(timeout=TIMEOUT_S)
        held.released.set()
        assert eventually(lambda: len(logs) == 2)

    assert logs == [
        {"event": "task_overdue", "task": "held", "seconds": 30.0, "log_level": "warning"},
        {"event": "task_overdue_ended", "task": "held", "seconds": 3_600.0, "log_level": "info"},
    ]


def test_an_overdue_run_is_logged_while_nothing_else_wakes_the_scheduler() -> None:
    held = Held()

    with capture_logs() as logs, scheduling(overdue_after_s=0.05) as scheduler:
        scheduler.add("held", held, interval_s=3_600.0, blocks=True)
        assert eventually(lambda: len(logs) == 1)
        held.released.set()
        assert eventually(lambda: len(logs) == 2)

    assert [log["event"] for log in logs] == ["task_overdue", "task_overdue_ended"]


def test_closing_a_task_waits_for_its_run_and_lets_no_other_begin() -> None:
    held = Held()

    with scheduling() as scheduler:
        task = scheduler.add("held", held, interval_s=OFTEN_S, blocks=True)
        assert held.began.acquire(timeout=TIMEOUT_S)
        task.close(timeout_s=OFTEN_S)
        is_running_after_timeout = held.at_once
        threading.Timer(0.05, held.released.set).start()
        task.close()
        is_running_after_close = held.at_once

    assert (is_running_after_timeout, is_running_after_close) == (1, 0)
    assert not held.began.acquire(blocking=False)


def test_closing_the_scheduler_waits_for_a_held_task_within_its_timeout() -> None:
    held = Held()
    scheduler = Scheduler()
    scheduler.start()
    scheduler.add("held", held, interval_s=OFTEN_S, blocks=True)
    assert held.began.acquire(timeout=TIMEOUT_S)

    scheduler.close(timeout_s=0.05)
    is_running_after_timeout = held.at_once
    held.released.set()
    scheduler.close()

    assert (is_running_after_timeout, held.at_once) == (1, 0)
    assert eventually(lambda: not scheduler._thread.is_alive())


def test_requests_during_a_run_are_served_by_one_further_run() -> None:
    runs, may_end = threading.Semaphore(0), threading.Event()

    def work() -> None:
        runs.release()
        assert may_end.wait(TIMEOUT_S)

    task = OnDemandThread("work", work)
    task.request()
    assert runs.acquire(timeout=TIMEOUT_S)
    for _ in range(3):
        task.request()
    may_end.set()

    assert runs.acquire(timeout=TIMEOUT_S)
    task.close()
    assert not runs.acquire(blocking=False)


def test_a_task_on_demand_has_a_thread_from_first_request_until_close() -> None:
    done = threading.Event()
    task = OnDemandThread("brief", done.set)
    alive = ["gatekeeper-brief" in threads()]
    task.request()
    assert done.wait(TIMEOUT_S)
    alive.append("gatekeeper-brief" in threads())
    task.close()
    alive.append("gatekeeper-brief" in threads())

    assert alive == [False, True, False]


def test_first_requests_at_the_same_time_start_one_thread() -> None:
    ran, together = threading.Semaphore(0), threading.Barrier(8)
    task = OnDemandThread("work", ran.release)

    def request() -> None:
        together.wait(TIMEOUT_S)
        task.request()

    requesting = [threading.Thread(target=request) for _ in range(together.parties)]
    for thread in requesting:
        thread.start()
    for thread in requesting:
        thread.join(TIMEOUT_S)

    assert ran.acquire(timeout=TIMEOUT_S)
    task.close()


def test_a_failing_task_on_demand_is_logged_and_runs_again() -> None:
    outcomes = iter([ZeroDivisionError(), None])
    ran = threading.Semaphore(0)

    def work() -> None:
        ran.release()
        if failure := next(outcomes):
            raise failure

    task = OnDemandThread("work", work)
    with capture_logs() as logs:
        for _ in range(2):
            task.request()
            assert ran.acquire(timeout=TIMEOUT_S)
        task.close()

    assert [log["event"] for log in logs] == ["task_failed"]


def test_a_closed_task_on_demand_serves_no_request() -> None:
    ran = threading.Event()
    task = OnDemandThread("work", ran.set)
    task.close()
    task.request()

    assert not ran.is_set()
