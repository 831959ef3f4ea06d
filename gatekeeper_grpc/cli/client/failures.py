"""Failed calls as one plain line and an exit code."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gatekeeper_grpc.cli.client.output import one_line

if TYPE_CHECKING:
    import grpc

NOT_FOUND, CREDENTIALS = 3, 5
# By the name of the status. Any other status is 1; 2 is a mistake in the command line or in a value.
EXIT_CODES: Mapping[str, int] = MappingProxyType(
    {
        "INVALID_ARGUMENT": 2,
        "NOT_FOUND": NOT_FOUND,
        "ALREADY_EXISTS": 4,
        "ABORTED": 4,
        "UNAUTHENTICATED": CREDENTIALS,
        "PERMISSION_DENIED": CREDENTIALS,
        "UNAVAILABLE": 6,
        "DEADLINE_EXCEEDED": 6,
        "RESOURCE_EXHAUSTED": 6,
        "FAILED_PRECONDITION": 7,
    }
)


class Failure(Exception):
    """Ends a client command: one line on standard error, and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(one_line(message))
        self.exit_code = exit_code


def not_logged_in(why: str) -> Failure:
    """Make the failure of a command that needs a login."""
    return Failure(f"{why}: run `gatekeeper login`", CREDENTIALS)


def failure_of(error: "grpc.RpcError", target: str, *, timeout_s: float) -> Failure:
    """Say what a status means: in the server's words if it sent an ErrorInfo, in ours if gRPC made the status."""
    code, text = error.code().name, str(error.details())
    reason = _reason_of(error)
    if reason:
        message = f"{text} ({reason})"
    elif code == "UNAVAILABLE":
        message = f"no server answers at {target}: start it, or name another with --server or GATEKEEPER_SERVER"
    elif code == "DEADLINE_EXCEEDED":
        message = f"{target} did not answer within {timeout_s:g} s"
    elif code == "UNIMPLEMENTED":
        message = f"{target} has no such method: it is no Gatekeeper server, or one of another release"
    else:
        message = f"{text} ({code})"
    return Failure(message, EXIT_CODES.get(code, 1))


def _reason_of(call: Any) -> str:  # grpcio raises an error that is the call, too.
    from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped] # noqa: PLC0415
    from grpc_status import rpc_status  # noqa: PLC0415

    try:
        status = rpc_status.from_call(call)
    except ValueError:  # The details do not match the status: a proxy made one of them.
        status = None
    info = ErrorInfo()
    found = any(detail.Unpack(info) for detail in status.details) if status else False
    return str(info.reason) if found else ""
