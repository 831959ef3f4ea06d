"""The fields that all mutations share, from a request to an `Intent`."""

import hashlib
import re
from typing import Protocol
from uuid import UUID

from gatekeeper_grpc.domain.caller import current_caller
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.mutation import Intent

_UUID = re.compile("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


class MutationRequest(Protocol):
    """What every mutation's request message has."""

    change_reason: str
    validate_only: bool
    request_id: str

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: D102, N802
        ...


def intent_from_proto(request: MutationRequest, *, action: str) -> Intent:
    """Convert what a mutation's request says beside its content, on behalf of the current caller."""
    return Intent(
        caller=current_caller(),
        action=action,
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
    # Not left to `UUID`, which takes blanks, underscores and any script's digits: a mistyped id would become another.
    if not _UUID.fullmatch(text):
        raise InvalidArgument.of("request_id", "must be a UUID, such as 6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b52")
    return UUID(text)
