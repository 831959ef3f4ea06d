import sys
import time
from collections.abc import Iterator

import pytest

from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.servicers import pacing
from gatekeeper_grpc.servicers.pacing import PAUSE_S, Pacer

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
    first = Pacer().paced(range(2), flags=1, is_active=lambda: True)
    second = Pacer().paced(range(2), flags=1, is_active=lambda: True)

    next(first), next(second)
    assert sys.getswitchinterval() <= 0.0005
    del first  # Its client has left.
    assert sys.getswitchinterval() <= 0.0005
    assert list(second) == [1]
    assert sys.getswitchinterval() == usual_s


@pytest.mark.parametrize("waiting", [0, 1, 7])
def test_bulk_pauses_after_each_slice_for_the_calls_that_wait(waiting: int) -> None:
    pauses: list[float] = []
    pacer = Pacer(lambda: waiting, sleep=pauses.append)

    assert list(pacer.paced(slices(5), flags=1, is_active=lambda: True)) == [0, 1, 2, 3, 4]
    assert pauses == ([waiting * PAUSE_S] * 5 if waiting else [])


def test_within_a_slice_nothing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "SLICE_S", 60.0)
    pauses: list[float] = []

    assert len(list(Pacer(lambda: 1, sleep=pauses.append).paced(range(9), flags=1, is_active=lambda: True))) == 9
    assert pauses == []


def test_work_ends_within_a_slice_of_the_client() -> None:
    made: list[int] = []
    paced = Pacer().paced(map(made.append, slices(100)), flags=1, is_active=lambda: len(made) < 3)

    assert len(list(paced)) == 3


def test_a_message_over_its_budget_is_refused_with_what_to_do() -> None:
    with pytest.raises(ResourceExhausted, match=r"more than 0.005 s of CPU time: send fewer contexts") as refused:
        list(Pacer(budget_s=0.005).paced(slices(100), flags=20, is_active=lambda: True))

    assert (refused.value.reason, refused.value.metadata) == ("CPU_BUDGET_EXCEEDED", {"budget_s": "0.005"})


def test_the_budget_grows_with_the_flags() -> None:
    pacer = Pacer(budget_s=0.005)

    assert len(list(pacer.paced(slices(20), flags=20_000, is_active=lambda: True))) == 20
    with pytest.raises(ResourceExhausted):
        list(pacer.paced(slices(20), flags=1_000, is_active=lambda: True))


def test_time_in_which_others_have_the_cpu_does_not_count() -> None:
    def waits() -> Iterator[int]:
        for number in range(10):
            time.sleep(0.005)
            yield number

    assert len(list(Pacer(budget_s=0.02).paced(waits(), flags=1, is_active=lambda: True))) == 10
