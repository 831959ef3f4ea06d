"""Where the time of EvaluateFlags and BulkEvaluateFlags goes: `python -m bench.parts [flags...]`.

In one process, without gRPC, in time of the processor for each call, or for each user of a bulk message: the fastest of
many rounds, because others use the machine as well. Each part is called alone, so what it takes is in the caches of the
processor; in a server it takes up to twice as long.
"""

import sys
import time
from collections.abc import Callable, Iterator

from bench import instrumentation
from bench.bulk import contexts_by_id
from bench.unary import QUESTION
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper_grpc.domain.usage import UsageCounter
from gatekeeper_grpc.draws import implementation, use
from gatekeeper_grpc.instrumentation.counters import EVALUATIONS
from gatekeeper_grpc.wire import evaluation
from gatekeeper_grpc.wire.evaluation import answer_to_bytes, only_context_from_proto, results_to_bytes, users_of

FLAGS = (20, 200)
ROUNDS = 40
USERS = 500
Part = tuple[str, Callable[[], object]]


def best_us(act: Callable[[], object], calls: int) -> float:
    """Return the microseconds of one call."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        for _ in range(calls):
            act()
        rounds.append((time.thread_time_ns() - began) / calls / 1_000)
    return min(rounds)


def unary(flags: int) -> Iterator[Part]:
    """Yield the parts of a call."""
    instrumentation.FLAGS = flags
    usage = UsageCounter()
    servicer = instrumentation.servicer(usage)
    snapshot = servicer._cache.peek()  # noqa: SLF001 - its own parts
    assert snapshot is not None
    request, selection = EvaluateFlagsRequest.FromString(QUESTION), snapshot.select(())
    context = only_context_from_proto(request)
    decisions = snapshot.decide(selection, context)
    yield "parse", lambda: EvaluateFlagsRequest.FromString(QUESTION)
    yield "read the user", lambda: only_context_from_proto(request)
    yield "decide", lambda: snapshot.decide(selection, context)
    yield "count for metrics", lambda: EVALUATIONS.count(selection.tally(decisions))
    yield "count usage", lambda: usage.count(selection, decisions)
    yield "write the answer", lambda: answer_to_bytes(selection, decisions.values, stale=False)
    yield "the servicer, all of these but the first", lambda: servicer.answer_at_once(request)


def bulk(flags: int) -> Iterator[Part]:
    """Yield the parts of a message, without the pace that it keeps."""
    instrumentation.FLAGS = flags
    usage = UsageCounter()
    snapshot = instrumentation.servicer()._cache.peek()  # noqa: SLF001 - its own parts
    assert snapshot is not None
    selection, message = snapshot.select(()), BulkEvaluateFlagsRequest(contexts=contexts_by_id(USERS))
    body, contexts, found = message.SerializeToString(), message.contexts[:], users_of(message.contexts)
    assert found is not None
    evaluation._records.cache_clear()  # noqa: SLF001 - those of the implementation in use
    decisions = snapshot.decide_all(selection, *found)
    yield "parse", lambda: BulkEvaluateFlagsRequest.FromString(body)
    yield "read the users", lambda: users_of(contexts)
    yield "decide", lambda: snapshot.decide_all(selection, *found)
    yield "count usage", lambda: usage.count_in_bulk(selection, decisions)
    yield "write the results", lambda: results_to_bytes(found[1], decisions.values, flags=flags)


def main(*sizes: int) -> None:
    """Measure and print, with the kernel and in Python."""
    for native in (True, False):
        use(native=native)
        for flags in sizes or FLAGS:
            print(f"{implementation()}, {flags:,} flags: microseconds of a call; of a user of a bulk message")
            for name, act in unary(flags):
                print(f"  {name:42}{best_us(act, 50):8.2f}")
            for name, act in bulk(flags):
                print(f"  bulk: {name:36}{best_us(act, 1) / USERS:8.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
