"""Bulk evaluation: users per second, one revision, flat memory: `python -m bench.bulk [users]`.

Streams users in messages of 1,000 through `BulkEvaluateFlags` while another client flips a flag. The baseline is the
pure evaluation of the same users and flags in a loop of this process: no gRPC, no messages. Then the same stream over
a line of 20 ms of round trip, with messages of 1,000 and of 5,000 users.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf.field_mask_pb2 import FieldMask

from bench.evaluate import FLAGS, create_flags
from bench.line import long_line
from bench.processes import Instance, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext as Context
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.flag import Flag, FlagConfig
from gatekeeper_grpc.domain.snapshot import Snapshot

MESSAGE, LARGE_MESSAGE = 1_000, 5_000
ROUND_TRIP_S = 0.02


def stream(instance: Instance, users: int, message: int = MESSAGE) -> tuple[float, int]:
    """Evaluate all flags for `users` users, `message` a message; returns users per second and the headers, one."""
    began, headers, results = time.perf_counter(), 0, 0
    with instance.channel() as channel:
        for response in EvaluationServiceStub(channel).BulkEvaluateFlags(_messages(users, message)):
            headers += response.HasField("header")
            results += len(response.batch.results)
    assert results == users
    return users / (time.perf_counter() - began), headers


def _messages(users: int, message: int) -> Iterator[evaluation.BulkEvaluateFlagsRequest]:
    for first in range(0, users, message):
        contexts = [Context(user_id=f"user-{number}") for number in range(first, min(first + message, users))]
        yield evaluation.BulkEvaluateFlagsRequest(contexts=contexts)


def flip_until(done: threading.Event, instance: Instance) -> None:
    """Change a flag every 20 ms until `done` is set."""
    metadata, turn = log_in(instance), 0
    with instance.channel() as channel:
        while not done.wait(0.02):
            turn += 1
            change = admin.UpdateFlagRequest(
                flag=flag_pb2.Flag(key="flag-0", rollout_percentage=100 * (turn % 2)),
                update_mask=FieldMask(paths=["rollout_percentage"]),
            )
            AdminServiceStub(channel).UpdateFlag(change, metadata=metadata)


def over_a_long_line(instance: Instance, users: int) -> dict[int, tuple[float, float]]:
    """Return the users per second of this line and of a long one, for each size of messages."""
    with long_line(instance.port, ROUND_TRIP_S) as port:
        far = replace(instance, port=port)
        return {
            size: (stream(instance, users, size)[0], stream(far, users, size)[0]) for size in (MESSAGE, LARGE_MESSAGE)
        }


def baseline_users_per_s(users: int) -> float:
    """Evaluate `users` users in a plain loop; returns users per second."""
    now = datetime.now(UTC)
    configs = [FlagConfig(key=f"flag-{number}", enabled=True, rollout_percentage=50) for number in range(FLAGS)]
    flags = [
        Flag(flag_id=number, config=config, create_time=now, update_time=now, revision=1)
        for number, config in enumerate(configs)
    ]
    snapshot = Snapshot.build(revision=1, flags=flags)
    plans = snapshot.select(()).plans
    began = time.perf_counter()
    for number in range(users):
        snapshot.evaluate(plans, EvaluationContext(user_id=f"user-{number}"))
    return users / (time.perf_counter() - began)


def main(users: int = 100_000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as instance:
        create_flags(instance)
        stream(instance, users // 10)
        before_kib, done = instance.rss_kib(), threading.Event()
        flipper = threading.Thread(target=flip_until, args=(done, instance))
        flipper.start()
        rate, headers = stream(instance, users)
        done.set()
        flipper.join()
        grown_kib = instance.rss_kib() - before_kib
        far = over_a_long_line(instance, users)
    baseline = baseline_users_per_s(users // 10)
    print(f"  {users} users x {FLAGS} flags: {rate:,.0f} users/s, {headers} header, memory grew by {grown_kib} KiB")
    print(
        f"  pure evaluation in a loop: {baseline:,.0f} users/s; the stream reaches {rate / baseline:.2f} of that rate"
    )
    for message, (near_rate, far_rate) in far.items():
        print(
            f"  {message:,} users a message: {near_rate:,.0f} users/s, and {far_rate:,.0f} users/s over a line of"
            f" {ROUND_TRIP_S * 1_000:.0f} ms of round trip ({far_rate / near_rate:.2f})"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
