"""Clients from several addresses of loopback: a relay for each, which connects to the server from that address."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 10.0


@contextmanager
def seen_from(address: str, port: int) -> Iterator[str]:
    """Yield a target; what connects to it reaches the server at `port` from `address`, such as "127.0.1.1"."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=f"relay-{address}")
    thread.start()
    relay = _Relay(address, port)
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(relay.accept, "127.0.0.1", 0), loop).result()
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(relay.close(server), loop).result(_TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_TIMEOUT_S)
        loop.close()


class _Relay:
    def __init__(self, address: str, port: int) -> None:
        self._address = address
        self._port = port
        self._connections: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))
            try:
                await asyncio.gather(_pump(reader, back), _pump(there, writer))
            finally:
                back.transport.abort()
        writer.transport.abort()
        self._connections.discard(connection)

    async def close(self, server: asyncio.Server) -> None:
        server.close()
        for connection in [*self._connections]:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK_BYTES):
        sink.write(data)
        await sink.drain()
    sink.transport.abort()
