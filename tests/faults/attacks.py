"""Attacks from addresses of their own, in a process of their own: `python -m tests.faults.attacks NAME PORT SECONDS`.

Prints a line when it begins, and at the end a JSON object with what the attacker saw. Further arguments are NAME=VALUE,
as the attack's function names them; `tls=1` attacks by TLS.
"""

import json
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from gatekeeper_client.v1.admin_service_pb2 import ListFlagsRequest, UpdateFlagRequest
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest, RefreshTokenRequest
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.http2 import Connection, Crowd, Metadata, announced

ADDRESS = "127.0.1.1"
READY = "ready"
"""The first line that is printed: the attack begins."""

EVALUATE = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
BULK = "/gatekeeper.v1.EvaluationService/BulkEvaluateFlags"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LOGIN = "/gatekeeper.v1.AuthService/Login"
GET_FLAG = "/gatekeeper.v1.AdminService/GetFlag"
LIST_FLAGS = "/gatekeeper.v1.AdminService/ListFlags"
UPDATE_FLAG = "/gatekeeper.v1.AdminService/UpdateFlag"
REFRESH_TOKEN = "/gatekeeper.v1.AuthService/RefreshToken"

_STREAMS = 100
"""That a connection may have at once."""
_MESSAGE_BYTES = (8 << 20) - 1
_SENT_BYTES = 7 << 20
_KEPT_UP_S = 3.0
"""How often a held stream sends an empty message: often enough to count as alive."""
_PAUSE_S = 0.05
"""Between the end of a call and the next try: an attacker that spins would measure its own use of the machine."""
_POLL_S = 0.05
_HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01"
"""The first bytes of a handshake of TLS, of which most are missing."""
_REPLACED_PER_S = 200
"""How many idle connections are replaced: what opens thousands a second is another attack."""


def unfinished(crowd: Crowd, seconds: float, *, calls: int, size: int = _MESSAGE_BYTES) -> None:
    """Keep calls whose large message does not end, on as few connections as carry them."""
    sent = announced(size, min(size, _SENT_BYTES))
    connections = _connected(crowd, -(-calls // _STREAMS))
    for _ in _until(seconds, crowd):
        for connection in connections():
            while len(connection.open) < min(calls, _STREAMS):
                connection.call_raw(EVALUATE, sent)
            connection.flush()
        time.sleep(_PAUSE_S)


def held(crowd: Crowd, seconds: float, *, path: str, streams: int) -> None:
    """Keep streams on one connection, with an empty message each now and then; replace those that end."""
    connections, sent_at = _connected(crowd, 1), 0.0
    for _ in _until(seconds, crowd):
        now = time.monotonic()
        for connection in connections():
            if now - sent_at > _KEPT_UP_S:
                for stream in [*connection.open]:
                    connection.send(stream, b"")
            while len(connection.open) < streams:
                connection.call(path, b"", ends=False)
            connection.flush()
        sent_at = now if now - sent_at > _KEPT_UP_S else sent_at
        time.sleep(_PAUSE_S)


def body_less(crowd: Crowd, seconds: float, *, token: str, per_s: int) -> None:
    """Open so many admin calls a second with a good token and without a message."""
    began, opened = time.monotonic(), 0
    connections = _connected(crowd, 10)
    turns = cycle(range(10))
    for _ in _until(seconds, crowd):
        due = int((time.monotonic() - began) * per_s)
        kept = connections()
        while opened < due and kept:
            opened += 1
            connection = kept[next(turns) % len(kept)]
            if len(connection.open) < _STREAMS:
                connection.call_raw(GET_FLAG, b"", metadata=_bearer(token))
                connection.flush()


def idle(crowd: Crowd, seconds: float, *, connections: int, addresses: int) -> None:
    """Open connections that answer pings and call nothing; replace some of those that the server closes."""
    keep, began, replaced = _connected(crowd, connections, addresses=addresses), time.monotonic(), 0
    keep()
    for now in _until(seconds, crowd):
        if replaced < (now - began) * _REPLACED_PER_S:
            replaced += 1
            keep(at_once=1)


def handshakes(crowd: Crowd, seconds: float, *, connections: int, addresses: int) -> None:
    """Keep connections that begin the handshake of TLS and do not go on; replace those that the server closes."""
    sources, kept = cycle(f"127.0.1.{number}" for number in range(1, addresses + 1)), list[socket.socket]()
    for _ in _until(seconds, crowd):
        kept = [connection for connection in kept if not _is_closed(connection)]
        for _ in range(min(connections - len(kept), round(_REPLACED_PER_S * _POLL_S * 10))):
            if (connection := crowd.dial(next(sources), _HALF_A_HELLO)) is not None:
                kept.append(connection)
        time.sleep(_PAUSE_S)


def _is_closed(connection: socket.socket) -> bool:
    """Find out whether the server has closed a connection, and close our end then."""
    try:
        is_closed = not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        is_closed = True
    if is_closed:
        connection.close()
    return is_closed


def in_flight(crowd: Crowd, seconds: float, *, calls: int, addresses: int, token: str = "") -> None:
    """Keep so many calls in flight: evaluations or, with a token, calls of each kind that has a pool of its own."""
    connections, kinds = _connected(crowd, calls // _STREAMS, addresses=addresses), cycle(_calls(token))
    for _ in _until(seconds, crowd):
        for connection in connections():
            while len(connection.open) < _STREAMS:
                path, message, metadata = next(kinds)
                connection.call(path, message, metadata=metadata)
            connection.flush()


def logins(crowd: Crowd, seconds: float, *, flying: int, networks: int, neighbours: int) -> None:
    """Keep so many logins with wrong names in flight, from so many networks (/24) and addresses of each, in turn."""
    sources = [f"127.{network}.1.{number}" for number in range(1, neighbours + 1) for network in range(networks)]
    turns, kept = enumerate(cycle(sources)), dict[str, Connection | None]()
    for _ in _until(seconds, crowd):
        while crowd.open_calls() < flying:
            number, source = next(turns)
            connection = kept.setdefault(source, crowd.connect(source) if source not in kept else None)
            if connection is not None:
                request = LoginRequest(username=f"user-{number}", password=f"a-wrong-password-{number}")
                connection.call(LOGIN, request.SerializeToString())
                connection.flush()
        time.sleep(_PAUSE_S)


def edit(crowd: Crowd, seconds: float, *, key: str, tokens: str) -> None:
    """Have editors, one for each token, change a flag again and again, each as soon as the last change is answered."""
    editors = tokens.split(",")
    connections, values = _connected(crowd, len(editors)), cycle([True, False])
    for _ in _until(seconds, crowd):
        for connection, token in zip(connections(), editors, strict=False):
            if not connection.open:
                change = UpdateFlagRequest(flag=Flag(key=key, default_value=next(values)), update_mask=_DEFAULT_VALUE)
                connection.call(UPDATE_FLAG, change.SerializeToString(), metadata=_bearer(token))
                connection.flush()


ATTACKS: dict[str, Callable[..., None]] = {
    attack.__name__: attack for attack in (unfinished, held, body_less, idle, handshakes, in_flight, edit, logins)
}

_DEFAULT_VALUE = FieldMask(paths=["default_value"])
_CONTEXT = EvaluationContext(user_id="anna")


def _calls(token: str) -> list[tuple[str, bytes, Metadata]]:
    messages: dict[str, Message] = {EVALUATE: EvaluateFlagsRequest(context=_CONTEXT)}
    if token:
        messages[BULK] = BulkEvaluateFlagsRequest(contexts=[_CONTEXT])
        messages[LIST_FLAGS] = ListFlagsRequest()
        messages[REFRESH_TOKEN] = RefreshTokenRequest(refresh_token="unknown")
    metadata = {LIST_FLAGS: _bearer(token)}
    return [(path, message.SerializeToString(), metadata.get(path, ())) for path, message in messages.items()]


def _bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def _until(seconds: float, crowd: Crowd) -> Iterator[float]:
    """Take turns until the time is over, reading what has come between two of them."""
    ends_at = time.monotonic() + seconds
    while (now := time.monotonic()) < ends_at:
        yield now
        crowd.poll(_POLL_S)


def _connected(crowd: Crowd, most: int, *, addresses: int = 1) -> Callable[..., list[Connection]]:
    """Return a function that gives the connections, after it has replaced those that were lost."""
    sources = cycle(f"127.0.1.{number}" for number in range(1, addresses + 1))

    def connections(at_once: int = most) -> list[Connection]:
        for _ in range(min(at_once, most - len(crowd))):
            if crowd.connect(next(sources)) is None:
                break
        return [*crowd]

    return connections


def main(name: str, port: str, seconds: str, *options: str) -> None:
    """Attack, then print what was seen."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    given = dict(option.split("=", 1) for option in options)
    values = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
    with closing(Crowd(int(port), tls=bool(values.pop("tls", 0)))) as crowd:
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        ATTACKS[name](crowd, float(seconds), **values)
        sys.stdout.write(json.dumps({**crowd.tally.document(), "open": crowd.open_calls(), "connections": len(crowd)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
