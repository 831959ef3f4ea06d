"""What each RPC that changes something costs far from the database: round trips, from BEGIN to COMMIT."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import LiteralString

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.store.postgres import database as database_module
from gatekeeper_grpc.store.snapshots import loader as loader_module
from tests.support.clients import TIMEOUT_S, Installation, installed, send
from tests.support.mutations import FLAG, MUTATIONS, SEGMENT
from tests.support.round_trips import LEVEL_OF_READS, RoundTrips, counting_proxy
from tests.support.successes import CHANGES, SUCCESSES
from tests.support.traces import DOCUMENTS_OF_A_LIFE, FLAGS, SEGMENTS, live

MOST = 6
# psycopg prepares a statement when it is used for the sixth time on a connection.
REPEATS = 12


@pytest.fixture(scope="module")
def trips() -> RoundTrips:
    return RoundTrips()


@pytest.fixture(scope="module")
def installation(postgres: str, trips: RoundTrips) -> Iterator[Installation]:
    with installed(postgres, through=partial(counting_proxy, counts=trips)) as installation:
        yield installation


@pytest.mark.parametrize("rpc", CHANGES)
def test_an_rpc_changes_in_six_round_trips(installation: Installation, trips: RoundTrips, rpc: str) -> None:
    trips.taken()
    for _ in range(REPEATS):
        SUCCESSES[rpc](installation)

    taken = trips.taken()
    assert len(taken) >= REPEATS
    assert max(taken) <= MOST


def test_so_does_a_change_of_segment_targets(installation: Installation, trips: RoundTrips) -> None:
    key = FLAG.make(installation, "for-segments")
    targets = [SegmentTarget(segment_key=SEGMENT.make(installation, f"of-{number}"), value=True) for number in range(5)]
    trips.taken()

    for number in range(REPEATS):
        flag = Flag(key=key, segment_targets=targets[: number % 5])
        mask = FieldMask(paths=["segment_targets"])
        send(installation.admin, "UpdateFlag", pb.UpdateFlagRequest(flag=flag, update_mask=mask))

    assert max(trips.taken()) <= MOST


def test_so_does_a_target_that_moves(installation: Installation, trips: RoundTrips) -> None:
    key = FLAG.make(installation, "for-movers")
    trips.taken()

    for number in range(REPEATS):
        moved = pb.AddTargetsRequest(flag_key=key, user_ids=["anna", "bert"], value=number % 2 == 0)
        send(installation.admin, "AddTargets", moved)

    assert max(trips.taken()) <= MOST


def test_twin_without_a_pipeline_it_takes_more(
    installation: Installation, trips: RoundTrips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_pipelined", database_module._each_awaited)
    trips.taken()
    for _ in range(REPEATS):
        SUCCESSES["UpdateFlag"](installation)

    assert max(trips.taken()) > MOST


# --- What an instance reads to learn of a change ----------------------------------------------------------------------

MOST_TO_LEARN = 4


@pytest.fixture(scope="module")
def reads() -> RoundTrips:
    return RoundTrips(LEVEL_OF_READS)


@pytest.fixture(scope="module")
def learning(postgres: str, reads: RoundTrips) -> Iterator[Installation]:
    with installed(postgres, through=partial(counting_proxy, counts=reads)) as installation:
        yield installation


LEARNT = ["UpdateFlag", "UpdateSegment", "AddTargets", "AddSegmentMembers", "UpdateUser"]


@pytest.mark.parametrize("rpc", LEARNT)
def test_an_instance_learns_of_a_change_in_four_round_trips(
    learning: Installation, reads: RoundTrips, rpc: str
) -> None:
    key = MUTATIONS[rpc].make(learning)
    reads.taken()

    MUTATIONS[rpc].ask(learning, key)

    taken = reads.taken()
    assert max(taken) <= MOST_TO_LEARN
    assert taken.count(MOST_TO_LEARN) >= 1


def test_twin_with_each_statement_awaited_it_takes_more(
    learning: Installation, reads: RoundTrips, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = MUTATIONS["UpdateFlag"].make(learning)
    monkeypatch.setattr(loader_module, "together", nullcontext)
    reads.taken()

    MUTATIONS["UpdateFlag"].ask(learning, key)

    assert max(reads.taken()) > MOST_TO_LEARN


# --- Sets whose hash is unknown --------------------------------------------------------------------------------------

FORGET: tuple[LiteralString, ...] = (
    "UPDATE feature_flags SET targets_count = NULL, targets_sum = NULL",
    "UPDATE segments SET members_count = NULL, members_sum = NULL",
)
EDITS = [rpc for rpc, mutation in MUTATIONS.items() if mutation.resource in {"targets", "members"}]


def forget_hashes(installation: Installation) -> None:
    """Forget the hashes of all sets, as the trigger does when somebody changes a set behind the log."""
    for statement in FORGET:
        installation.execute(statement)


@pytest.mark.parametrize("rpc", EDITS)
def test_so_does_the_first_change_of_an_unhashed_set(installation: Installation, trips: RoundTrips, rpc: str) -> None:
    key = MUTATIONS[rpc].make(installation)
    forget_hashes(installation)
    trips.taken()

    MUTATIONS[rpc].ask(installation, key)

    assert max(trips.taken()) <= MOST


# --- Erasure ---------------------------------------------------------------------------------------------------------


def erase(installation: Installation, user_id: str) -> pb.EraseUserResponse:
    return installation.admin_as(Role.ADMIN).EraseUser(pb.EraseUserRequest(user_id=user_id), timeout=TIMEOUT_S)


def test_so_does_the_erasure_of_one_who_left_traces(installation: Installation, trips: RoundTrips) -> None:
    live(installation.admin, "carla")
    forget_hashes(installation)
    trips.taken()

    erased = erase(installation, "carla")

    assert (erased.targets_removed, erased.memberships_removed) == (len(FLAGS), len(SEGMENTS))
    assert erased.documents_redacted == DOCUMENTS_OF_A_LIFE
    assert max(trips.taken()) <= MOST


def test_fifty_more_documents_cost_one_round_trip_more(installation: Installation, trips: RoundTrips) -> None:
    key = FLAG.make(installation, "named-often")
    send(installation.admin, "AddTargets", pb.AddTargetsRequest(flag_key=key, user_ids=["dora"], value=True))
    for number in range(120):
        enabled = Flag(key=key, enabled=number % 2 == 0)
        mask = FieldMask(paths=["enabled"])
        request = pb.UpdateFlagRequest(flag=enabled, update_mask=mask, change_reason="dora asked")
        send(installation.admin, "UpdateFlag", request)
    trips.taken()

    erased = erase(installation, "dora")

    assert erased.documents_redacted == 120
    # Two of the three batches wait for the one before.
    assert MOST < max(trips.taken()) <= MOST + 2
