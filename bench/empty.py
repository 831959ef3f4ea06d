"""The floor of `bench.unary`: a plain unary handler of grpcio on four workers, with our options and an empty answer."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, EvaluateFlagsResponse
from gatekeeper_grpc.transport.listener import OPTIONS

SERVICE = "gatekeeper.v1.EvaluationService"


def main() -> None:
    """Serve on a free port, which standard error names as `gatekeeper serve` does, until the process is ended."""
    handler = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: EvaluateFlagsResponse(),
        request_deserializer=EvaluateFlagsRequest.FromString,
        response_serializer=EvaluateFlagsResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"EvaluateFlags": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stderr.write(json.dumps({"event": "serving", "port": port}) + "\n")
    sys.stderr.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
