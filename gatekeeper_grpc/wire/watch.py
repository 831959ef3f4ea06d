"""Changes of flags, from domain types to messages."""

from collections.abc import Mapping
from types import MappingProxyType

from gatekeeper_client.v1 import evaluation_service_pb2 as pb
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.mutation import ChangeType
from gatekeeper_grpc.wire.evaluation import check_flag_keys

_TYPES: Mapping[ChangeType, pb.FlagChangeType.ValueType] = MappingProxyType(
    {
        ChangeType.CREATED: pb.FLAG_CHANGE_TYPE_CREATED,
        ChangeType.UPDATED: pb.FLAG_CHANGE_TYPE_UPDATED,
        ChangeType.DELETED: pb.FLAG_CHANGE_TYPE_DELETED,
    }
)


def check_watch_request(request: pb.WatchFlagsRequest) -> None:
    """Check a watch request.

    Raises:
        InvalidArgument: As `check_flag_keys`, or `from_revision` is negative.
    """
    if request.from_revision < 0:
        raise InvalidArgument.of("from_revision", "must be 1 or more, or 0 for the current revision")
    check_flag_keys(request.flag_keys)


def watch_message(revision: int, changes: Mapping[str, ChangeType] | None) -> bytes:
    """Serialise the message with the changes up to a revision; None: they are no longer known, so it says `reset`.

    Bytes, because thousands of watchers receive the same message.
    """
    if changes is None:
        return pb.WatchFlagsResponse(revision=revision, reset=True).SerializeToString()
    sent = [pb.FlagChange(flag_key=key, type=_TYPES[change]) for key, change in changes.items()]
    return pb.WatchFlagsResponse(revision=revision, changes=sent).SerializeToString()
