"""The share of the serving thread's time that answers may take."""

from gatekeeper_grpc.transport.time_share import WINDOW_S, TimeShare
from tests.support.clocks import Clock


def work(share: TimeShare, clock: Clock, seconds: float) -> None:
    with share.measured():
        clock.advance(seconds)


def test_work_may_take_half_of_each_window() -> None:
    clock = Clock()
    share = TimeShare(clock)

    assert not share.is_spent()
    work(share, clock, WINDOW_S * 0.4)
    assert not share.is_spent()
    work(share, clock, WINDOW_S * 0.2)
    assert share.is_spent()


def test_the_next_window_begins_at_zero() -> None:
    clock = Clock()
    share = TimeShare(clock)
    share.is_spent()
    work(share, clock, WINDOW_S * 0.9)

    clock.advance(WINDOW_S * 0.2)

    assert not share.is_spent()
