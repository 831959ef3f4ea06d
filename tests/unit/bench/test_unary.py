"""A round of unary calls counts only if values are right, and if the server counted what was sent."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.h2load import Load
from bench.processes import Instance
from bench.unary import Round, Server, expected, measure_round, ratios
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.testing import EvaluationServer, serve
from tests.support.flags import flag

CALLS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting(Instance):
    """A server whose count of OK answers is made up: it rises by `risen` in a round."""

    risen: int
    asked: list[int] = field(default_factory=list)

    def answered(self) -> int:
        self.asked.append(0)
        return 7 if len(self.asked) == 1 else 7 + self.risen

    def cpu_s(self) -> float:
        return 0.1 * len(self.asked)


class NoLoad(Load):
    """Makes no calls."""

    def rate(self, instance: Instance, calls: int) -> float:  # noqa: ARG002 - as its base
        return 1_000.0


@pytest.fixture
def served() -> Iterator[EvaluationServer]:
    with serve([FlagConfig(key="half", enabled=True, rollout_percentage=50)]) as server:
        yield server


def server_of(served: EvaluationServer, *, percentage: int = 50, risen: int = CALLS + 1) -> Server:
    port = int(served.address.rpartition(":")[2])
    snapshot = Snapshot.build(revision=1, flags=[flag("half", enabled=True, rollout_percentage=percentage)])
    load = NoLoad(folder=Path(), message=b"")
    return Server(instance=Counting(port=port, risen=risen), load=load, snapshot=snapshot)


def test_a_round_counts_if_the_server_counted_exactly_what_was_sent(served: EvaluationServer) -> None:
    assert measure_round(server_of(served), CALLS, 0.01) == Round(rate=1_000.0, cpu_us=0.0)


@pytest.mark.parametrize("risen", [CALLS, CALLS + 2])
def test_a_round_does_not_count_if_the_server_counted_another_number(
    served: EvaluationServer, risen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.unary.COUNTED_WITHIN_S", 0.1)

    assert measure_round(server_of(served, risen=risen), CALLS, 0.01) is None


def test_a_value_that_the_pure_evaluator_does_not_give_ends_the_run(served: EvaluationServer) -> None:
    right = server_of(served).snapshot
    assert right is not None
    is_on = expected(right, "checked-0")["half"]
    wrong = server_of(served, percentage=0 if is_on else 100)

    with pytest.raises(AssertionError, match="wrong values for"):
        measure_round(wrong, CALLS, 0.01)


def test_only_pairs_of_rounds_that_both_count_are_compared(served: EvaluationServer) -> None:
    own, empty = server_of(served), server_of(served)
    own.rounds.extend([Round(200, 50), None, Round(300, 40)])
    empty.rounds.extend([Round(100, 100), Round(1, 1), None])

    assert ratios(own, empty) == ([2.0], [0.5])
