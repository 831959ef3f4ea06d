"""The one table from error kinds to gRPC status codes, and the rich details of each error.

Details stay small: a status travels in response metadata, of which clients accept 8 KiB.
"""

import errno
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # Published without py.typed.
from grpc_status import rpc_status

from gatekeeper_grpc.domain.errors import (
    AlreadyExists,
    Busy,
    CallAbandoned,
    Changed,
    FailedPrecondition,
    FieldViolation,
    GatekeeperError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

ERROR_DOMAIN = "gatekeeper"

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

_MAX_MESSAGE_BYTES = 512
_MAX_DETAIL_BYTES = 128
_MAX_VIOLATIONS = 10
_MAX_VARIABLES = 8
_MAX_VARIABLES_BYTES = 1_500


class RequestTimeout(GatekeeperError):
    """The client did not send a message in time. Only the wire knows of such things, so it is no domain kind."""

    reason = "REQUEST_TIMEOUT"


class MethodNotFound(GatekeeperError):
    """The server has no method of the name that was called; no domain kind either."""

    reason = "METHOD_NOT_FOUND"


CODES: Mapping[type[GatekeeperError], grpc.StatusCode] = MappingProxyType(
    {
        InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
        NotFound: grpc.StatusCode.NOT_FOUND,
        AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
        Changed: grpc.StatusCode.ABORTED,
        FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
        Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
        ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Unavailable: grpc.StatusCode.UNAVAILABLE,
        CallAbandoned: grpc.StatusCode.CANCELLED,
        RequestTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
        MethodNotFound: grpc.StatusCode.UNIMPLEMENTED,
    }
)


def status_from_error(error: Exception, call_id: str) -> grpc.Status:
    """Build the status a client gets for `error`.

    A GatekeeperError becomes the code of its kind and its own message, with one `ErrorInfo`, a `BadRequest` if it names
    fields and a `RetryInfo` if waiting helps; long texts are cut. If the system refused a descriptor or memory, the
    server is unavailable, not broken. Anything else becomes INTERNAL "internal error" with
    `call_id` and nothing of the exception: its text may contain a secret.

    Args:
        error: The failure of the call.
        call_id: The server's id of the call, as logged.
    """
    if _is_exhausted(error):
        error = Unavailable("the server has no free file descriptor or memory; retry later", retry_after_s=1.0)
    if isinstance(error, GatekeeperError) and (code := _code(error)):
        return _status(code, _clipped(str(error), _MAX_MESSAGE_BYTES), _details(error))
    info = _error_info(GatekeeperError.reason, {"call_id": call_id})
    return _status(grpc.StatusCode.INTERNAL, "internal error", [info])


def reason_of(status: grpc.Status) -> str:
    """Return the reason in a status that `status_from_error` has made."""
    info = error_details_pb2.ErrorInfo()
    for key, value in status.trailing_metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status_pb2.Status.FromString(value).details[0].Unpack(info)
    return str(info.reason)


def _is_exhausted(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _EXHAUSTED)


def _code(error: GatekeeperError) -> grpc.StatusCode | None:
    """Look the error's kind up, nearest class first, so that a kind may be refined; None for a kind without a row."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), None)


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> grpc.Status:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    rich: grpc.Status = rpc_status.to_status(status)
    return rich


def _details(error: GatekeeperError) -> list[Message]:
    details: list[Message] = [_error_info(error.reason, error.metadata)]
    if error.violations:
        details.append(error_details_pb2.BadRequest(field_violations=_violations(error.violations)))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _error_info(reason: str, variables: Mapping[str, str]) -> error_details_pb2.ErrorInfo:
    room = _MAX_VARIABLES_BYTES // max(1, min(len(variables), _MAX_VARIABLES))
    metadata = {name: _clipped(value, room) for name, value in list(variables.items())[:_MAX_VARIABLES]}
    return error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=metadata)


def _violations(violations: tuple[FieldViolation, ...]) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    for violation in violations[:_MAX_VIOLATIONS]:
        yield error_details_pb2.BadRequest.FieldViolation(
            field=_clipped(violation.field, _MAX_DETAIL_BYTES),
            description=_clipped(violation.description, _MAX_DETAIL_BYTES),
        )


def _clipped(text: str, max_bytes: int) -> str:
    """Return `text` as valid UTF-8 of at most `max_bytes` bytes; what is cut off is marked with "..."."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "..."
