"""What metrics and usage cost an evaluation: `python -m bench.instrumentation [calls]`.

In one process, without gRPC, per call and in time of the processor: what `EvaluateFlags` counts for 20 flags, one after
the other, and the whole evaluation with and without it. The aim is 2 microseconds at most for each of the two.
"""

import math
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import grpc

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_grpc.cache.change_history import ChangeHistory
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.watcher_hub import WatcherHub
from gatekeeper_grpc.domain.flag import Flag, FlagConfig
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.usage import UsageCounter
from gatekeeper_grpc.instrumentation.counters import EVALUATIONS
from gatekeeper_grpc.interceptors.request_scope import MethodDurations
from gatekeeper_grpc.servicers import evaluation
from gatekeeper_grpc.servicers.evaluation import EvaluationServicer
from gatekeeper_grpc.wire.watch import watch_message

FLAGS = 20
ROUNDS = 200


class Nothing:
    """Counts nothing."""

    def count(self, _tally: int) -> None:
        """Do nothing."""


def _round(act: Callable[[], object], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        act()
    return (time.process_time() - began) / calls


def servicer(usage: UsageCounter | None = None) -> EvaluationServicer:
    """Make a servicer of 20 flags with a rollout of 50 %."""
    now = datetime.now(UTC)
    configs = (FlagConfig(key=f"flag-{n}", enabled=True, rollout_percentage=50) for n in range(FLAGS))
    flags = [
        Flag(flag_id=n, config=config, create_time=now, update_time=now, revision=1)
        for n, config in enumerate(configs, 1)
    ]
    cache = SnapshotCache(stale_after_s=math.inf, max_waiters=1)
    cache.publish(Snapshot.build(revision=1, flags=flags), confirmed_at=math.inf)
    return EvaluationServicer(cache, WatcherHub(ChangeHistory(), watch_message, capacity=1), usage=usage)


def main(calls: int = 200) -> None:
    """Measure in turn and print; the fastest round of each counts, because others use the machine as well."""
    request = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
    evaluate, evaluate_with_usage = servicer().EvaluateFlags, servicer(UsageCounter()).EvaluateFlags
    durations = MethodDurations("/gatekeeper.v1.EvaluationService/EvaluateFlags")
    counters = EVALUATIONS

    def without() -> None:
        evaluate(request, None)  # type: ignore[arg-type] # It reads nothing of the context.

    def counted() -> None:
        evaluate(request, None)  # type: ignore[arg-type]
        durations.observe(grpc.StatusCode.OK, time.monotonic())

    def used() -> None:
        evaluate_with_usage(request, None)  # type: ignore[arg-type]

    best = {counted: math.inf, used: math.inf, without: math.inf}
    for _ in range(ROUNDS):
        for act, fastest in best.items():
            setattr(evaluation, "EVALUATIONS", counters if act is counted else Nothing())  # noqa: B010 - not exported
            best[act] = min(fastest, _round(act, calls) * 1e6)
    for name, act in (("metrics", counted), ("usage", used)):
        difference = best[act] - best[without]
        print(
            f"  with {name} {best[act]:.2f} us, without {best[without]:.2f} us, difference {difference:.2f} us a call"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
