"""A watcher of flags for tests: reads messages with a time limit, and cancels at the end of the block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from gatekeeper_client.v1 import evaluation_service_pb2 as pb
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.support.clients import TIMEOUT_S

CREATED, UPDATED, DELETED = "CREATED", "UPDATED", "DELETED"


class Watch:
    """One open stream, and its messages."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def read(self) -> pb.WatchFlagsResponse:
        message: pb.WatchFlagsResponse = next(self.call)
        return message

    def read_changes(self) -> dict[str, str]:
        """Read until something has changed, and return what."""
        while not (told := changes_of(self.read())):
            pass
        return told

    def read_until(self, revision: int) -> dict[str, str]:
        """Read up to a revision, and return all that has changed; the last word about a flag counts."""
        told: dict[str, str] = {}
        while True:
            message = self.read()
            told |= changes_of(message)
            if message.revision >= revision:
                return told

    def code(self) -> grpc.StatusCode:
        """Read to the end."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            pass
        code: grpc.StatusCode = self.call.code()
        return code


def changes_of(message: pb.WatchFlagsResponse) -> dict[str, str]:
    names = {change.flag_key: pb.FlagChangeType.Name(change.type) for change in message.changes}
    return {key: name.removeprefix("FLAG_CHANGE_TYPE_") for key, name in names.items()}


@contextmanager
def watching(channel: grpc.Channel, *flag_keys: str, from_revision: int = 0, metadata: Any = ()) -> Iterator[Watch]:
    """Watch flags for the length of a block, which must not take longer than `TIMEOUT_S`."""
    request = pb.WatchFlagsRequest(from_revision=from_revision, flag_keys=flag_keys)
    call = EvaluationServiceStub(channel).WatchFlags(request, timeout=TIMEOUT_S, metadata=metadata)
    try:
        yield Watch(call)
    finally:
        call.cancel()


def first_message(channel: grpc.Channel, *flag_keys: str, **options: Any) -> pb.WatchFlagsResponse:
    """Open a stream, and return what comes at once."""
    with watching(channel, *flag_keys, **options) as watch:
        return watch.read()
