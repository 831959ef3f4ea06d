"""The judge of fuzzed calls finds each kind of fault."""

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.fuzz.calls import Call
from tests.fuzz.contract import Method
from tests.fuzz.judge import MAX_CALL_S, MAX_GROWTH_BYTES, Outcome, Verdict

METHOD = Method(path="/test.Service/Get", request=StringValue, response=StringValue, streams_requests=False)
CALL = Call(method=METHOD, messages=(b"\x01\x02",), metadata=(), request=None, is_honest=True)
OK = grpc.StatusCode.OK


def ended(code: grpc.StatusCode = OK, details: str = "", took_s: float = 0.1) -> Outcome:
    return Outcome(call=CALL, code=code, details=details, took_s=took_s)


def judged(*outcomes: Outcome, memory_bytes: tuple[int, ...] = ()) -> list[str]:
    verdict = Verdict(memory_bytes=[*memory_bytes])
    for outcome in outcomes:
        verdict.add(outcome)
    verdict.conclude()
    return verdict.faults


def test_calls_that_end_as_promised_are_no_fault() -> None:
    refused = ended(grpc.StatusCode.INVALID_ARGUMENT, "flag.key: must not be empty")

    assert judged(ended(), ended(), refused, memory_bytes=(0, MAX_GROWTH_BYTES)) == []


@pytest.mark.parametrize("name", ["UNKNOWN", "INTERNAL", "CANCELLED", "DATA_LOSS", "UNAVAILABLE"])
def test_a_status_that_is_never_right_is_found_with_its_call(name: str) -> None:
    (fault,) = judged(ended(), ended(grpc.StatusCode[name], "internal error"))

    assert fault == f"{name} (internal error): /test.Service/Get with []: 0102"


def test_a_refusal_without_a_word_is_found() -> None:
    (fault,) = judged(ended(), ended(grpc.StatusCode.NOT_FOUND))

    assert fault.startswith("NOT_FOUND without a word")


def test_a_call_that_takes_too_long_is_found() -> None:
    (fault,) = judged(ended(took_s=MAX_CALL_S + 1))

    assert fault.startswith("took 21.0 s")


def test_calls_that_do_not_get_deep_enough_are_found() -> None:
    refused = ended(grpc.StatusCode.INVALID_ARGUMENT, "no")

    assert judged(ended(), refused, refused) == ["only 33% of the calls ended OK"]


def test_memory_that_grows_too_much_is_found() -> None:
    assert judged(ended(), memory_bytes=(0, MAX_GROWTH_BYTES + 1)) == ["the server's memory grew by 32 MiB"]
