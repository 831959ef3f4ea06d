"""Redis as a storage of the last-known-good snapshot: a list of pieces, replaced atomically, for all instances."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.redis_bus.link import RedisLink

# Sending this takes a small part of a command's time limit, on any network that Redis is used on.
_PIECE_BYTES = 64 << 10
# The first piece holds the header.
_FIRST_PIECE_BYTES = 4 << 10
# A writer that takes longer loses its lock, and what it wrote expires.
_LOCK_MS = 30_000
# The snapshot of an abandoned installation expires. A running one renews it every hour.
_EXPIRES_AFTER_S = 30 * 24 * 3600

_UNLOCK = """
    if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
    return 1
"""

# Only for the holder of the lock: a slow writer must not replace a newer snapshot by an older one.
_REPLACE = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('EXPIRE', KEYS[2], ARGV[2])
    redis.call('RENAME', KEYS[2], KEYS[3])
    return 1
"""


class RedisSnapshotStorage:
    """Keeps pieces in a list under the first of `prefixes`. It reads the other prefixes too; a write removes them.

    The prefixes belong to the data keys, newest first. So two installations on one Redis do not collide, and a snapshot
    that an older key sealed is still found after a key rotation.
    """

    name = "redis"

    def __init__(self, link: RedisLink, prefixes: Sequence[str]) -> None:
        self._link = link
        self._token = secrets.token_hex(16)
        self.use(prefixes)

    def use(self, prefixes: Sequence[str]) -> None:
        """Keep the snapshot under other names from the next write on."""
        self._keys = [f"{prefix}:snapshot" for prefix in prefixes]
        self._lock_key = f"{self._keys[0]}:lock"

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the write lock inside the block; the block gets False when another writer holds it."""
        is_locked = self._link.ask(lambda client: client.set(self._lock_key, self._token, nx=True, px=_LOCK_MS))
        try:
            yield bool(is_locked)
        finally:
            if is_locked:
                with suppress(Unavailable):  # The lock expires.
                    self._run(_UNLOCK, [self._lock_key], self._token)

    def read(self, size: int | None = None) -> bytes:
        """Return the snapshot, or the first `size` bytes of it; none when nothing is stored.

        All pieces are read with one command, because a writer may replace them at any time. `size` is at most that of
        the first piece.
        """
        last = -1 if size is None else 0
        for key in self._keys:
            # Any: without decoding the answers are bytes, which the published types do not say.
            pieces: Any = self._link.ask(lambda client, key=key: client.lrange(key, 0, last))  # type: ignore[misc]
            if pieces:
                return b"".join(pieces)[:size]
        return b""

    def write(self, pieces: Iterable[bytes]) -> None:
        """Replace the content by `pieces`, atomically for every reader.

        Raises:
            Unavailable: Redis does not answer, or took too long.
        """
        new = f"{self._keys[0]}:{self._token}"
        self._link.ask(lambda client: client.unlink(new))
        for piece in _joined(pieces):
            self._append(new, piece)
        if not self._run(_REPLACE, [self._lock_key, new, self._keys[0]], self._token, _EXPIRES_AFTER_S):
            raise Unavailable("Redis took too long to take the snapshot")
        for outdated in self._keys[1:]:
            self._link.ask(lambda client, key=outdated: client.unlink(key))  # type: ignore[misc]

    def _append(self, key: str, piece: bytes) -> None:
        self._link.ask(lambda client: client.rpush(key, piece))
        self._link.ask(lambda client: client.pexpire(key, _LOCK_MS))

    def _run(self, script: str, keys: Sequence[str], *arguments: object) -> bool:
        answer: Any = self._link.ask(lambda client: client.eval(script, len(keys), *keys, *map(str, arguments)))
        return bool(answer)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of the size that is sent to Redis."""
    buffer, wanted = bytearray(), _FIRST_PIECE_BYTES
    for piece in pieces:
        buffer += piece
        while len(buffer) >= wanted:
            yield bytes(buffer[:wanted])
            del buffer[:wanted]
            wanted = _PIECE_BYTES
    if buffer:
        yield bytes(buffer)
