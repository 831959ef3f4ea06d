"""How soon a second instance shows a change that was made through the first.

Two real processes on one PostgreSQL. Each change flips a flag through the first instance. The clock runs from the
acknowledgement until the second instance answers with the new revision.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.field_mask_pb2 import FieldMask

from bench.figures import Effort, Figure, figure, percentile
from bench.processes import Instance, Metadata, database_url, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

FLAG = "propagated"
CHANGES_EACH_ROUND = 50
QUESTION = evaluation.EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"), flag_keys=[FLAG])


def measure(effort: Effort) -> Iterator[Figure]:
    """Measure the duration of UpdateFlag alone, and propagation."""
    changes = effort.rounds * effort.scaled(CHANGES_EACH_ROUND)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as first:
        alone = _updates_ms(first, changes)
        with serving(Path(folder), DATABASE_URL=database_url(Path(folder))) as second:
            seen = _seen_ms(first, second, changes)
    yield figure("propagation.update", f"UpdateFlag alone, {changes} changes: p50", "ms", percentile(alone, 0.5))
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        what = f"a change is visible on another instance, {changes} changes: {name}"
        yield figure(f"propagation.{name}", what, "ms", percentile(seen, share))


def _updates_ms(instance: Instance, changes: int) -> list[float]:
    metadata = log_in(instance)
    with instance.channel() as channel:
        service = AdminServiceStub(channel)
        service.CreateFlag(admin.CreateFlagRequest(flag=flag_pb2.Flag(key=FLAG, enabled=True)), metadata=metadata)
        return [_flip(service, metadata, turn)[1] for turn in range(changes)]


def _seen_ms(writer: Instance, reader: Instance, changes: int) -> list[float]:
    """Return the milliseconds from the acknowledgement of each change until the reader showed it."""
    metadata = log_in(writer)
    with writer.channel() as to_writer, reader.channel() as to_reader:
        service, answers, found = AdminServiceStub(to_writer), EvaluationServiceStub(to_reader), list[float]()
        for turn in range(changes):
            revision, _ = _flip(service, metadata, turn)
            acknowledged = time.perf_counter()
            while answers.EvaluateFlags(QUESTION).revision < revision:
                pass
            found.append((time.perf_counter() - acknowledged) * 1_000)
        return found


def _flip(service: AdminServiceStub, metadata: Metadata, turn: int) -> tuple[int, float]:
    """Change the flag; returns the revision, and how many milliseconds that took."""
    flag = flag_pb2.Flag(key=FLAG, rollout_percentage=1 + turn % 100)
    request = admin.UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["rollout_percentage"]))
    began = time.perf_counter()
    revision = service.UpdateFlag(request, metadata=metadata).revision
    return revision, (time.perf_counter() - began) * 1_000
