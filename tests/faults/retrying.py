"""A client that retries: several servers, a deadline for each attempt, and the next attempt on another server."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import grpc

from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.faults.figures import EVALUATION_DEADLINE_S
from tests.faults.fleet import ALICE
from tests.faults.load import Load
from tests.support.processes import connect

_ATTEMPTS = 8
_ATTEMPT_TIMEOUT_S = 1.0
# gRPC's own retries, for what fails at once; they take the next server in turn.
_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.4s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)
CALLS = 10_000
CLIENTS = 8
PER_S = 150


class RetryingClient:
    """Evaluates on any of the servers on these ports. A silent connection is given up for a new one."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        self.retries = 0
        self._channel = self._connect()

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def evaluate(self) -> EvaluateFlagsResponse:
        """Ask for all flags, several times if need be; raises what the last attempt raised."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._attempt()
            except grpc.RpcError as error:
                self.retries += 1
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._reconnect()
                elif error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
        return self._attempt()

    def _attempt(self) -> EvaluateFlagsResponse:
        return EvaluationServiceStub(self._channel).EvaluateFlags(ALICE, timeout=_ATTEMPT_TIMEOUT_S)

    def _reconnect(self) -> None:
        self._channel.close()
        self._channel = self._connect()

    def _connect(self) -> grpc.Channel:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 100),
            ("grpc.service_config", _SERVICE_CONFIG),
        ]
        return grpc.insecure_channel(self._target, options=options)


class OneTry:
    """Evaluates on one server, and takes the first answer for the last."""

    def __init__(self, port: int) -> None:
        self._channel = connect(port)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def evaluate(self) -> EvaluateFlagsResponse:
        """Ask for all flags, once."""
        return EvaluationServiceStub(self._channel).EvaluateFlags(ALICE, timeout=EVALUATION_DEADLINE_S)


@contextmanager
def retrying(ports: Sequence[int]) -> Iterator[Load]:
    """Clients that try again, all on the same servers."""
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(RetryingClient(ports))) for _ in range(CLIENTS)]
        yield Load(clients, per_s=PER_S)
