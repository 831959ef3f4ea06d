"""How soon a second instance sees a change made through the first: `python -m bench.propagation [changes]`.

Two real processes on one PostgreSQL. Each change flips a flag through the first instance. The clock runs from the
acknowledgement until the second instance answers with the new revision.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from google.protobuf.field_mask_pb2 import FieldMask

from bench.processes import Instance, Metadata, database_url, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

FLAG = "propagated"


def measure(writer: Instance, reader: Instance, changes: int) -> list[float]:
    """Return the milliseconds from the acknowledgement of each change until the reader showed it."""
    metadata = log_in(writer)
    with writer.channel() as to_writer, reader.channel() as to_reader:
        flags, answers = AdminServiceStub(to_writer), EvaluationServiceStub(to_reader)
        flags.CreateFlag(admin.CreateFlagRequest(flag=flag_pb2.Flag(key=FLAG, enabled=True)), metadata=metadata)
        return [_seen_after_ms(flags, answers, metadata, percentage=100 * (turn % 2 == 0)) for turn in range(changes)]


def _seen_after_ms(
    flags: AdminServiceStub, answers: EvaluationServiceStub, metadata: Metadata, *, percentage: int
) -> float:
    change = admin.UpdateFlagRequest(
        flag=flag_pb2.Flag(key=FLAG, rollout_percentage=percentage), update_mask=FieldMask(paths=["rollout_percentage"])
    )
    question = evaluation.EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"), flag_keys=[FLAG])
    revision = flags.UpdateFlag(change, metadata=metadata).revision
    acknowledged = time.perf_counter()
    while answers.EvaluateFlags(question).revision < revision:
        pass
    return (time.perf_counter() - acknowledged) * 1_000


def main(changes: int = 200) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as first:
        url = database_url(Path(folder))
        with serving(Path(folder), DATABASE_URL=url) as second:
            delays = sorted(measure(first, second, changes))
    p99 = delays[max(0, int(len(delays) * 0.99) - 1)]
    print(f"{changes} changes through one instance, seen by another:")
    print(
        f"  p50 {statistics.median(delays):.1f} ms   p99 {p99:.1f} ms   max {delays[-1]:.1f} ms   (promised: p99 < 100)"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
