"""When a worker counts as hung: soon when it does nothing, later when it computes."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count

import pytest

from gatekeeper_grpc.fleet import probe as probe_module
from gatekeeper_grpc.fleet.probe import Probe, _cpu_ticks
from gatekeeper_grpc.operations.readiness import Readiness

READY = Readiness(ready=True, stale=False, revision=7, unconfirmed_s=0.5, database=True, reasons=("because",))


class Probed:
    """A worker that is probed without a network, and the probe that asks it when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = True
        self.health = 200
        self.ticks: Iterator[int] = iter(lambda: 0, 1)
        monkeypatch.setattr(probe_module, "fetch", self._fetch)
        monkeypatch.setattr(probe_module, "_cpu_ticks", lambda _pid: next(self.ticks))
        self.probe = Probe(1, 4_711, 9_464)

    def times(self, number: int) -> "Probed":
        for _ in range(number):
            self.probe._check()
        return self

    def _fetch(self, _port: int, path: str) -> tuple[int, str]:
        if not self.answers:
            raise TimeoutError
        return (self.health, "") if path == "/livez" else (200, json.dumps(asdict(READY)))


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Probed:
    return Probed(monkeypatch).times(1)


def test_a_worker_that_answers_is_known_by_what_it_says(probed: Probed) -> None:
    assert (probed.probe.readiness, probed.probe.is_hung()) == (READY, False)


@pytest.mark.parametrize(("silences", "hung"), [(1, False), (2, True)])
def test_an_idle_worker_is_hung_after_two_silences_in_a_row(probed: Probed, silences: int, *, hung: bool) -> None:
    probed.answers = False

    assert probed.times(silences).probe.is_hung() is hung


@pytest.mark.parametrize(("silences", "hung"), [(9, False), (10, True)])
def test_a_worker_that_computes_is_hung_after_ten(probed: Probed, silences: int, *, hung: bool) -> None:
    probed.answers = False
    probed.ticks = count()

    assert probed.times(silences).probe.is_hung() is hung


def test_a_worker_that_says_it_is_hung_counts_as_silent(probed: Probed) -> None:
    probed.health = 503

    assert probed.times(2).probe.is_hung()


def test_one_silence_does_not_make_a_worker_unready_two_do(probed: Probed) -> None:
    probed.answers = False
    known = [probed.times(1).probe.readiness for _ in range(2)]

    assert known == [READY, None]


def test_an_answer_forgives_the_silences_before_it(probed: Probed) -> None:
    probed.answers = False
    probed.times(1)
    probed.answers = True
    probed.times(1)
    probed.answers = False

    assert not probed.times(1).probe.is_hung()


def test_processor_time_is_the_kernels_count() -> None:
    used = _cpu_ticks(os.getpid())
    while _cpu_ticks(os.getpid()) == used:
        pass

    assert _cpu_ticks(os.getpid()) > used


def test_a_process_that_is_gone_has_used_nothing() -> None:
    assert _cpu_ticks(2**22 + 1) == 0
