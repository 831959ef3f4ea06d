"""Bulk evaluation of 20 flags by one stream, with 5,000 contexts a message: decisions a second.

The client is a process of its own, keeps two messages ahead of the answers, and neither makes nor reads a message while
it is timed. 1 % of the values of the first answer of each round are compared with the pure evaluator.
"""

import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.json_format import MessageToDict

from bench.figures import Effort, Figure, median_figure
from bench.line import long_line
from bench.processes import FLAGS, Instance, Metadata, database_url, flags_served, log_in, snapshot_of
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1 import flag_pb2, segment_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext as Context
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.snapshot import Snapshot

BULK = "/gatekeeper.v1.EvaluationService/BulkEvaluateFlags"
CONTEXTS_PER_MESSAGE = 5_000
CHECKED_EVERY = 100
WARM_UP_S = 0.5
ROUND_TRIP_S = 0.02
SEGMENT = "paying"


def clients() -> ProcessPoolExecutor:
    """Return two processes for clients."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def contexts_by_id(count: int = CONTEXTS_PER_MESSAGE) -> list[Context]:
    """Return contexts with a user id alone."""
    return [Context(user_id=f"user-{number}") for number in range(count)]


def contexts_with_attributes() -> list[Context]:
    """Return contexts with a user id and two attributes, of which a segment reads one."""
    contexts = contexts_by_id()
    for number, context in enumerate(contexts):
        context.attributes.update({"plan": ("free", "pro", "team")[number % 3], "country": "DE"})
    return contexts


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What a client sends again and again: a message of so many contexts, to a method that answers each with one."""

    message: bytes
    method: str = BULK
    metadata: Metadata = ()
    contexts: int = CONTEXTS_PER_MESSAGE
    has_end: bool = False
    """Whether one more answer follows the last message."""


def message_of(contexts: Sequence[Context]) -> Stream:
    """Return a stream that asks for all flags."""
    message = evaluation.BulkEvaluateFlagsRequest(contexts=contexts).SerializeToString()
    return Stream(message=message, contexts=len(contexts))


def stream(port: int, seconds: float, sent: Stream) -> tuple[float, bytes]:
    """Send a message again and again; returns the contexts a second, and the first answer.

    The clock starts when the header is there: the connection is made, and the server is at work.
    """
    began, ahead, answers = time.perf_counter(), threading.Semaphore(1), list[bytes]()

    def messages() -> Iterator[bytes]:
        yield sent.message
        while time.perf_counter() < began + seconds:
            ahead.acquire()
            yield sent.message

    with Instance(port=port).channel() as channel:
        method: Any = channel.stream_stream(sent.method)
        responses = method(messages(), metadata=sent.metadata)
        next(responses)
        began = time.perf_counter()
        for response in responses:  # One for each message: 20 flags of 5,000 users take less than 1 MiB.
            ahead.release()
            answers.append(response)
    return (len(answers) - sent.has_end) * sent.contexts / (time.perf_counter() - began), answers[0]


def check(answer: bytes, contexts: Sequence[Context], snapshot: Snapshot) -> None:
    """Compare 1 % of an answer with the pure evaluator.

    Raises:
        AssertionError: They differ.
    """
    plans = snapshot.select(()).plans
    results = evaluation.BulkEvaluateFlagsResponse.FromString(answer).batch.results
    assert len(results) == len(contexts)
    for context, result in [*zip(contexts, results, strict=True)][::CHECKED_EVERY]:
        asked = EvaluationContext(user_id=context.user_id, attributes=MessageToDict(context.attributes))
        assert list(result.evaluation.values) == [each.value for each in snapshot.evaluate(plans, asked)]


def measure(effort: Effort) -> Iterator[Figure]:
    """Measure bulk evaluation alone, by user id in Python and as it is, and with two attributes."""
    what = f"BulkEvaluateFlags, {FLAGS} flags, one stream"
    with flags_served(GATEKEEPER_KERNEL="off") as instance, clients() as processes:
        rates = _decisions(instance, processes, contexts_by_id(), effort)
        yield median_figure("bulk.python.decisions", f"{what}, user id only, in Python: decisions", "1/s", rates)
    with flags_served() as instance, clients() as processes:
        rates = _decisions(instance, processes, contexts_by_id(), effort)
        yield median_figure("bulk.decisions", f"{what}, user id only: decisions", "1/s", rates)
        _target_a_segment(instance)
        rates = _decisions(instance, processes, contexts_with_attributes(), effort)
        what += ", two attributes, one flag with a segment: decisions"
        yield median_figure("bulk.attributes.decisions", what, "1/s", rates)


def _decisions(
    instance: Instance, processes: ProcessPoolExecutor, contexts: Sequence[Context], effort: Effort
) -> list[float]:
    """Return the decisions a second of each round."""
    message, snapshot = message_of(contexts), snapshot_of(database_url(instance.data_dir))
    processes.submit(stream, instance.port, WARM_UP_S, message).result()
    rates = []
    for _ in range(effort.rounds):
        rate, answer = processes.submit(stream, instance.port, effort.seconds, message).result()
        check(answer, contexts, snapshot)
        rates.append(rate * FLAGS)
    return rates


def _target_a_segment(instance: Instance) -> None:
    metadata = log_in(instance)
    condition = segment_pb2.Condition(attribute="plan", operator=segment_pb2.CONDITION_OPERATOR_EQUALS)
    condition.values.add().string_value = "pro"
    segment = segment_pb2.Segment(key=SEGMENT, match=segment_pb2.SEGMENT_MATCH_ALL, conditions=[condition])
    target = flag_pb2.SegmentTarget(segment_key=SEGMENT, value=True)
    flag = flag_pb2.Flag(key="flag-0", segment_targets=[target])
    with instance.channel() as channel:
        service = AdminServiceStub(channel)
        service.CreateSegment(admin.CreateSegmentRequest(segment=segment), metadata=metadata)
        update = admin.UpdateFlagRequest(flag=flag)
        update.update_mask.paths.append("segment_targets")
        service.UpdateFlag(update, metadata=metadata)


def measure_line(effort: Effort) -> Iterator[Figure]:
    """Measure what a line of 20 ms of round trip leaves of bulk evaluation's rate."""
    message = message_of(contexts_by_id())
    with flags_served() as instance, clients() as processes, long_line(instance.port, ROUND_TRIP_S) as port:
        far = replace(instance, port=port)
        rates = [
            [processes.submit(stream, each.port, effort.seconds, message).result()[0] for each in (instance, far)]
            for _ in range(effort.rounds)
        ]
    what = f"BulkEvaluateFlags over a line of {ROUND_TRIP_S * 1_000:.0f} ms of round trip: rate"
    yield median_figure("line.rate", what, "x near", [there / here for here, there in rates])
