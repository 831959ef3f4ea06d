"""The format of a stored snapshot: sealed frames, so that no side needs a second copy or works on it in one piece.

    magic | format number | frame, frame, ... | SHA-256 of all before

A frame is a length and so many sealed bytes. Opened, it holds the snapshot's random name, the frame's number, its kind
and its body. Without the keys no frame can be read, forged, left out or taken from another snapshot. The first frame is
the header, which describes the rest. Only data is written, never code.

A change of a frame's content needs another format number. So does a change of how the indexes lay out their shards.
"""

import hashlib
import json
import secrets
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from itertools import count, islice
from typing import Any, Final, TypeVar
from uuid import UUID

from gatekeeper_grpc.domain.attribute_index import AttributeIndex
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.flag import flag_document, flag_from_document
from gatekeeper_grpc.domain.sealer import Sealer
from gatekeeper_grpc.domain.segment import segment_document, segment_from_document
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user_index import UserIndex

MAGIC: Final = b"gatekeeper-snapshot\n"
FORMAT: Final = 1
# The header ends within so many bytes from the beginning.
HEADER_BYTES: Final = 4096

_PREAMBLE = struct.Struct(">20sH")
_LENGTH = struct.Struct(">I")
_FRAME = struct.Struct(">16sIB")
_NUMBER_AND_LENGTH = struct.Struct(">II")
_OWNER_AND_COUNT = struct.Struct(">QQ")
_DIGEST_BYTES = 32
# A few hundred microseconds of work each: a writer lets other threads run between two frames.
_FRAME_BYTES = 256 << 10
_RESOURCES = 25
_Item = TypeVar("_Item")


class _Kind(IntEnum):
    HEADER = 0
    FLAGS = 1
    SEGMENTS = 2
    TARGETS = 3
    TARGET_COUNTS = 4
    MEMBERS = 5
    MEMBER_COUNTS = 6
    COLUMN = 7
    END = 8


class SnapshotRefused(Exception):
    """A stored snapshot cannot be used; the message says why, and what to do."""


class NotASnapshot(SnapshotRefused):
    """The storage holds something that Gatekeeper did not write, and that must not be overwritten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotHeader:
    """What a stored snapshot holds, and when the database last confirmed it."""

    installation_id: UUID
    revision: int
    whole_at: int
    audit_hash: bytes
    confirmed_time: datetime

    @classmethod
    def of(cls, snapshot: Snapshot, *, confirmed_time: datetime) -> "SnapshotHeader":
        """Return the header for a snapshot that is about to be stored."""
        return cls(
            installation_id=snapshot.installation_id,
            revision=snapshot.revision,
            whole_at=snapshot.whole_at,
            audit_hash=snapshot.audit_hash,
            confirmed_time=confirmed_time,
        )

    def is_newer_than(self, other: "SnapshotHeader") -> bool:
        """Compare by revision; across installations, by the time of confirmation."""
        if self.installation_id == other.installation_id:
            return self.revision > other.revision
        return self.confirmed_time > other.confirmed_time


def encode(snapshot: Snapshot, header: SnapshotHeader, sealer: Sealer) -> Iterator[bytes]:
    """Yield the pieces of a stored snapshot, each of which takes about a millisecond or less to make."""
    name, digest = secrets.token_bytes(16), hashlib.sha256()
    for piece in _pieces(snapshot, header, sealer, name):
        digest.update(piece)
        yield piece
    yield digest.digest()


def decode_header(beginning: bytes, sealer: Sealer) -> SnapshotHeader:
    """Return the header of a stored snapshot, from its first `HEADER_BYTES`.

    Raises:
        SnapshotRefused: it is not readable with these keys, or damaged, or of another format.
    """
    check_preamble(beginning)
    ends_at = _end_of_frame(beginning, _PREAMBLE.size)
    if ends_at > len(beginning):
        raise SnapshotRefused(_ALTERED if len(beginning) >= HEADER_BYTES else _cut_off(beginning, ends_at))
    try:
        return _header(_frames(memoryview(beginning), sealer))
    except (struct.error, ValueError) as exc:
        raise _refusal(exc) from exc


def check_whole(stored: bytes) -> None:
    """Check that a stored snapshot is as it was written, with any keys.

    Raises:
        SnapshotRefused: it is damaged, or of another format.
    """
    check_preamble(stored)
    if not _is_whole(stored):
        raise SnapshotRefused(_damage(stored))


def decode(stored: bytes, sealer: Sealer) -> tuple[SnapshotHeader, Snapshot]:
    """Undo `encode`.

    Raises:
        SnapshotRefused: a byte is missing or altered, the format is another one, or no key fits.
    """
    check_whole(stored)
    parts = _Parts()
    try:
        frames = _frames(memoryview(stored)[:-_DIGEST_BYTES], sealer)
        header = _header(frames)
        for kind, content in frames:
            parts.take(kind, content)
        return header, parts.snapshot(header)
    except (InvalidArgument, LookupError, TypeError, ValueError, struct.error) as exc:
        raise _refusal(exc) from exc


_REPLACED = "it is replaced as soon as the database is available"
_ALTERED = f"it is damaged: bytes were altered; {_REPLACED}"
_REARRANGED = f"it is damaged: its parts are not those of one snapshot, in order and complete; {_REPLACED}"
_FOREIGN = (
    "it was not written with the keys of this instance ({}): it belongs to another installation, or"
    " GATEKEEPER_DATA_KEYS lacks the key of that time; give each installation its own storage, and keep old keys at the"
    " end of the ring"
)


class _WrongKeys(ValueError):
    """A frame cannot be opened with these keys."""


def _refusal(exc: Exception) -> SnapshotRefused:
    return SnapshotRefused(_FOREIGN.format(exc) if isinstance(exc, _WrongKeys) else _REARRANGED)


def _damage(stored: bytes) -> str:
    """Say what is wrong with a snapshot whose checksum does not fit."""
    at = _PREAMBLE.size
    while (ends_at := _end_of_frame(stored, at)) <= len(stored) - _DIGEST_BYTES:
        at = ends_at
    excess = len(stored) - at - _DIGEST_BYTES
    if excess == 0:
        return _ALTERED
    if excess > 0 and _is_whole(memoryview(stored)[: at + _DIGEST_BYTES]):
        return f"it is damaged: {excess:,} bytes follow its end, so it has grown; {_REPLACED}"
    return _cut_off(stored, ends_at + _DIGEST_BYTES)


def _is_whole(stored: "bytes | memoryview") -> bool:
    content = memoryview(stored)
    return hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]


def _cut_off(stored: bytes, ends_at: int) -> str:
    return (
        f"it is damaged: cut off after {len(stored):,} bytes, of which it must have {ends_at:,} or more, or altered;"
        f" {_REPLACED}"
    )


def _end_of_frame(stored: bytes, at: int) -> int:
    """Return where the frame ends that begins at `at`; of an incomplete one, where it must end at the earliest."""
    if at + _LENGTH.size > len(stored):
        return at + _LENGTH.size
    return at + _LENGTH.size + int(_LENGTH.unpack_from(stored, at)[0])


def check_preamble(stored: bytes) -> None:
    """Check by its first bytes that a stored snapshot is one, and of this format.

    Raises:
        NotASnapshot: Gatekeeper did not write it.
        SnapshotRefused: It is of another format, or cut off.
    """
    if stored[: len(MAGIC)] != MAGIC[: len(stored)]:
        raise NotASnapshot("it is not a snapshot that Gatekeeper wrote, and is left alone: choose another storage")
    if len(stored) < _PREAMBLE.size:
        raise SnapshotRefused(_cut_off(stored, _PREAMBLE.size))
    _, number = _PREAMBLE.unpack_from(stored)
    if number != FORMAT:
        raise SnapshotRefused(
            f"it has format {number}, and this Gatekeeper reads format {FORMAT}: another release wrote it"
        )


# --- writing ----------------------------------------------------------------------------------------------------------


def _pieces(snapshot: Snapshot, header: SnapshotHeader, sealer: Sealer, name: bytes) -> Iterator[bytes]:
    yield _PREAMBLE.pack(MAGIC, FORMAT)
    for number, (kind, body) in enumerate(_bodies(snapshot, header)):
        sealed = sealer.seal(_FRAME.pack(name, number, kind) + body)
        yield _LENGTH.pack(len(sealed)) + sealed


def _bodies(snapshot: Snapshot, header: SnapshotHeader) -> Iterator[tuple[_Kind, bytes]]:
    yield _Kind.HEADER, _json(_header_document(header))
    for flags in _batches(snapshot.flags.values(), _RESOURCES):
        yield _Kind.FLAGS, _json([flag_document(flag) for flag in flags])
    for segments in _batches(snapshot.segments.values(), _RESOURCES):
        yield _Kind.SEGMENTS, _json([segment_document(segment) for segment in segments])
    yield from _user_index(snapshot.targets, _Kind.TARGETS, _Kind.TARGET_COUNTS)
    yield from _user_index(snapshot.members, _Kind.MEMBERS, _Kind.MEMBER_COUNTS)
    for attribute, shards in snapshot.attributes.shards.items():
        for packed in _packed_shards(shards.items()):
            yield _Kind.COLUMN, _LENGTH.pack(len(attribute.encode())) + attribute.encode() + packed
    yield _Kind.END, b""


def _user_index(index: UserIndex, entries: _Kind, counts: _Kind) -> Iterator[tuple[_Kind, bytes]]:
    for packed in _packed_shards((number, shard) for number, shard in enumerate(index.shards) if shard):
        yield entries, packed
    for owners in _batches(index.counts.items(), 1_000):
        yield counts, b"".join(_OWNER_AND_COUNT.pack(*each) for each in owners)


def _packed_shards(shards: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield shards with their numbers, as many at a time as a frame should hold; the last may hold none."""
    batch: list[tuple[int, bytes]] = []
    size = 0
    for number, shard in shards:
        batch.append((number, shard))
        size += len(shard)
        if size >= _FRAME_BYTES:
            yield _packed(batch)
            batch, size = [], 0
    yield _packed(batch)


def _packed(shards: Sequence[tuple[int, bytes]]) -> bytes:
    sizes = (_NUMBER_AND_LENGTH.pack(number, len(shard)) for number, shard in shards)
    return b"".join((_LENGTH.pack(len(shards)), *sizes, *(shard for _, shard in shards)))


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# --- reading ----------------------------------------------------------------------------------------------------------


def _frames(stored: memoryview, sealer: Sealer) -> Iterator[tuple[_Kind, bytes]]:
    """Open the frames, which must be of one snapshot, in order and complete; yield their kinds and bodies."""
    at, names = _PREAMBLE.size, set[bytes]()
    kind: _Kind | None = None
    for expected in count():
        if kind is _Kind.END and at == len(stored):
            return
        sealed, at = _cut_frame(stored, at)
        plain = _opened(sealed, sealer)
        name, number, code = _FRAME.unpack_from(plain)
        names.add(name)
        if number != expected or len(names) > 1:
            raise ValueError("a frame of another snapshot, or out of order")
        kind = _Kind(code)
        yield kind, plain[_FRAME.size :]


def _opened(sealed: bytes, sealer: Sealer) -> bytes:
    try:
        return sealer.open(sealed)
    except ValueError as exc:
        raise _WrongKeys(str(exc)) from exc


def _cut_frame(body: memoryview, at: int) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack_from(body, at)
    begin, end = at + _LENGTH.size, at + _LENGTH.size + length
    if end > len(body):
        raise ValueError("a frame longer than what there is")
    return bytes(body[begin:end]), end


@dataclass(slots=True)
class _Parts:
    """The content of the frames read so far."""

    documents: defaultdict[_Kind, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    shards: defaultdict[_Kind, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    counts: defaultdict[_Kind, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    columns: defaultdict[str, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))

    def take(self, kind: _Kind, body: bytes) -> None:
        match kind:
            case _Kind.FLAGS | _Kind.SEGMENTS:
                self.documents[kind].extend(json.loads(body))
            case _Kind.TARGETS | _Kind.MEMBERS:
                self.shards[kind].update(_unpacked(body))
            case _Kind.TARGET_COUNTS | _Kind.MEMBER_COUNTS:
                self.counts[kind].update(_OWNER_AND_COUNT.iter_unpack(body))
            case _Kind.COLUMN:
                attribute, packed = _cut_frame(memoryview(body), 0)
                self.columns[attribute.decode()].update(_unpacked(body[packed:]))

    def snapshot(self, header: SnapshotHeader) -> Snapshot:
        return Snapshot.build(
            installation_id=header.installation_id,
            revision=header.revision,
            whole_at=header.whole_at,
            audit_hash=header.audit_hash,
            flags=map(flag_from_document, self.documents[_Kind.FLAGS]),
            segments=map(segment_from_document, self.documents[_Kind.SEGMENTS]),
            targets=UserIndex.restored(self.shards[_Kind.TARGETS], self.counts[_Kind.TARGET_COUNTS]),
            members=UserIndex.restored(self.shards[_Kind.MEMBERS], self.counts[_Kind.MEMBER_COUNTS]),
            attributes=AttributeIndex.restored(self.columns),
        )


def _unpacked(packed: bytes) -> Iterator[tuple[int, bytes]]:
    (count,) = _LENGTH.unpack_from(packed)
    sizes_end = _LENGTH.size + count * _NUMBER_AND_LENGTH.size
    at = sizes_end
    for number, length in _NUMBER_AND_LENGTH.iter_unpack(packed[_LENGTH.size : sizes_end]):
        yield number, packed[at : at + length]
        at += length
    if at != len(packed):
        raise ValueError("shards of other lengths than said")


# --- the header -------------------------------------------------------------------------------------------------------


def _header_document(header: SnapshotHeader) -> dict[str, object]:
    return {
        "installation_id": str(header.installation_id),
        "revision": header.revision,
        "whole_at": header.whole_at,
        "audit_hash": header.audit_hash.hex(),
        "confirmed_time": header.confirmed_time.isoformat(),
    }


def _header(frames: Iterator[tuple[_Kind, bytes]]) -> SnapshotHeader:
    """Read the first of `frames`, which must be the header."""
    kind, body = next(frames)
    if kind is not _Kind.HEADER:
        raise ValueError("a frame of another kind")
    document: Mapping[str, Any] = json.loads(body)
    return SnapshotHeader(
        installation_id=UUID(document["installation_id"]),
        revision=document["revision"],
        whole_at=document["whole_at"],
        audit_hash=bytes.fromhex(document["audit_hash"]),
        confirmed_time=datetime.fromisoformat(document["confirmed_time"]),
    )
