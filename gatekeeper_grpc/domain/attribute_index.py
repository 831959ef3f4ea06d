"""A compact, immutable map from users to the stored attributes that segments name.

One column for each attribute: a newly named attribute adds a column, one that is no longer named drops its column. A
column keeps the users who have the attribute in 1,024 shards of `bytes`. Changing n users copies at most n shards of a
column and shares the rest, so an update blocks nobody and needs no lock. A value costs its JSON text and 20 bytes; some
150 bytes more if so few users have the attribute that each has a shard to itself.
"""

import json
import struct
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import NamedTuple, cast

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.user_index import DIGEST_BYTES, user_digest

_SHARDS = 1024
_NUMBER = struct.Struct(">I")
_TWO_NUMBERS = struct.Struct(">II")
_EMPTY_SHARD = bytes(2 * _NUMBER.size)


class AttributeEntry(NamedTuple):
    """The value of a user for an attribute, as JSON text. None: no value, which is also what null means.

    A tuple, because a snapshot is loaded from a million of them.
    """

    user_id: str
    name: str
    value: str | None


class AttributeIndex:
    """Stored attributes, by top-level name and user. Immutable: a change returns another index.

    It holds the values of all users for each attribute in `names`, and nothing else. Users are kept as 128-bit digests.
    """

    __slots__ = ("_columns", "_count")

    def __init__(self, columns: Mapping[str, "_Column"] = MappingProxyType({})) -> None:
        self._columns = columns
        self._count = sum(column.count for column in columns.values())

    @classmethod
    def build(cls, names: Iterable[str], entries: Iterable[AttributeEntry]) -> "AttributeIndex":
        """Build an index of these attributes from entries that are all different.

        Takes little more memory than the index itself. Entries of other attributes are ignored.
        """
        buffers = {name: _Buffer() for name in names}
        for user_id, name, value in entries:
            if value is not None and name in buffers:
                buffers[name].add(user_digest(user_id), value.encode())
        return cls({name: buffer.column() for name, buffer in buffers.items()})

    @classmethod
    def restored(cls, columns: Mapping[str, Mapping[int, bytes]]) -> "AttributeIndex":
        """Return the index whose `shards` these are, by attribute."""
        return cls({name: _Column(shards) for name, shards in columns.items()})

    @property
    def shards(self) -> Mapping[str, Mapping[int, bytes]]:
        """The values of each attribute, as `restored` takes them; by number."""
        return {name: column.shards for name, column in self._columns.items()}

    @property
    def names(self) -> frozenset[str]:
        """The attributes that the index holds."""
        return frozenset(self._columns)

    def __len__(self) -> int:
        return self._count

    def find(self, digest: bytes, name: str) -> JsonValue:
        """Return the value of the user with this digest for an attribute; None when there is none."""
        column = self._columns.get(name)
        text = None if column is None else column.find(digest)
        return None if text is None else cast(JsonValue, json.loads(text.decode()))

    def with_entries(self, entries: Iterable[AttributeEntry]) -> "AttributeIndex":
        """Return the index after these entries, applied in order; entries of attributes that it lacks are ignored."""
        changes: defaultdict[str, dict[bytes, bytes | None]] = defaultdict(dict)
        for user_id, name, value in entries:
            if name in self._columns:
                changes[name][user_digest(user_id)] = None if value is None else value.encode()
        changed = {name: self._columns[name].with_values(values) for name, values in changes.items()}
        return AttributeIndex({**self._columns, **changed}) if changed else self

    def changed_by(self, entries: Iterable[AttributeEntry]) -> set[str]:
        """Return the attributes of this index that `with_entries` would change."""
        return {
            name
            for user_id, name, value in entries
            if (column := self._columns.get(name)) is not None
            and column.find(user_digest(user_id)) != (None if value is None else value.encode())
        }

    def joined_with(self, other: "AttributeIndex") -> "AttributeIndex":
        """Return an index with the attributes of both; for an attribute of both, the values of `other`."""
        added = other._columns  # noqa: SLF001 - of the same class
        return AttributeIndex({**self._columns, **added}) if added else self

    def restricted_to(self, names: frozenset[str]) -> "AttributeIndex":
        """Return an index with these attributes only."""
        if self._columns.keys() <= names:
            return self
        return AttributeIndex({name: column for name, column in self._columns.items() if name in names})


class UserAttributes:
    """The attributes of one user, as conditions see them: those of the request, and the stored ones.

    An attribute of the request wins, null included. A stored one is looked up when a condition first reads it.
    """

    __slots__ = ("_digest", "_index", "_known", "_user_id")

    def __init__(self, user_id: str, sent: Mapping[str, JsonValue], stored: AttributeIndex) -> None:
        self._user_id = user_id
        self._index = stored
        self._known = dict(sent)
        self._digest: bytes | None = None

    def get(self, name: str, /) -> JsonValue:
        """Return the value of a top-level attribute; None when there is none."""
        if name not in self._known:
            if self._digest is None:
                self._digest = user_digest(self._user_id)
            self._known[name] = self._index.find(self._digest, name)
        return self._known[name]


class _Column:
    """One attribute of all users: the shards that are not empty, by number."""

    __slots__ = ("count", "shards")

    def __init__(self, shards: Mapping[int, bytes]) -> None:
        self.shards = shards
        self.count = sum(map(_count, shards.values()))

    def find(self, digest: bytes) -> bytes | None:
        return _find(self.shards.get(_shard_of(digest), _EMPTY_SHARD), digest)

    def with_values(self, changes: Mapping[bytes, bytes | None]) -> "_Column":
        """Return the column after changes, by digest; None removes a value."""
        by_shard: defaultdict[int, dict[bytes, bytes | None]] = defaultdict(dict)
        for digest, text in changes.items():
            if self.find(digest) != text:
                by_shard[_shard_of(digest)][digest] = text
        if not by_shard:
            return self
        merged = {number: self._merged(number, changed) for number, changed in by_shard.items()}
        return _Column({number: shard for number, shard in {**self.shards, **merged}.items() if shard})

    def _merged(self, number: int, changes: Mapping[bytes, bytes | None]) -> bytes:
        """Return a shard after changes; empty when no user is left."""
        texts: dict[bytes, bytes | None] = {**dict(_values(self.shards.get(number, _EMPTY_SHARD))), **changes}
        left = {digest: text for digest, text in texts.items() if text is not None}
        return _shard(left) if left else b""


class _Buffer:
    """Collects the values of one attribute in any order: digest, length, text, one after the other."""

    __slots__ = ("_by_shard",)

    def __init__(self) -> None:
        self._by_shard: defaultdict[int, bytearray] = defaultdict(bytearray)

    def add(self, digest: bytes, text: bytes) -> None:
        self._by_shard[_shard_of(digest)] += digest + _NUMBER.pack(len(text)) + text

    def column(self) -> _Column:
        """Build the column; each shard frees what was collected for it."""
        return _Column({number: _shard(dict(_gathered(self._by_shard.pop(number)))) for number in list(self._by_shard)})


def _gathered(buffer: bytearray) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(buffer):
        text_at = at + DIGEST_BYTES + _NUMBER.size
        (length,) = _NUMBER.unpack_from(buffer, at + DIGEST_BYTES)
        end = text_at + length
        yield bytes(buffer[at : at + DIGEST_BYTES]), bytes(buffer[text_at:end])
        at = end


# A shard: the number of values, the sorted digests, the offsets where texts begin and the last one ends, the texts.


def _shard(texts: Mapping[bytes, bytes]) -> bytes:
    digests = sorted(texts)
    ordered = [texts[digest] for digest in digests]
    offsets = accumulate(map(len, ordered), initial=0)
    return b"".join((_NUMBER.pack(len(digests)), *digests, struct.pack(f">{len(digests) + 1}I", *offsets), *ordered))


def _values(shard: bytes) -> Iterator[tuple[bytes, bytes]]:
    count = _count(shard)
    offsets_at = _NUMBER.size + count * DIGEST_BYTES
    texts_at = offsets_at + (count + 1) * _NUMBER.size
    offsets = [texts_at + offset for offset in struct.unpack_from(f">{count + 1}I", shard, offsets_at)]
    digests = (shard[at : at + DIGEST_BYTES] for at in range(_NUMBER.size, offsets_at, DIGEST_BYTES))
    return zip(digests, (shard[begin:end] for begin, end in pairwise(offsets)), strict=True)


def _find(shard: bytes, digest: bytes) -> bytes | None:
    count = _count(shard)
    offsets_at = _NUMBER.size + count * DIGEST_BYTES
    digests = range(_NUMBER.size, offsets_at, DIGEST_BYTES)
    nth = bisect_left(digests, digest, key=lambda at: shard[at : at + DIGEST_BYTES])
    if nth == count or not shard.startswith(digest, digests[nth]):
        return None
    texts_at = offsets_at + (count + 1) * _NUMBER.size
    begin, end = _TWO_NUMBERS.unpack_from(shard, offsets_at + nth * _NUMBER.size)
    return shard[texts_at + begin : texts_at + end]


def _count(shard: bytes) -> int:
    (count,) = _NUMBER.unpack_from(shard)
    return int(count)


def _shard_of(digest: bytes) -> int:
    return int.from_bytes(digest[:2], "big") % _SHARDS
