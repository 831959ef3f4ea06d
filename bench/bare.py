"""The least that a call costs in Python: the core of grpcio alone, without `grpc._server`, and a constant answer.

It keeps no promise: no limit, no turn, no drain. What `gatekeeper serve` takes above it is Python, grpcio's and ours.
"""

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.empty import SERVICE
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsResponse
from gatekeeper_grpc.transport.listener import OPTIONS

# Not in grpcio's published types.
cygrpc: Any = importlib.import_module("grpc._cython.cygrpc")  # noqa: TID251 - That is what it measures.
METHOD = f"/{SERVICE}/EvaluateFlags"
ANSWER = EvaluateFlagsResponse(flags={f"flag-{number:05}": True for number in range(20)}).SerializeToString()
# As long as the id of a call.
METADATA = (("x-gatekeeper-call-id", "0123456789abcdef"),)

Callback = Callable[[Any], None]


def main() -> None:
    """Serve on a free port, which standard error names as `gatekeeper serve` does, until the process is ended."""
    queue, server = cygrpc.CompletionQueue(), cygrpc.Server(OPTIONS, False)
    server.register_completion_queue(queue)
    server.register_method(METHOD)
    port = server.add_http2_port(b"127.0.0.1:0")
    server.start()
    ask_for_a_call = partial(server.request_registered_call, queue, queue, METHOD, METHOD)
    ask_for_a_call()
    sys.stderr.write(json.dumps({"event": "serving", "port": port}) + "\n")
    sys.stderr.flush()
    while True:
        event = queue.poll()
        if isinstance(event, cygrpc.RequestCallEvent):
            ask_for_a_call()
            event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), partial(_answer, event.call))
        else:
            event.tag(event)


def _answer(call: Any, _event: Any) -> None:
    operations = (
        cygrpc.SendInitialMetadataOperation(None, 0),
        cygrpc.SendMessageOperation(ANSWER, 0),
        cygrpc.SendStatusFromServerOperation(METADATA, cygrpc.StatusCode.ok, b"", 0),
        cygrpc.ReceiveCloseOnServerOperation(0),
    )
    call.start_server_batch(operations, _forget)


def _forget(_event: Any) -> None:
    """Keep nothing of a call that is over."""


if __name__ == "__main__":
    main()
