"""The watching side of `bench.watch`, a process of its own: `python -m bench.watchers PORT COUNT`.

Opens COUNT streams, 90 on each connection, and prints "open" once each has received its first message. Then it prints,
for each revision that changes a flag, when the first and the last watcher received it: one line of JSON, in seconds of
the system's monotonic clock, which all processes share.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import grpc

from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

STREAMS_PER_CONNECTION = 90


class Audience:
    """All watchers of this process."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._told: Counter[int] = Counter()
        self._first: dict[int, float] = {}
        self._open = 0
        self._connecting = asyncio.Semaphore(STREAMS_PER_CONNECTION)

    async def watch(self, channel: grpc.aio.Channel) -> None:
        """Read one stream to its end."""
        call = await self._opened(channel)
        self._open += 1
        if self._open == self._size:
            print("open", flush=True)
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.changes:
                self._note(message.revision, time.monotonic())

    async def _opened(self, channel: grpc.aio.Channel) -> Any:
        """Open a stream and read its first message; at most 100 streams do that at once."""
        async with self._connecting:
            call = EvaluationServiceStub(channel).WatchFlags(evaluation.WatchFlagsRequest())
            await call.read()
            return call

    def _note(self, revision: int, now: float) -> None:
        self._first.setdefault(revision, now)
        self._told[revision] += 1
        if self._told[revision] == self._size:
            print(json.dumps({"revision": revision, "first": self._first[revision], "last": now}), flush=True)


async def watch(port: int, count: int) -> None:
    """Open all streams and read them until the server or a signal ends them."""
    audience = Audience(count)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        for _ in range(-(-count // STREAMS_PER_CONNECTION))
    ]
    await asyncio.gather(*(audience.watch(channels[number // STREAMS_PER_CONNECTION]) for number in range(count)))


if __name__ == "__main__":
    asyncio.run(watch(*map(int, sys.argv[1:])))
