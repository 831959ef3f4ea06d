"""Fuzzes a real server: clients call it side by side, and between two parts of the calls its state is judged."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import grpc

from tests.fuzz.calls import Call, Caller
from tests.fuzz.contract import Message, Method, methods_of
from tests.fuzz.judge import MAX_CALL_S, Outcome, Verdict
from tests.fuzz.state import state_faults
from tests.fuzz.valid import kind_of
from tests.fuzz.world import World
from tests.support.processes import KEYS, Gatekeeper, start, stop
from tests.support.servers import access_token

# Four keep two cores busy; more would only queue.
CLIENTS = 4
PARTS = 10
_ENDLESS_S = 0.1
_CALL_TIMEOUT_S = 2 * MAX_CALL_S
_SETTINGS = {**KEYS, "GATEKEEPER_ACCESS_TOKEN_TTL_S": "3600"}
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do. The same plan with one client makes the same calls."""

    calls: int
    seed: int
    clients: int = CLIENTS
    parts: int = PARTS


def fuzz(plan: Plan, folder: Path, *, sabotage: str = "", tell: Callable[[str], None] = lambda _line: None) -> Verdict:
    """Fuzz a server that is started for it in `folder`; `sabotage` is one of `tests.faults.sabotaged`'s, for twins."""
    verdict = Verdict()
    with _serving(folder / "data", sabotage) as server, server.channel() as channel:
        methods = methods_of(channel)
        worlds = [World(Random(f"{plan.seed}-{client}"), client=client) for client in range(plan.clients)]
        for before, after in pairwise(range(0, plan.calls + 1, max(1, plan.calls // plan.parts))):
            _run_part(server, methods, worlds, (after - before) // plan.clients, verdict)
            for fault in state_faults(server, folder / "fresh", _users(worlds)):
                verdict.find(fault)
            verdict.memory_bytes.append(server.resident_bytes())
            tell(str(verdict))
    verdict.conclude()
    return verdict


def _users(worlds: Sequence[World]) -> list[str]:
    """Some users of each client, and those that all share."""
    return sorted({name for world in worlds for name in (*world.names["user"][:20], *world.names["user"][-30:])})


@contextmanager
def _serving(data_dir: Path, sabotage: str) -> Iterator[Gatekeeper]:
    program = ("tests.faults.sabotaged", sabotage) if sabotage else ("gatekeeper_grpc",)
    with start("serve", data_dir=data_dir, program=program, **_SETTINGS) as process:
        try:
            yield Gatekeeper(process, data_dir)
        finally:
            stop(process)


def _run_part(
    server: Gatekeeper, methods: Sequence[Method], worlds: Sequence[World], calls: int, verdict: Verdict
) -> None:
    token = access_token(server.dsn, "admin")
    clients = [_Client(server, Caller(methods, world, token), world, verdict) for world in worlds]
    with ThreadPoolExecutor(len(clients)) as threads:
        for running in [threads.submit(client.run, calls) for client in clients]:
            running.result()


class _Client:
    """One client with a connection of its own."""

    def __init__(self, server: Gatekeeper, caller: Caller, world: World, verdict: Verdict) -> None:
        self._server = server
        self._caller = caller
        self._world = world
        self._verdict = verdict

    def run(self, calls: int) -> None:
        """Make so many calls."""
        with self._server.channel() as channel:
            for _ in range(calls):
                self._make(channel, self._caller.next())

    def _make(self, channel: grpc.Channel, call: Call) -> None:
        began = time.monotonic()
        code, details, responses = _sent(channel, call)
        took_s = time.monotonic() - began
        self._verdict.add(Outcome(call=call, code=code, details=details, took_s=took_s))
        if call.request is not None:
            self._learn(call.method, call.request, code, responses)

    def _learn(self, method: Method, request: Message, code: grpc.StatusCode, responses: list[bytes]) -> None:
        if code is grpc.StatusCode.OK and responses:
            self._world.learn(method, request, method.response.FromString(responses[-1]))
        elif code is grpc.StatusCode.NOT_FOUND:
            for field in ("key", "flag_key", "segment_key", "user_id", "username", "key_id"):
                self._world.forget(kind_of(method), str(getattr(request, field, "")))


def _sent(channel: grpc.Channel, call: Call) -> tuple[grpc.StatusCode, str, list[bytes]]:
    """Send a call; a stream that never ends by itself counts as OK if it is open for a while."""
    timeout_s = _ENDLESS_S if call.method.is_endless else _CALL_TIMEOUT_S
    # On the wire, nothing tells the four kinds of methods apart.
    rpc: Any = channel.stream_stream(call.method.path, None, None)
    responses: list[bytes] = []
    try:
        responses.extend(rpc(iter(call.messages), metadata=call.metadata, timeout=timeout_s))
    except grpc.RpcError as error:
        if call.method.is_endless and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return grpc.StatusCode.OK, "", responses
        return error.code(), error.details() or "", responses
    return grpc.StatusCode.OK, "", responses
