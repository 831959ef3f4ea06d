"""What a large segment costs: `python -m bench.members [members]`.

Streams user ids in messages of 10,000 through `AddSegmentMembers`. Prints the rate, the memory per member of the
serving process, and the duration of calls that touch all members. A second instance loads all members when it starts,
and shows their memory without the side effects of the upload.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from google.protobuf.field_mask_pb2 import FieldMask

from bench.processes import Instance, Metadata, database_url, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import flag_pb2, segment_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.store.audit.reconcile import reconcile
from gatekeeper_grpc.store.postgres.database import Database

SEGMENT = "large"
FLAG = "targets-large"
MESSAGE = 10_000


def create(service: AdminServiceStub, metadata: Metadata) -> None:
    """Create the segment and a flag that is on for it."""
    segment = segment_pb2.Segment(key=SEGMENT)
    service.CreateSegment(admin.CreateSegmentRequest(segment=segment), metadata=metadata)
    target = flag_pb2.SegmentTarget(segment_key=SEGMENT, value=True)
    flag = flag_pb2.Flag(key=FLAG, enabled=True, segment_targets=[target])
    service.CreateFlag(admin.CreateFlagRequest(flag=flag), metadata=metadata)


def upload(service: AdminServiceStub, metadata: Metadata, members: int) -> None:
    """Stream `members` members."""
    response = service.AddSegmentMembers(_messages(members), metadata=metadata)
    assert response.added_count == members


def _messages(members: int) -> Iterator[admin.AddSegmentMembersRequest]:
    for first in range(0, members, MESSAGE):
        user_ids = [f"user-{number}" for number in range(first, min(first + MESSAGE, members))]
        yield admin.AddSegmentMembersRequest(segment_key=SEGMENT, user_ids=user_ids)


def is_on(instance: Instance, user_id: str) -> bool:
    """Evaluate the flag for one user."""
    request = EvaluateFlagsRequest(context=EvaluationContext(user_id=user_id), flag_keys=[FLAG])
    with instance.channel() as channel:
        return EvaluationServiceStub(channel).EvaluateFlags(request).flags[FLAG]


def took_s(act: Callable[[], object]) -> float:
    """Return how many seconds `act` takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def calls_on_all_members(service: AdminServiceStub, metadata: Metadata) -> Iterator[tuple[str, float]]:
    """Time the calls whose work grows with the number of members."""
    get = admin.GetSegmentRequest(key=SEGMENT)
    yield "GetSegment", took_s(lambda: service.GetSegment(get, metadata=metadata))
    update = admin.UpdateSegmentRequest(
        segment=segment_pb2.Segment(key=SEGMENT, description="x"), update_mask=FieldMask(paths=["description"])
    )
    yield "UpdateSegment", took_s(lambda: service.UpdateSegment(update, metadata=metadata))
    page = admin.ListSegmentMembersRequest(segment_key=SEGMENT, page_size=1_000)
    yield "ListSegmentMembers, first page", took_s(lambda: service.ListSegmentMembers(page, metadata=metadata))
    service.DeleteFlag(admin.DeleteFlagRequest(key=FLAG), metadata=metadata)
    delete = admin.DeleteSegmentRequest(key=SEGMENT)
    yield "DeleteSegment", took_s(lambda: service.DeleteSegment(delete, metadata=metadata))


def reconcile_all(dsn: str) -> None:
    """Compare everything with the audit log."""
    with closing(Database(dsn)) as database:
        database.open()
        with database.read() as conn:
            assert not [compared.key for compared in reconcile(conn) if compared.faults]


def bytes_each(kib: int, members: int) -> float:
    """Return the bytes per member."""
    return kib * 1_024 / members


def main(members: int = 1_000_000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as instance, instance.channel() as channel:
        service, metadata = AdminServiceStub(channel), log_in(instance)
        create(service, metadata)
        empty_kib = instance.rss_kib()
        seconds = took_s(lambda: upload(service, metadata, members))
        assert [is_on(instance, f"user-{number}") for number in (0, members - 1, members)] == [True, True, False]
        grown_kib = instance.rss_kib() - empty_kib
        with serving(Path(folder), DATABASE_URL=database_url(Path(folder))) as second:
            assert is_on(second, f"user-{members - 1}")
            loaded_kib = second.rss_kib() - empty_kib
        reconciled_s = took_s(lambda: reconcile_all(database_url(Path(folder))))
        timings = list(calls_on_all_members(service, metadata))
    print(f"  {members} members in messages of {MESSAGE}: {seconds:.1f} s, {members / seconds:,.0f} ids/s")
    print(f"  memory per member: {bytes_each(grown_kib, members):.0f} bytes after the upload, ", end="")
    print(f"{bytes_each(loaded_kib, members):.0f} bytes on an instance that loads them (goal: < 100)")
    print(f"  gatekeeper audit reconcile: {reconciled_s * 1_000:,.0f} ms")
    for call, took in timings:
        print(f"  {call}: {took * 1_000:,.0f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
