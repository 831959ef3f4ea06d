"""Which of many similar calls get a line, and what is remembered of them."""

from gatekeeper_grpc.interceptors.line_samples import LINES_A_MINUTE, MINUTE_S, LineSamples, Sample

GET = Sample("/test.v1.TestService/Get", "NOT_FOUND", "192.0.2.7")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def admitted(samples: LineSamples, sample: Sample, calls: int) -> int:
    return sum(samples.admits(sample) for _ in range(calls))


def test_each_method_code_and_peer_has_a_sample_of_its_own() -> None:
    samples = LineSamples()
    others = [GET, GET._replace(method="/x/Y"), GET._replace(code="INTERNAL"), GET._replace(peer="192.0.2.8")]

    assert [admitted(samples, each, 100) for each in others] == [LINES_A_MINUTE] * 4


def test_a_new_minute_begins_with_new_lines() -> None:
    clock = Clock()
    samples = LineSamples(clock=clock)
    admitted(samples, GET, 25)

    assert samples.left_out() == {}
    clock.now_s = MINUTE_S
    assert samples.left_out() == {GET: 25 - LINES_A_MINUTE}
    assert samples.left_out() == {}
    assert admitted(samples, GET, 25) == LINES_A_MINUTE


def test_a_flood_from_many_addresses_is_remembered_in_bounded_memory() -> None:
    clock = Clock()
    samples = LineSamples(clock=clock)
    lines = sum(admitted(samples, GET._replace(peer=f"2001:db8::{number:x}"), 1) for number in range(5_000))

    assert lines == 1_024 + LINES_A_MINUTE
    clock.now_s = MINUTE_S
    assert samples.left_out() == {GET._replace(peer="others"): 5_000 - lines}
