"""Turns exceptions into statuses, the only place that does; `wire.status` has the table."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog

from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.transport.grpcio_internals import is_aborted, is_cancelled
from gatekeeper_grpc.wire.status import status_from_error

_log = structlog.get_logger(__name__)


@contextmanager
def errors_as_status(context: Any, *, method: str, call_id: str) -> Iterator[None]:
    """End the call with the status of the exception that the block raises; log unexpected ones.

    Two exceptions propagate unchanged: the one of `context.abort`, which has set a status already, and grpcio's own
    when the client has disconnected, which is no error.
    """
    try:
        yield
    except Exception as error:
        if is_aborted(context) or (isinstance(error, grpc.RpcError) and is_cancelled(context)):
            raise
        if not isinstance(error, GatekeeperError):
            _log.exception("rpc_failed", method=method)
        _abort(context, status_from_error(error, call_id))


def _abort(context: Any, status: grpc.Status) -> None:
    # Not `abort_with_status`: it would replace the metadata set so far, and with it the call id.
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *status.trailing_metadata))
    context.abort(status.code, status.details)
