"""The RPCs that take a stream: each message is a mutation, and one response adds up what they did."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.cache.refresher import Refresher
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.domain.mutation import Written
from gatekeeper_grpc.wire.audit import anchor_to_proto

Request = TypeVar("Request")
Response = TypeVar("Response", pb.ImportTargetsResponse, pb.AddSegmentMembersResponse)


def apply_messages(
    messages: Iterator[Request],
    apply: Callable[[Request, Response], Written[Any]],
    response: Response,
    *,
    refresher: Refresher,
    current_revision: Callable[[], int],
) -> Response:
    """Apply messages in order until one fails, and refresh once, at the end; those before a failure stay applied.

    Args:
        messages: Each is one mutation.
        apply: Applies a message, and adds what it did to the response.
        response: Empty at first; returned when every message is applied.
        refresher: Refreshes this instance once, however the stream ends.
        current_revision: Reads the revision to return for a stream without messages.

    Raises:
        GatekeeperError: What `apply` or the refresh raised, with `applied_messages` and `applied_revision` in its
            metadata.
    """
    try:
        try:
            for message in messages:
                _add(apply(message, response), response)
        finally:
            refresher.refresh_after_write(response.revision)
    except GatekeeperError as exc:
        exc.add_metadata(applied_messages=response.applied_messages, applied_revision=response.revision)
        raise
    if not response.applied_messages:
        response.revision = current_revision()
    return response


def _add(written: Written[Any], response: pb.ImportTargetsResponse | pb.AddSegmentMembersResponse) -> None:
    response.applied_messages += 1
    # A retried message has the revision of its first try, which may be older than the message before it.
    if written.revision > response.revision:
        response.revision = written.revision
        anchor = anchor_to_proto(written.anchor)
        if anchor is not None:
            response.audit_anchor.CopyFrom(anchor)
