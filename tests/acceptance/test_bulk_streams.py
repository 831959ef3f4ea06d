"""A bulk stream of any length is true at one revision, and costs the server the memory of a short one."""

from collections.abc import Iterator
from queue import SimpleQueue

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1.admin_service_pb2 import UpdateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    BulkEvaluateFlagsResponse,
    BulkEvaluationBatch,
    BulkEvaluationHeader,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.processes import Gatekeeper

USERS_PER_MESSAGE = 1_000
MESSAGES = 100
WARM_UP_MESSAGES = 10
# What an allocator may keep without anything having leaked. 90,000 users in memory would be 20 MB.
SLACK_BYTES = 4 << 20


class Conversation:
    """One bulk stream, a message at a time."""

    def __init__(self, evaluation: EvaluationServiceStub) -> None:
        self._requests: SimpleQueue[BulkEvaluateFlagsRequest | None] = SimpleQueue()
        self._answers = evaluation.BulkEvaluateFlags(iter(self._requests.get, None))

    def begin(self) -> BulkEvaluationHeader:
        """Send a first message without users; returns what holds for the whole stream."""
        self._requests.put(BulkEvaluateFlagsRequest())
        header: BulkEvaluationHeader = next(self._answers).header
        assert next(self._answers) == BulkEvaluateFlagsResponse(batch=BulkEvaluationBatch())
        return header

    def ask(self, first: int) -> Iterator[bool]:
        """Send one message; yields what its users get."""
        numbers = range(first, first + USERS_PER_MESSAGE)
        contexts = [EvaluationContext(user_id=f"user-{number}") for number in numbers]
        self._requests.put(BulkEvaluateFlagsRequest(contexts=contexts))
        answer: BulkEvaluateFlagsResponse = next(self._answers)
        assert [result.user_id for result in answer.batch.results] == [context.user_id for context in contexts]
        return (value for result in answer.batch.results for value in result.evaluation.values)

    def end(self) -> None:
        """Say that there are no more messages; the server agrees."""
        self._requests.put(None)
        assert list(self._answers) == []


@pytest.mark.timeout(120)
def test_100_000_users_get_one_revision_in_the_memory_for_10_000(gatekeeper: Gatekeeper) -> None:
    with gatekeeper.channel() as channel, gatekeeper.admin() as admin:
        roll_out(admin, 100)
        conversation = Conversation(EvaluationServiceStub(channel))
        header = conversation.begin()
        resident: list[int] = []
        revisions: list[int] = []
        for number in range(MESSAGES):
            assert set(conversation.ask(number * USERS_PER_MESSAGE)) == {True}
            if number % WARM_UP_MESSAGES == WARM_UP_MESSAGES - 1:
                revisions.append(roll_out(admin, len(revisions)))
                resident.append(gatekeeper.resident_bytes())
        conversation.end()

        assert (header.revision, revisions) == (2, list(range(3, 13)))
        assert max(resident) - resident[0] < SLACK_BYTES


def roll_out(admin: AdminServiceStub, percentage: int) -> int:
    flag = Flag(key="new_checkout", rollout_percentage=percentage)
    return admin.UpdateFlag(UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["rollout_percentage"]))).revision
