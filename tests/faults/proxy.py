"""A network that can be broken while it is in use: a TCP proxy on loopback, switched between modes at run time."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path

Address = Path | int
"""A Unix socket, or a TCP port on loopback."""

_CHUNK_BYTES = 1 << 16
_CLOSE_TIMEOUT_S = 10.0
_LAST_STEPS_S = 0.01
# l_onoff, l_linger: a close then sends RST, and not FIN.
_NO_LINGER = struct.pack("ii", 1, 0)


class Mode(Enum):
    """How the network is."""

    PASS = auto()
    LATENCY = auto()
    """Every chunk is late by `latency_s`."""
    BLACKHOLE = auto()
    """Connections stay open and carry nothing, new ones included. What was sent arrives afterwards, as with TCP."""
    HALF_OPEN = auto()
    """What clients send arrives; what they are answered does not."""
    RESET = auto()
    """Connections are reset, new ones as soon as they are made."""
    REFUSE = auto()
    """Connections are reset, and nobody listens."""


_CUTTING = frozenset({Mode.RESET, Mode.REFUSE})
_SWALLOWING = frozenset({Mode.BLACKHOLE})


class ChaosProxy:
    """Forwards connections to `upstream`, from `start` to `close`, as well as the current mode lets it.

    Runs on a thread of its own. The port stays its own in every mode.

    Args:
        upstream: Where the connections lead.
        source: The address of loopback that they come from.
    """

    def __init__(self, upstream: Address, *, source: str = "127.0.0.1") -> None:
        self.upstream = upstream
        self._source = source
        self.mode = Mode.PASS
        self._latency_s = 0.0
        # Bound, never listening: nobody else gets the port while the proxy refuses.
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._switched = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy")

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self.switch(Mode.PASS)

    def close(self) -> None:
        """Cut all connections and stop listening."""
        self.switch(Mode.REFUSE)
        # Connections that are just being made get the time to be closed.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(_LAST_STEPS_S), self._loop).result(_CLOSE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_TIMEOUT_S)
        self._loop.close()
        self._reserved.close()

    def switch(self, mode: Mode, *, latency_s: float = 0.0) -> None:
        """Change the mode, and return when it acts."""
        changing = asyncio.run_coroutine_threadsafe(self._switch(mode, latency_s), self._loop)
        changing.result(_CLOSE_TIMEOUT_S)

    @contextmanager
    def broken(self, mode: Mode, *, latency_s: float = 0.0) -> Iterator[None]:
        """Break the network for the length of the block."""
        self.switch(mode, latency_s=latency_s)
        try:
            yield
        finally:
            self.switch(Mode.PASS)

    async def _switch(self, mode: Mode, latency_s: float) -> None:
        self.mode, self._latency_s = mode, latency_s
        switched, self._switched = self._switched, asyncio.Event()
        switched.set()
        if mode in _CUTTING:
            await self._cut_all()
        if mode is Mode.REFUSE:
            await self._stop_listening()
        elif self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=_bound(self.port), backlog=512)

    async def _cut_all(self) -> None:
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode in _CUTTING:
            _reset(writer)
            return
        connection = self._loop.create_task(self._forward(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        # Not in the task itself: one that is cancelled before its first step does not run at all.
        connection.add_done_callback(lambda _: _reset(writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side ends it."""
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._until_passing(_SWALLOWING)
            there, back = await _connect(self.upstream, self._source)
            try:
                await asyncio.gather(
                    self._pump(reader, back, stopped_by=_SWALLOWING),
                    self._pump(there, writer, stopped_by=_SWALLOWING | {Mode.HALF_OPEN}),
                )
            finally:
                _reset(back)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, stopped_by: frozenset[Mode]
    ) -> None:
        """Carry one direction to its end. The end of the stream is news as well, and waits like any other."""
        while True:
            data = await source.read(_CHUNK_BYTES)
            if self.mode is Mode.LATENCY:
                await asyncio.sleep(self._latency_s)
            await self._until_passing(stopped_by)
            if not data:
                sink.write_eof()
                return
            sink.write(data)
            await sink.drain()

    async def _until_passing(self, stopped_by: frozenset[Mode]) -> None:
        while self.mode in stopped_by:
            await self._switched.wait()


@contextmanager
def proxied(upstream: Address, *, source: str = "127.0.0.1") -> Iterator[ChaosProxy]:
    """Run a proxy for the length of the block."""
    proxy = ChaosProxy(upstream, source=source)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()


def _bound(port: int) -> socket.socket:
    """Bind a socket to a port on loopback; several may be bound to one while none but the last listens."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


async def _connect(upstream: Address, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(upstream, Path):
        # Resolved each time: it may lead through a link, and its own path may be longer than a socket's can be.
        return await asyncio.open_unix_connection(str(upstream.resolve()))
    return await asyncio.open_connection("127.0.0.1", upstream, local_addr=(source, 0))


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once; with RST, unless both ends have closed already."""
    peer = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
