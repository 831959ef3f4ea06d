"""A stored snapshot evaluates as its original, and is refused when a single byte differs."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.cache import snapshot_format
from gatekeeper_grpc.cache.snapshot_format import (
    FORMAT,
    HEADER_BYTES,
    MAGIC,
    NotASnapshot,
    SnapshotHeader,
    SnapshotRefused,
    check_whole,
    decode,
    decode_header,
    encode,
)
from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.attribute_index import AttributeEntry, AttributeIndex
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.flag import ON, SegmentTarget
from gatekeeper_grpc.domain.segment import Match
from gatekeeper_grpc.domain.snapshot import Snapshot, SnapshotDelta
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from tests.support.flags import flag
from tests.support.segments import segment
from tests.support.servers import KEYS
from tests.support.snapshots import NOON, read, written
from tests.support.strategies import USERS, answers, build, states

HERE = UUID(int=1)
HASH = bytes(range(32))
GOLDEN = Path(__file__).parents[2] / "golden"
BUCKETS: list[dict[str, Any]] = json.loads((GOLDEN / "bucketing.json").read_text(encoding="utf-8"))["vectors"]


def contents(snapshot: Snapshot) -> list[object]:
    """All that a snapshot holds."""
    indexes = (snapshot.targets, snapshot.members)
    return [
        (snapshot.installation_id, snapshot.revision, snapshot.whole_at, snapshot.audit_hash),
        [*snapshot.flags.items()],
        [*snapshot.segments.items()],
        [*snapshot.plans.items()],
        [(index.shards, dict(index.counts)) for index in indexes],
        snapshot.attributes.shards,
    ]


def life() -> Snapshot:
    """A snapshot with something of everything in it, which a delta has led to."""
    conditions = [
        Condition(attribute="plan", operator=Operator.IN, values=("gold", 5, 1.5, True, ["a", {"b": "ü"}])),
        Condition(attribute="/org/size", operator=Operator.GREATER_THAN, values=(2**60,), negate=True),
    ]
    entries = [AttributeEntry("alice", "plan", '"gold"'), AttributeEntry("ünï", "plan", '{"x":[1,2]}')]
    whole = Snapshot.build(
        installation_id=HERE,
        revision=6,
        flags=[
            flag(
                "a", flag_id=1, enabled=True, tags=("ü",), segment_targets=(SegmentTarget(segment_key="s", variant=ON),)
            ),
            flag("b", flag_id=2**40, enabled=True, rollout_percentage=30),
        ],
        segments=[segment("s", *conditions, match=Match.ANY, segment_id=3)],
        targets=UserIndex.build([UserEntry("bob", 1, 1), UserEntry("bob", 2**40, 0), UserEntry("carol", 1, 0)]),
        members=UserIndex.build([UserEntry("ünï", 3, 0)]),
        attributes=AttributeIndex.build(["plan", "org"], entries),
    )
    return whole.after(SnapshotDelta(revision=7, audit_hash=HASH, targets=[UserEntry("carol", 1, None)]))


def test_everything_comes_back() -> None:
    assert contents(read(written(life()))) == contents(life())


def test_an_empty_snapshot_comes_back() -> None:
    empty = Snapshot.build(revision=0)

    assert contents(read(written(empty))) == contents(empty)


@settings(max_examples=100)
@given(state=states(), plans=st.dictionaries(st.sampled_from(USERS), st.sampled_from(['"x"', '"y"', "null", "[1]"])))
def test_every_user_is_answered_as_before(state: dict[str, Any], plans: dict[str, str]) -> None:
    attributes = AttributeIndex.build(["email"], (AttributeEntry(user, "email", text) for user, text in plans.items()))
    built = build(state, revision=1)
    before = Snapshot.build(
        revision=1,
        flags=built.flags.values(),
        segments=built.segments.values(),
        targets=built.targets,
        members=built.members,
        attributes=attributes,
    )

    after = read(written(before))

    assert contents(after) == contents(before)
    assert answers(after) == answers(before)


def test_golden_buckets_come_out_of_a_kept_snapshot() -> None:
    keys = {vector["flag_key"] for vector in BUCKETS}
    ramps = [flag(key, flag_id=number, enabled=True, rollout_percentage=50) for number, key in enumerate(sorted(keys))]
    snapshot = read(written(Snapshot.build(revision=1, flags=ramps)))

    for vector in BUCKETS:
        (detail,) = snapshot.evaluate(
            snapshot.select([vector["flag_key"]]).plans, EvaluationContext(user_id=vector["user_id"])
        )
        assert (detail.bucket, detail.value) == (vector["bucket"], vector["bucket"] < 50)


def test_a_snapshot_in_the_first_form_of_the_format_is_still_read() -> None:
    kept = base64.b64decode((GOLDEN / f"snapshot-{FORMAT}.base64").read_bytes())

    header, snapshot = decode(kept, KEYS.data)

    assert header == SnapshotHeader(installation_id=HERE, revision=7, whole_at=6, audit_hash=HASH, confirmed_time=NOON)
    assert contents(snapshot) == contents(life())


def test_the_beginning_alone_holds_the_header() -> None:
    kept = written(life())

    assert decode_header(kept[:HEADER_BYTES], KEYS.data) == decode(kept, KEYS.data)[0]


def test_large_indexes_are_spread_over_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_format, "_FRAME_BYTES", 1_000)
    users = UserIndex.build(UserEntry(f"user-{number}", number % 7, 1) for number in range(2_000))
    texts = (AttributeEntry(f"user-{number}", "plan", f'"{number}"') for number in range(2_000))
    large = Snapshot.build(revision=1, targets=users, members=users, attributes=AttributeIndex.build(["plan"], texts))

    pieces = [*encode(large, SnapshotHeader.of(large, confirmed_time=NOON), KEYS.data)]

    assert len(pieces) > 100
    assert max(map(len, pieces)) < 4_000
    assert contents(read(b"".join(pieces))) == contents(large)


def test_nothing_of_it_can_be_read_without_the_keys() -> None:
    kept = written(life())

    assert [text for text in (b"plan", b"gold", b"enabled", b"revision") if text in kept] == []


ELSEWHERE = DataKeys(KeyRing.parse("data:" + "e" * 32))
ROTATED = DataKeys(KeyRing.parse(f"new:{'n' * 32},data:fedcba9876543210fedcba9876543210"))


def test_keys_that_were_rotated_in_front_still_open_it() -> None:
    assert contents(read(written(life()), ROTATED)) == contents(life())


def rehashed(kept: bytes) -> bytes:
    """With a fitting checksum, as a forger would make it."""
    return kept[:-32] + hashlib.sha256(kept[:-32]).digest()


def frames(kept: bytes) -> list[bytes]:
    cut, at = [], len(MAGIC) + 2
    while at < len(kept) - 32:
        end = at + 4 + int.from_bytes(kept[at : at + 4], "big")
        cut.append(kept[at:end])
        at = end
    return cut


def assembled(*parts: bytes) -> bytes:
    return rehashed(MAGIC + FORMAT.to_bytes(2, "big") + b"".join(parts) + bytes(32))


def forgeries() -> dict[str, tuple[bytes, str]]:
    """What is wrong, and the words by which it is refused."""
    kept, other = written(life()), written(life())
    cut, other_cut = frames(kept), frames(other)
    flipped = bytearray(kept)
    flipped[len(kept) // 2] ^= 1
    return {
        "a bit is flipped": (bytes(flipped), "bytes were altered"),
        "cut off": (kept[:-100], rf"cut off after {len(kept) - 100:,} bytes, of which it must have"),
        "cut off in the checksum": (kept[:-1], rf"cut off after {len(kept) - 1:,} bytes"),
        "cut off between two frames": (MAGIC + b"\0\1" + b"".join(cut[:2]), "cut off after"),
        "cut off in the header": (kept[:100], "cut off after 100 bytes"),
        "cut off in the preamble": (kept[:21], "cut off after 21 bytes, of which it must have 22"),
        "two bytes too many": (kept + b"xx", "2 bytes follow its end, so it has grown"),
        "grown by zeros": (kept + bytes(1_000_000), "1,000,000 bytes follow its end, so it has grown"),
        "a bit is flipped and the checksum made to fit": (rehashed(bytes(flipped)), "data was altered"),
        "the last frame is left out": (assembled(*cut[:-1]), "not those of one snapshot"),
        "a frame in the middle is left out": (assembled(*cut[:2], *cut[3:]), "not those of one snapshot"),
        "two frames have changed places": (assembled(cut[0], cut[2], cut[1], *cut[3:]), "not those of one snapshot"),
        "a frame of another snapshot": (assembled(cut[0], other_cut[1], *cut[2:]), "not those of one snapshot"),
        "written with another key of that name": (written(life(), ELSEWHERE), "key has another secret"),
        "written with a key that is missing": (written(life(), ROTATED), "'new'.* there is no such key"),
        "a newer format": (rehashed(MAGIC + b"\0\2" + kept[22:]), "format 2, and this Gatekeeper reads format 1"),
        "somebody else's file": (b"root:x:0:0:root:/root:/bin/bash\n" * 10, "left alone"),
        "nothing but a checksum": (assembled(), "not those of one snapshot"),
    }


@pytest.mark.parametrize("fault", forgeries())
def test_what_is_not_as_written_is_refused_and_says_why(fault: str) -> None:
    kept, words = forgeries()[fault]

    with pytest.raises(SnapshotRefused, match=words):
        decode(kept, KEYS.data)


@pytest.mark.parametrize(
    "fault",
    [
        fault
        for fault in forgeries()
        if fault.startswith(("cut off in the header", "cut off in the preamble", "written"))
    ],
)
def test_the_beginning_alone_is_refused_for_the_same_reason(fault: str) -> None:
    kept, words = forgeries()[fault]
    with pytest.raises(SnapshotRefused, match=words):
        decode_header(kept[:HEADER_BYTES], KEYS.data)


def test_no_altered_byte_passes_even_with_a_checksum_made_to_fit() -> None:
    kept = written(Snapshot.build(revision=3, flags=[flag("a")]))
    for at in range(len(kept) - 32):
        altered = rehashed(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :])
        with pytest.raises(SnapshotRefused):
            decode(altered, KEYS.data)


def test_no_cut_passes() -> None:
    kept = written(Snapshot.build(revision=3, flags=[flag("a")]))
    for end in range(len(kept)):
        with pytest.raises(SnapshotRefused):
            check_whole(kept[:end])


def test_only_a_file_of_somebody_else_is_not_to_be_replaced() -> None:
    refused = {"somebody else's file": NotASnapshot}
    for fault, (kept, _) in forgeries().items():
        with pytest.raises(SnapshotRefused) as error:
            decode(kept, KEYS.data)
        assert type(error.value) is refused.get(fault, SnapshotRefused)


@pytest.mark.parametrize(
    ("left", "right", "newer"),
    [
        pytest.param((HERE, 2, 0), (HERE, 1, 9), True, id="a later revision of the same installation"),
        pytest.param((HERE, 1, 9), (HERE, 1, 0), False, id="the same revision, confirmed later"),
        pytest.param((HERE, 1, 9), (UUID(int=2), 5, 0), True, id="of another installation, confirmed later"),
    ],
)
def test_the_newer_of_two_snapshots(left: tuple[UUID, int, int], right: tuple[UUID, int, int], newer: bool) -> None:
    headers = [
        SnapshotHeader(
            installation_id=where,
            revision=revision,
            whole_at=1,
            audit_hash=HASH,
            confirmed_time=NOON.replace(minute=minute),
        )
        for where, revision, minute in (left, right)
    ]

    assert headers[0].is_newer_than(headers[1]) is newer


def test_json_values_of_conditions_come_back_as_they_were() -> None:
    values: list[JsonValue] = [0, -1, 2**53 - 1, 1e300, 0.1, "", "🦉", False, [], {}, [[[[1]]]], {"a": {"b": [None]}}]
    condition = Condition(attribute="x", operator=Operator.IN, values=tuple(values))
    before = Snapshot.build(revision=1, segments=[segment("s", condition)])

    after = read(written(before))

    assert repr(after.segments["s"].config.conditions[0].values) == repr(condition.values)
