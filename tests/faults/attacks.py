"""Attacks from addresses of their own, in a process of their own: `python -m tests.faults.attacks NAME PORT SECONDS`.

Prints a JSON object with what the attacker saw. Further arguments are NAME=VALUE, as the attack's function names them.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle

from tests.faults.http2 import Connection, Crowd, announced

EVALUATE = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
BULK = "/gatekeeper.v1.EvaluationService/BulkEvaluateFlags"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
GET_FLAG = "/gatekeeper.v1.AdminService/GetFlag"

_ADDRESS = "127.0.1.1"
_STREAMS = 100
"""That a connection may have at once."""
_MESSAGE_BYTES = (8 << 20) - 1
_SENT_BYTES = 7 << 20
_KEPT_UP_S = 3.0
"""How often a held stream sends an empty message: often enough to count as alive."""
_PAUSE_S = 0.05
"""Between the end of a call and the next try: an attacker that spins would measure its own use of the machine."""
_POLL_S = 0.05


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
                connection.call_raw(GET_FLAG, b"", metadata=(("authorization", f"Bearer {token}"),))
                connection.flush()


ATTACKS: dict[str, Callable[..., None]] = {attack.__name__: attack for attack in (unfinished, held, body_less)}


def _until(seconds: float, crowd: Crowd) -> Iterator[float]:
    """Take turns until the time is over, reading what has come between two of them."""
    ends_at = time.monotonic() + seconds
    while (now := time.monotonic()) < ends_at:
        yield now
        crowd.poll(_POLL_S)


def _connected(crowd: Crowd, count: int) -> Callable[[], list[Connection]]:
    """Return a function that gives the connections, after it has replaced those that were lost."""

    def connections() -> list[Connection]:
        for _ in range(count - len(crowd)):
            if crowd.connect(_ADDRESS) is None:
                break
        return [*crowd]

    return connections


def main(name: str, port: str, seconds: str, *options: str) -> None:
    """Attack, then print what was seen."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    given = dict(option.split("=", 1) for option in options)
    values = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
    with closing(Crowd(int(port))) as crowd:
        ATTACKS[name](crowd, float(seconds), **values)
        sys.stdout.write(json.dumps({**crowd.tally.document(), "open": crowd.open_calls(), "connections": len(crowd)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
