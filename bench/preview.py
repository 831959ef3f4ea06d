"""A preview of a change of one flag, compared with bulk evaluation of that flag: users a second, by turns in one run.

Both have one stream with 5,000 contexts a message, a user id each. The preview asks for the totals, which is what the
command does. A fifth of the users would gain the flag.
"""

from collections.abc import Iterator

from google.protobuf.field_mask_pb2 import FieldMask

from bench.bulk import BULK, WARM_UP_S, Stream, clients, contexts_by_id, stream
from bench.figures import Effort, Figure, median_figure
from bench.processes import Metadata, flags_served, log_in
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1.flag_pb2 import Flag

KEY = "flag-0"
PREVIEW = "/gatekeeper.v1.AdminService/PreviewFlagChange"
PERCENTAGE = 70


def bulk_of_one_flag() -> Stream:
    """Return a stream that evaluates one flag."""
    message = evaluation.BulkEvaluateFlagsRequest(flag_keys=[KEY], contexts=contexts_by_id())
    return Stream(method=BULK, message=message.SerializeToString())


def preview_of_one_flag(metadata: Metadata) -> Stream:
    """Return a stream that previews a change of one flag; `metadata` are the credentials."""
    message = admin.PreviewFlagChangeRequest(
        flag=Flag(key=KEY, rollout_percentage=PERCENTAGE),
        update_mask=FieldMask(paths=["rollout_percentage"]),
        contexts=contexts_by_id(),
    )
    return Stream(method=PREVIEW, message=message.SerializeToString(), metadata=metadata, has_end=True)


def check(answer: bytes) -> None:
    """Require that an answer is a batch without rows.

    Raises:
        AssertionError: It is not.
    """
    response = admin.PreviewFlagChangeResponse.FromString(answer)
    assert response.WhichOneof("content") == "batch"
    assert not response.batch.rows


def measure(effort: Effort) -> Iterator[Figure]:
    """Measure how many users a second a preview takes, of those of bulk evaluation."""
    with flags_served() as instance, clients() as processes:
        bulk, preview = bulk_of_one_flag(), preview_of_one_flag(log_in(instance))
        for each in (bulk, preview):
            processes.submit(stream, instance.port, WARM_UP_S, each).result()
        rates, ratios = [], []
        for _ in range(effort.rounds):
            of_bulk, _ = processes.submit(stream, instance.port, effort.seconds, bulk).result()
            of_preview, answer = processes.submit(stream, instance.port, effort.seconds, preview).result()
            check(answer)
            rates.append(of_preview)
            ratios.append(of_preview / of_bulk)
    yield median_figure("preview.users", "PreviewFlagChange, one flag, totals alone: users", "1/s", rates)
    yield median_figure("preview.rate", "PreviewFlagChange: users a second", "x bulk", ratios)
