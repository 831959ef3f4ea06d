"""Turns exceptions into statuses, the only place that does; `wire.status` has the table."""

from typing import Any, NoReturn

import grpc
import structlog

from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.transport.grpcio_internals import is_aborted, is_cancelled
from gatekeeper_grpc.wire.status import status_from_error

_log = structlog.get_logger(__name__)


def end_with(error: Exception, context: Any, *, method: str, call_id: str) -> NoReturn:
    """End the call with the status of `error`, by raising; log an unexpected one. Call it where `error` is handled.

    Two exceptions propagate unchanged: the one of `context.abort`, which has set a status already, and grpcio's own
    when the client has disconnected, which is no error.
    """
    if is_aborted(context) or (isinstance(error, grpc.RpcError) and is_cancelled(context)):
        raise error
    if not isinstance(error, GatekeeperError):
        _log.exception("rpc_failed", method=method)
    status = status_from_error(error, call_id)
    # Not `abort_with_status`: it would replace the metadata set so far, and with it the call id.
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *status.trailing_metadata))
    context.abort(status.code, status.details)
    raise AssertionError("unreachable: abort raises")
