"""A long line to a server: what is sent in either direction arrives later, in order, and as fast as before."""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

CHUNK_BYTES = 64 * 1024


@contextmanager
def long_line(port: int, round_trip_s: float) -> Iterator[int]:
    """Yield a port of this machine that leads to `port` over a line with this round trip, in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(port, round_trip_s / 2, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _run(port: int, late_s: float, told: Connection) -> None:
    asyncio.run(_serve(port, late_s, told))


async def _serve(port: int, late_s: float, told: Connection) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_carry(reader, far_writer, late_s), _carry(far_reader, writer, late_s))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    told.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late_s: float) -> None:
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while chunk := await reader.read(CHUNK_BYTES):
            loop.call_later(late_s, writer.write, chunk)
    loop.call_later(late_s, writer.close)
