"""How `bench.peers` reads h2load, whose output below is real, but for its progress (`bench.peers.generator`)."""

import pytest

from bench.peers.checks import WrongAnswer
from bench.peers.generator import Load, counted, framed, options

ANSWER = bytes(252)  # As long as Gatekeeper's to the first of these.
ANSWERED = """\
requests: 203 total, 207 started, 203 done, 203 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 203 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 68.05KB (69688) total, 759B (759) headers (space savings 95.38%), 50.95KB (52171) data
"""
# Of calls whose message Gatekeeper cannot parse.
REFUSED_OVER_GRPC = """\
requests: 223 total, 227 started, 223 done, 223 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 223 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 62.23KB (63727) total, 60.19KB (61636) headers (space savings 19.89%), 0B (0) data
"""
NOT_FOUND = """\
requests: 112 total, 116 started, 112 done, 0 succeeded, 112 failed, 0 errored, 0 timeout
status codes: 0 2xx, 0 3xx, 112 4xx, 0 5xx
traffic: 23.84KB (24416) total, 10.11KB (10350) headers (space savings 0.00%), 9.66KB (9890) data
"""


def test_answers_and_their_bytes_are_counted() -> None:
    load = counted(ANSWERED)

    assert load == Load(answers=203, data_bytes=52171)
    load.check_data(ANSWER)


def test_calls_of_grpc_that_were_refused_are_noticed() -> None:
    load = counted(REFUSED_OVER_GRPC)

    with pytest.raises(WrongAnswer, match="223 answers of 252 bytes have 0 bytes"):
        load.check_data(ANSWER)


def test_some_refused_calls_among_many_are_noticed() -> None:
    with pytest.raises(WrongAnswer):
        Load(answers=100, data_bytes=94 * len(framed(ANSWER))).check_data(ANSWER)


@pytest.mark.parametrize("printed", [NOT_FOUND, ANSWERED.replace("0 3xx", "1 3xx"), "", "Could not resolve"])
def test_another_status_than_success_is_refused(printed: str) -> None:
    with pytest.raises(WrongAnswer):
        counted(printed)


def test_both_protocols_have_as_many_calls_in_flight() -> None:
    assert options(2, {}, over_grpc=True)[:2] == ["-c2", "-m2"]
    assert options(2, {"authorization": "x"}, over_grpc=False) == ["--h1", "-c4", "-H", "authorization: x"]


def test_a_message_of_grpc_has_its_length_before_it() -> None:
    assert framed(b"abc") == b"\0\0\0\0\3abc"
