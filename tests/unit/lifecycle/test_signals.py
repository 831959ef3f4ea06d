"""Waiting for a signal: asleep, and awake at once, whichever thread the kernel delivers the signal to."""

import signal
import threading
from collections.abc import Iterator

import pytest

from gatekeeper_grpc.lifecycle import signals as signals_module
from gatekeeper_grpc.lifecycle.signals import next_signal, signal_queue


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_another_thread_receives_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of an hour, nothing but the signal can end the wait."""
    monkeypatch.setattr(signals_module, "_WAIT_STEP_S", 3_600.0)
    signals = signal_queue(signal.SIGUSR1)
    threading.Timer(0.05, signal.raise_signal, [signal.SIGUSR1]).start()

    assert next_signal(signals) == signal.SIGUSR1


def test_signals_that_arrived_before_the_wait_are_returned_in_order() -> None:
    signals = signal_queue(signal.SIGUSR1)
    signal_queue(signal.SIGUSR2, into=signals)
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGUSR1)

    assert [next_signal(signals), next_signal(signals)] == [signal.SIGUSR2, signal.SIGUSR1]
