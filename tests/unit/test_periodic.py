"""A periodic task: at once and again, whatever goes wrong in it, until it is closed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc import periodic as periodic_module
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.periodic import Periodic

TIMEOUT_S = 10.0
OFTEN_S = 0.001


@contextmanager
def running(periodic: Periodic) -> Iterator[Periodic]:
    periodic.start()
    try:
        yield periodic
    finally:
        periodic.close()


def test_a_task_runs_at_once_and_then_again_and_again() -> None:
    runs = threading.Semaphore(0)

    with running(Periodic("count", runs.release, interval_s=OFTEN_S)):
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

    with capture_logs() as logs, running(Periodic("work", task, interval_s=OFTEN_S)):
        assert recovered.wait(TIMEOUT_S)

    assert logs == logged


def failing(*failures: Exception, went_well_s: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a task fail so often, one failure after the other, and then succeed; returns what was logged."""
    monkeypatch.setattr(periodic_module, "_WENT_WELL_S", went_well_s)
    outcomes = iter(failures)
    recovered = threading.Event()

    def task() -> None:
        for outcome in outcomes:
            raise outcome
        recovered.set()

    with capture_logs() as logs, running(Periodic("work", task, interval_s=OFTEN_S)):
        assert recovered.wait(TIMEOUT_S)
    return [log.get("error", log["event"]) for log in logs]


def test_failing_on_in_the_same_way_is_said_once_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    away, slow = Unavailable("away"), Unavailable("slow")

    said = failing(away, away, away, slow, slow, away, went_well_s=TIMEOUT_S, monkeypatch=monkeypatch)

    assert said == ["away", "slow", "away", "task_recovered"]


def test_a_failure_after_a_run_that_went_well_for_a_while_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Unavailable("away")

    assert failing(away, away, went_well_s=-1.0, monkeypatch=monkeypatch) == ["away", "away", "task_recovered"]


def test_closing_lets_the_current_run_end_and_makes_it_the_last() -> None:
    started, ended = threading.Event(), threading.Event()

    def run_until_told() -> None:
        started.set()
        while not periodic.is_stopping:
            threading.Event().wait(OFTEN_S)
        ended.set()

    periodic = Periodic("long", run_until_told, interval_s=OFTEN_S)
    periodic.start()
    assert started.wait(TIMEOUT_S)
    periodic.close()

    assert (ended.is_set(), periodic._thread.is_alive()) == (True, False)


def test_closing_ends_a_long_wait() -> None:
    ran = threading.Event()
    periodic = Periodic("rare", ran.set, interval_s=3_600.0)
    periodic.start()
    assert ran.wait(TIMEOUT_S)

    periodic.close()

    assert not periodic._thread.is_alive()


def test_between_runs_it_waits_the_way_it_was_told_to() -> None:
    waits: list[float] = []
    waited_twice = threading.Event()

    def wait(timeout_s: float) -> None:
        waits.append(timeout_s)
        if len(waits) == 2:
            waited_twice.set()

    with running(Periodic("told", lambda: None, interval_s=7.0, wait=wait)):
        assert waited_twice.wait(TIMEOUT_S)

    assert waits[:2] == [7.0, 7.0]


def test_a_task_that_was_never_started_can_be_closed() -> None:
    idle = Periodic("idle", lambda: None, interval_s=1.0)

    idle.close()

    assert idle.is_stopping


def test_its_thread_has_a_name_and_keeps_no_process_alive() -> None:
    thread = Periodic("refresh", lambda: None, interval_s=1.0)._thread

    assert (thread.name, thread.daemon) == ("gatekeeper-refresh", True)
