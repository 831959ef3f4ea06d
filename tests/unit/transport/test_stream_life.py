"""The life of a stream, on a clock that the test moves."""

from math import inf

import pytest

from gatekeeper_grpc.domain.errors import Unauthenticated, Unavailable
from gatekeeper_grpc.transport.message_timeout import MessageTimeout
from gatekeeper_grpc.transport.stream_life import StreamLife
from gatekeeper_grpc.wire.status import RequestTimeout
from tests.support.clocks import Clock

pytestmark = pytest.mark.promise("C1")

TIMEOUT = MessageTimeout(limit_s=15.0, limit_when_saturated_s=5.0)


def never() -> bool:
    return False


def always() -> bool:
    return True


def test_messages_without_content_do_not_end_the_silence() -> None:
    life = StreamLife(TIMEOUT)
    for _ in range(4):
        life.check_wait(3.0, is_saturated=never)
        life.waited(3.0)

    with pytest.raises(RequestTimeout, match=r"within 15\.0 s"):
        life.check_wait(3.0, is_saturated=never)


def test_a_message_with_content_ends_the_silence() -> None:
    life = StreamLife(TIMEOUT)
    for _ in range(10):
        life.check_wait(14.0, is_saturated=never)
        life.waited(14.0)
        life.progressed()


def test_silence_is_shorter_while_others_wait() -> None:
    life = StreamLife(TIMEOUT)

    life.check_wait(4.9, is_saturated=always)
    with pytest.raises(RequestTimeout):
        life.check_wait(5.0, is_saturated=always)


def test_a_stream_ends_at_its_greatest_age_and_may_be_opened_at_once() -> None:
    clock = Clock()
    life = StreamLife(TIMEOUT, max_age_s=3_600.0, clock=clock)
    clock.advance(3_599.9)
    life.check()
    assert life.pause_s() == pytest.approx(0.1)

    clock.advance(0.1)
    with pytest.raises(Unavailable, match="open for 3600 s") as ended:
        life.check()
    assert ended.value.retry_after_s is None


def test_a_stream_ends_with_its_credential_while_it_waits() -> None:
    def revoked() -> None:
        raise Unauthenticated.client()

    with pytest.raises(Unauthenticated):
        StreamLife(TIMEOUT, check_credential=revoked).check_wait(0.0, is_saturated=never)


def test_a_wait_checks_the_credential_every_second() -> None:
    assert StreamLife(TIMEOUT, max_age_s=inf).pause_s() == 1.0
