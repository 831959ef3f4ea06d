"""Calls of methods that the server does not have: refused in words, and without a trace of the name."""

import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from gatekeeper_grpc.interceptors.policy import POLICIES
from gatekeeper_grpc.interceptors.unknown_method import NearestMethod
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport.admission import PoolName
from tests.support.clients import TIMEOUT_S, Refusal, refusal_of

PORTS = ["port", "health_port"]
NEAREST = NearestMethod(POLICIES)
GET_FLAG = "/gatekeeper.v1.AdminService/GetFlag"


@pytest.fixture
def channel(server: GatekeeperServer, request: pytest.FixtureRequest) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{getattr(server, request.param)}") as channel:
        yield channel


def call(channel: grpc.Channel, method: str) -> bytes:
    unary: Any = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    return bytes(unary(b"", timeout=TIMEOUT_S))


def not_found(**metadata: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_FOUND", metadata)


@pytest.mark.parametrize("channel", PORTS, indirect=True)
def test_an_unknown_method_is_refused_with_the_nearest_one(channel: grpc.Channel) -> None:
    method = "/gatekeeper.v1.AdminService/GetFlags"

    assert refusal_of(lambda: call(channel, method)) == not_found(method=method, nearest=GET_FLAG)


@pytest.mark.parametrize("channel", PORTS, indirect=True)
@pytest.mark.parametrize("method", ["/a.B/Nothing", "/no-slash", "/", "//"])
def test_without_a_near_one_the_refusal_names_none(channel: grpc.Channel, method: str) -> None:
    assert refusal_of(lambda: call(channel, method)) == not_found(method=method)


@pytest.mark.parametrize("channel", ["health_port"], indirect=True)
def test_a_method_of_another_port_is_its_own_nearest(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, GET_FLAG)

    assert "another port" in str(refused.value.details())


@pytest.mark.parametrize("channel", PORTS, indirect=True)
def test_an_unknown_method_is_refused_without_a_message(channel: grpc.Channel) -> None:
    done = threading.Event()

    def nothing() -> Iterator[bytes]:
        done.wait(TIMEOUT_S)
        yield from ()

    stream: Any = channel.stream_stream("/a.B/Nothing", request_serializer=bytes, response_deserializer=bytes)

    assert refusal_of(lambda: list(stream(nothing(), timeout=TIMEOUT_S))) == not_found(method="/a.B/Nothing")
    done.set()


@pytest.mark.parametrize("channel", ["port"], indirect=True)
def test_a_long_name_is_cut_and_takes_no_worker(server: GatekeeperServer, channel: grpc.Channel) -> None:
    refusal = refusal_of(lambda: call(channel, "/gatekeeper.v1.AdminService/" + "x" * 7_000))

    assert refusal == not_found(method="/gatekeeper.v1.AdminService/" + "x" * 72 + "...")
    assert server.pools[PoolName.OPERATIONS].in_flight == 0


@pytest.mark.parametrize("channel", ["port"], indirect=True)
def test_nothing_is_kept_of_unknown_names(
    server: GatekeeperServer, channel: grpc.Channel, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(50):
        refusal_of(lambda number=number: call(channel, f"/a.B/Canary{number}"))  # type: ignore[misc]

    with urllib.request.urlopen(f"http://127.0.0.1:{server.ops_port}/metrics", timeout=TIMEOUT_S) as answer:
        assert b"Canary" not in answer.read()
    printed = capsys.readouterr()
    assert "Canary" not in printed.out + printed.err


@pytest.mark.parametrize("method", POLICIES)
def test_one_wrong_letter_finds_the_method(method: str) -> None:
    service, _, own = method.rpartition("/")
    found = {NEAREST.find(f"{service}/{wrong}") for wrong in (own[:-1], f"{own}s", f"x{own[1:]}", own.lower())}

    assert {name.rpartition("/")[2] for name in found} == {own}


def test_another_package_or_service_finds_the_method() -> None:
    assert NEAREST.find("/AdminService/GetFlag") == NEAREST.find("/gatekeeper.v2.Flags/getFlag") == GET_FLAG
