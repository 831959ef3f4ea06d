"""Converts the fields that all mutations share to an `Intent`."""

import hashlib
import re
from typing import Any, Protocol
from uuid import UUID

from gatekeeper_grpc.domain.caller import current_caller
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.mutation import Intent

_UUID = re.compile("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


class MutationRequest(Protocol):
    """What the request message of every mutation has."""

    DESCRIPTOR: Any
    change_reason: str
    validate_only: bool
    request_id: str

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: D102, N802
        ...


def intent_from_proto(request: MutationRequest) -> Intent:
    """Convert the fields that all mutations share, for the current caller.

    The audit log names the action by the message: `UpdateFlagRequest` is "UpdateFlag".

    Raises:
        InvalidArgument: `request_id` is not a UUID.
    """
    return Intent(
        caller=current_caller(),
        action=request.DESCRIPTOR.name.removesuffix("Request"),
        change_reason=request.change_reason,
        validate_only=request.validate_only,
        request_id=_request_id(request.request_id),
        request_hash=hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        if request.request_id
        else b"",
    )


def _request_id(text: str) -> UUID | None:
    if not text:
        return None
    # `UUID` alone accepts blanks, underscores and the digits of any script: a mistyped id would become another one.
    if not _UUID.fullmatch(text):
        raise InvalidArgument.of("request_id", "must be a UUID, such as 6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b52")
    return UUID(text)
