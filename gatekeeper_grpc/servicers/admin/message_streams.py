"""What the RPCs that take a stream share: each message is a mutation of its own, and one answer adds them up."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.domain.mutation import Written
from gatekeeper_grpc.servicers.admin.ports import Cache
from gatekeeper_grpc.wire.audit import anchor_to_proto

Request = TypeVar("Request")
Response = TypeVar("Response", pb.ImportTargetsResponse, pb.AddSegmentMembersResponse)


def apply_messages(
    messages: Iterator[Request],
    apply: Callable[[Request, Response], Written[Any]],
    response: Response,
    *,
    cache: Cache,
    current_revision: Callable[[], int],
) -> Response:
    """Apply messages in order until one fails, and refresh once, at the end; those before a failure stay applied.

    Args:
        messages: Each one mutation.
        apply: Applies a message and adds what it did to the response.
        response: Empty; the answer, when all is done.
        cache: Made to serve what was applied, however the stream ends.
        current_revision: Reads the revision that a stream without messages answers.

    Errors: what `apply` raises, with `applied_messages` and `applied_revision` in the metadata.
    """
    try:
        for message in messages:
            _add(apply(message, response), response)
    except GatekeeperError as exc:
        exc.add_metadata(applied_messages=response.applied_messages, applied_revision=response.revision)
        raise
    finally:
        cache.refresh_after_write(response.revision)
    if not response.applied_messages:
        response.revision = current_revision()
    return response


def _add(written: Written[Any], response: pb.ImportTargetsResponse | pb.AddSegmentMembersResponse) -> None:
    response.applied_messages += 1
    # A retried message answers with the revision that it made then, which may be older than what came before it here.
    if written.revision > response.revision:
        response.revision = written.revision
        anchor = anchor_to_proto(written.anchor)
        if anchor is not None:
            response.audit_anchor.CopyFrom(anchor)
