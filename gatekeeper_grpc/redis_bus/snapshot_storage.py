"""Redis as a place for the last-known-good snapshot: a list of pieces, replaced at one blow, for all instances."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.redis_bus.link import RedisLink

# A small part of what one question may take, on any network that Redis is used on.
_PIECE_BYTES = 64 << 10
# The first piece alone tells what the rest is.
_FIRST_PIECE_BYTES = 4 << 10
_READ_ATTEMPTS = 3
# A writer that has not ended within this time has lost its claim, and what it wrote goes by itself.
_CLAIM_MS = 30_000
# An installation that is given up leaves nothing for ever; one that runs writes every hour.
_KEPT_S = 30 * 24 * 3600

_FREE_CLAIM = """
    if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
    return 1
"""

# Only who still holds the claim: a slow writer must not put something older in the place of what came meanwhile.
_REPLACE = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('EXPIRE', KEYS[2], ARGV[2])
    redis.call('RENAME', KEYS[2], KEYS[3])
    return 1
"""


class RedisSnapshotStorage:
    """Pieces in a list under the first of `prefixes`; what stands under another is read, and goes with the next write.

    The prefixes are those of the keys that seal it, newest first: so two installations on one Redis do not meet, and a
    new key does not hide what the old one sealed.
    """

    name = "redis"

    def __init__(self, link: RedisLink, prefixes: Sequence[str]) -> None:
        self._link = link
        self._keys = [f"{prefix}:snapshot" for prefix in prefixes]
        self._claim_key = f"{self._keys[0]}:claim"
        self._token = secrets.token_hex(16)

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Be the only one to write for the length of a block; False in it when somebody else is."""
        claim = self._link.ask(lambda client: client.set(self._claim_key, self._token, nx=True, px=_CLAIM_MS))
        try:
            yield bool(claim)
        finally:
            if claim:
                with suppress(Unavailable):  # It goes by itself.
                    self._run(_FREE_CLAIM, [self._claim_key], self._token)

    def read_header(self, size: int) -> bytes:
        """Return the first bytes, at most `size`; none when nothing is kept."""
        for key in self._keys:
            if first := self._piece(key, 0):
                return first[:size]
        return b""

    def read(self) -> bytes:
        """Return all of it; nothing when nothing is kept."""
        for key in self._keys:
            if kept := self._read(key):
                return kept
        return b""

    def write(self, pieces: Iterable[bytes]) -> None:
        """Put `pieces` in the place of what was there, at one blow and for all who read."""
        new = f"{self._keys[0]}:{self._token}"
        self._link.ask(lambda client: client.unlink(new))
        for piece in _joined(pieces):
            self._append(new, piece)
        if not self._run(_REPLACE, [self._claim_key, new, self._keys[0]], self._token, _KEPT_S):
            raise Unavailable("Redis took too long to take the snapshot")
        for outdated in self._keys[1:]:
            self._link.ask(lambda client, key=outdated: client.unlink(key))  # type: ignore[misc]

    def _append(self, key: str, piece: bytes) -> None:
        self._link.ask(lambda client: client.rpush(key, piece))
        self._link.ask(lambda client: client.pexpire(key, _CLAIM_MS))

    def _read(self, key: str) -> bytes:
        """Read piece by piece, from the beginning again when it was replaced meanwhile."""
        for _ in range(_READ_ATTEMPTS):
            pieces = [*self._pieces(key)]
            if not pieces or self._piece(key, 0) == pieces[0]:
                return b"".join(pieces)
        return b""

    def _pieces(self, key: str) -> Iterator[bytes]:
        number = 0
        while piece := self._piece(key, number):
            yield piece
            number += 1

    def _piece(self, key: str, number: int) -> bytes:
        # Any: what a Redis that decodes nothing answers are bytes, which the published types do not say.
        found: Any = self._link.ask(lambda client: client.lindex(key, number))
        return bytes(found or b"")

    def _run(self, script: str, keys: Sequence[str], *arguments: object) -> bool:
        answer: Any = self._link.ask(lambda client: client.eval(script, len(keys), *keys, *map(str, arguments)))
        return bool(answer)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of the size that Redis is sent."""
    waiting, wanted = bytearray(), _FIRST_PIECE_BYTES
    for piece in pieces:
        waiting += piece
        while len(waiting) >= wanted:
            yield bytes(waiting[:wanted])
            del waiting[:wanted]
            wanted = _PIECE_BYTES
    if waiting:
        yield bytes(waiting)
