"""A compact, immutable map from users to their individual targets, or to their memberships of segments.

One entry costs 25 bytes (a dict costs 111), so a million targets fit in 25 MB. Entries are kept in 4,096 shards by
user. Changing n users copies at most n shards and shares the rest, so an update blocks nobody, and needs no lock and no
background merge.
"""

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

_SHARDS = 4096
DIGEST_BYTES = 16
_OWNER_BYTES = 8
_NAME_BYTES = DIGEST_BYTES + _OWNER_BYTES
_ENTRY_BYTES = _NAME_BYTES + 1
_NOTHING: Mapping[int, int] = MappingProxyType({})
# With MD5, an attacker could make two ids collide and inherit targets. To copy it takes half the time of making one.
_NEW_HASH: Final = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"gatekeeper-users")


class UserEntry(NamedTuple):
    """Gives a user a `tag` for an owner; None removes it.

    `owner_id` is a flag or segment id, not negative; tags are 0 to 255. A tuple, because a snapshot is loaded from a
    million of them.
    """

    user_id: str
    owner_id: int
    tag: int | None


class UserIndex:
    """The tags of users, by user id. Immutable: `with_entries` returns a new index.

    Users are kept as 128-bit digests, which are short and do not reveal the ids.
    """

    __slots__ = ("_counts", "_shards")

    def __init__(self, shards: tuple[bytes, ...] = (b"",) * _SHARDS, counts: Mapping[int, int] = _NOTHING) -> None:
        self._shards = shards
        self._counts = counts

    @classmethod
    def build(cls, entries: Iterable[UserEntry]) -> "UserIndex":
        """Build an index from entries that are all different; takes little more memory than the index itself."""
        buffers = [bytearray() for _ in range(_SHARDS)]
        counts: dict[int, int] = {}
        for user_id, owner_id, tag in entries:
            name = _name(user_id, owner_id)
            buffers[_shard_of(name)] += name + bytes((tag or 0,))
            counts[owner_id] = counts.get(owner_id, 0) + 1
        return cls(tuple(_sorted(buffer) for buffer in buffers), counts)

    @classmethod
    def restored(cls, shards: Mapping[int, bytes], counts: Mapping[int, int]) -> "UserIndex":
        """Return the index whose `shards` and `counts` these are.

        Raises:
            ValueError: They do not belong together.
        """
        every = tuple(shards.get(number, b"") for number in range(_SHARDS))
        size = sum(map(len, every))
        if not shards.keys() <= set(range(_SHARDS)) or size != sum(counts.values()) * _ENTRY_BYTES:
            raise ValueError("these shards and counts are not of one index")
        return cls(every, counts)

    @property
    def shards(self) -> Sequence[bytes]:
        """The entries, as `restored` takes them; by number."""
        return self._shards

    @property
    def counts(self) -> Mapping[int, int]:
        """The number of entries of each owner."""
        return self._counts

    def __len__(self) -> int:
        return sum(self._counts.values())

    def count(self, owner_id: int) -> int:
        """Return how many users have an entry of an owner."""
        return self._counts.get(owner_id, 0)

    def find(self, user_id: str) -> Mapping[int, int]:
        """Return the tags of a user, by owner id."""
        if not self._counts:
            return _NOTHING
        digest = user_digest(user_id)
        shard = self._shards[_shard_of(digest)]
        found: dict[int, int] = {}
        for at in range(_first(shard, digest) * _ENTRY_BYTES, len(shard), _ENTRY_BYTES):
            if not shard.startswith(digest, at):
                break
            found[int.from_bytes(shard[at + DIGEST_BYTES : at + _ENTRY_BYTES - 1], "big")] = shard[
                at + _ENTRY_BYTES - 1
            ]
        return found

    def with_entries(self, entries: Iterable[UserEntry]) -> "UserIndex":
        """Return the index after these entries, applied in order."""
        changes: defaultdict[int, dict[bytes, int | None]] = defaultdict(dict)
        for user_id, owner_id, tag in entries:
            name = _name(user_id, owner_id)
            changes[_shard_of(name)][name] = tag
        shards = list(self._shards)
        counts = dict(self._counts)
        for number, changed in changes.items():
            shards[number] = _merge(shards[number], changed, counts)
        return UserIndex(tuple(shards), {owner: count for owner, count in counts.items() if count})


def user_digest(user_id: str) -> bytes:
    """Return 128 bits of BLAKE2b."""
    digest = _NEW_HASH.copy()
    digest.update(user_id.encode())
    return digest.digest()


def _first(shard: bytes, name: bytes, *, after: int = 0) -> int:
    """Return which entry of a shard, from `after` on, is the first that does not stand before `name`."""
    entries = len(shard) // _ENTRY_BYTES
    return bisect_left(_slices(len(name), entries.bit_length()), name, after, entries, key=shard.__getitem__)


@lru_cache
def _slices(length: int, bits: int) -> Sequence[slice]:
    """Return where the first `length` bytes of entries are. To search by them takes half the time of a function."""
    return [slice(at, at + length) for at in range(0, _ENTRY_BYTES << bits, _ENTRY_BYTES)]


def _name(user_id: str, owner_id: int) -> bytes:
    return user_digest(user_id) + owner_id.to_bytes(_OWNER_BYTES, "big")


def _shard_of(digest: bytes) -> int:
    return int.from_bytes(digest[:2], "big") % _SHARDS


def _sorted(buffer: bytearray) -> bytes:
    return b"".join(sorted(bytes(buffer[at : at + _ENTRY_BYTES]) for at in range(0, len(buffer), _ENTRY_BYTES)))


def _merge(shard: bytes, changed: Mapping[bytes, int | None], counts: dict[int, int]) -> bytes:
    """Return the shard after the changes, and update `counts` (entries per owner).

    Changes are few, so each is searched for, and what lies between them is copied as it is.
    """
    pieces: list[bytes] = []
    copied, nth = 0, 0
    for name, tag in sorted(changed.items()):
        nth = _first(shard, name, after=nth)
        at = nth * _ENTRY_BYTES
        was_there = shard.startswith(name, at)
        pieces.append(shard[copied:at])
        if tag is not None:
            pieces.append(name + bytes((tag,)))
        copied = at + _ENTRY_BYTES * was_there
        owner = int.from_bytes(name[DIGEST_BYTES:], "big")
        counts[owner] = counts.get(owner, 0) + (tag is not None) - was_there
    pieces.append(shard[copied:])
    return b"".join(pieces)
