import math
import sys
import time
from collections.abc import Iterator

import pytest

from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.servicers import pacing
from gatekeeper_grpc.servicers.pacing import EXPECTED_S, PAUSE_S, Pacer

pytestmark = pytest.mark.promise("F6")


def slices(count: int) -> Iterator[int]:
    """Items that each take a slice of CPU time."""
    for number in range(count):
        ends = time.perf_counter() + pacing.SLICE_S
        while time.perf_counter() < ends:
            pass
        yield number


def test_the_interpreter_changes_hands_early_during_bulk() -> None:
    usual_s = sys.getswitchinterval()
    first = Pacer().pace(flags=1, is_active=lambda: True).through(range(2))
    second = Pacer().pace(flags=1, is_active=lambda: True).through(range(2))

    next(first), next(second)
    assert sys.getswitchinterval() <= 0.0005
    del first  # Its client has left.
    assert sys.getswitchinterval() <= 0.0005
    assert list(second) == [1]
    assert sys.getswitchinterval() == usual_s


@pytest.mark.parametrize(("idle_s", "pauses"), [(0.0, 5), (EXPECTED_S / 2, 5), (EXPECTED_S, 0), (math.inf, 0)])
def test_bulk_pauses_after_each_slice_while_calls_come(idle_s: float, pauses: int) -> None:
    slept: list[float] = []
    pacer = Pacer(lambda: idle_s, sleep=slept.append)

    assert list(pacer.pace(flags=1, is_active=lambda: True).through(slices(5))) == [0, 1, 2, 3, 4]
    assert slept == [PAUSE_S] * pauses


def test_within_a_slice_nothing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "SLICE_S", 60.0)
    pauses: list[float] = []

    assert (
        len(list(Pacer(lambda: 0.0, sleep=pauses.append).pace(flags=1, is_active=lambda: True).through(range(9)))) == 9
    )
    assert pauses == []


def test_work_ends_within_a_slice_of_the_client() -> None:
    made: list[int] = []
    paced = Pacer().pace(flags=1, is_active=lambda: len(made) < 3).through(map(made.append, slices(100)))

    assert len(list(paced)) == 3


def test_a_message_over_its_budget_is_refused_with_what_to_do() -> None:
    with pytest.raises(ResourceExhausted, match=r"more than 0.005 s of CPU time: send fewer contexts") as refused:
        list(Pacer(budget_s=0.005).pace(flags=20, is_active=lambda: True).through(slices(100)))

    assert (refused.value.reason, refused.value.metadata) == ("CPU_BUDGET_EXCEEDED", {"budget_s": "0.005"})


def test_the_budget_grows_with_the_flags() -> None:
    pacer = Pacer(budget_s=0.005)

    assert len(list(pacer.pace(flags=20_000, is_active=lambda: True).through(slices(20)))) == 20
    with pytest.raises(ResourceExhausted):
        list(pacer.pace(flags=1_000, is_active=lambda: True).through(slices(20)))


def test_time_in_which_others_have_the_cpu_does_not_count() -> None:
    def waits() -> Iterator[int]:
        for number in range(10):
            time.sleep(0.005)
            yield number

    assert len(list(Pacer(budget_s=0.02).pace(flags=1, is_active=lambda: True).through(waits()))) == 10


@pytest.mark.parametrize(("flags", "pauses"), [(pacing.PORTION, 1), (10_000, 1 + 10_000 // pacing.PORTION)])
def test_many_flags_of_one_user_are_sliced_as_well(flags: int, pauses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "SLICE_S", 0.0)
    slept: list[float] = []
    pace = Pacer(lambda: 0.0, sleep=slept.append).pace(flags=flags, is_active=lambda: True)

    evaluated = [*pace.through(list(pace.portions(range(flags))) for _ in range(3))]

    assert evaluated == [[*range(flags)]] * 3
    assert len(slept) == 3 * pauses


def test_a_client_that_leaves_ends_the_work_for_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "SLICE_S", 0.0)
    done: list[int] = []
    pace = Pacer().pace(flags=10_000, is_active=lambda: len(done) < 1_000)

    def one_user() -> Iterator[int]:
        done.extend(pace.portions(range(10_000)))
        yield len(done)

    assert [*pace.through(one_user())] == []
    assert len(done) == 1_000


def test_one_user_with_many_flags_is_refused_over_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "SLICE_S", 0.0)
    pace = Pacer(budget_s=0.0).pace(flags=10_000, is_active=lambda: True)

    with pytest.raises(ResourceExhausted):
        list(pace.through(list(pace.portions(range(10_000))) for _ in range(1)))
