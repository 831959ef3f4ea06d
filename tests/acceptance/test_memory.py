"""What strangers can make a server hold: the memory of the process, and who is served during that."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.faults.proxy import proxied
from tests.support.http2 import Http2
from tests.support.processes import TIMEOUT_S, Gatekeeper, start, stop

EVALUATE = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
MIB = 1 << 20
LARGEST = 4 * MIB
# The promise, and room for the interpreter and the allocator.
MOST_HELD = (64 + 16) * MIB


@contextmanager
def serving(data_dir: Path, program: Sequence[str] = ("gatekeeper_grpc",)) -> Iterator[Gatekeeper]:
    with start("serve", data_dir=data_dir, program=program) as process:
        try:
            yield Gatekeeper(process, data_dir)
        finally:
            stop(process)


def unfinished_calls(client: Http2, *, count: int, size: int) -> list[int]:
    streams = [client.open_call(EVALUATE) for _ in range(count)]
    for stream in streams:
        client.announce(stream, size)
    return streams


def growth_under_attack(server: Gatekeeper, *, calls: int, size: int) -> int:
    """Let calls on three connections send as much as they may of a message; return by how much the process grew."""
    before = server.resident_bytes()
    with ExitStack() as stack:
        clients = [stack.enter_context(Http2.connected(server.port, source=f"127.0.1.{n + 1}")) for n in range(3)]
        for client in clients:
            client.read_for(0.2)
        streams = [(client, unfinished_calls(client, count=calls // 3, size=size)) for client in clients]
        grown = [0]
        for _ in range(30):
            for client, opened in streams:
                for stream in opened:
                    client.fill(stream, size // 8)
                client.read_for(0.02)
            grown.append(server.resident_bytes() - before)
    return max(grown)


@pytest.mark.promise("F1")
@pytest.mark.parametrize("size", [8 * MIB - 1, LARGEST - 1], ids=["8 MiB", "the largest"])
def test_300_unfinished_calls_grow_the_process_by_64_mib_at_most(size: int, gatekeeper: Gatekeeper) -> None:
    assert growth_under_attack(gatekeeper, calls=300, size=size) < MOST_HELD


def test_twin_receiving_all_messages_at_once_it_grows_by_more(data_dir: Path) -> None:
    with serving(data_dir, ("tests.faults.sabotaged", "all_messages_at_once")) as sabotaged:
        assert growth_under_attack(sabotaged, calls=90, size=LARGEST - 1) > MOST_HELD


@pytest.mark.promise("F1")
def test_during_that_a_client_at_another_address_is_served(gatekeeper: Gatekeeper) -> None:
    with (
        Http2.connected(gatekeeper.port, source="127.0.1.1") as attacker,
        proxied(gatekeeper.port, source="127.0.2.1") as proxy,
        grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel,
    ):
        attacker.read_for(0.2)
        unfinished_calls(attacker, count=100, size=LARGEST - 1)
        stub = EvaluationServiceStub(channel)

        assert all(stub.EvaluateFlags(ANNA, timeout=TIMEOUT_S).flags for _ in range(50))
