"""The hash of a set depends on its elements alone."""

from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from gatekeeper_grpc.domain.set_hash import EMPTY, SUM_BYTES, SetHash, member_element, target_element

ELEMENTS = st.sets(st.binary(min_size=16, max_size=20), max_size=20)


@given(before=ELEMENTS, after=ELEMENTS)
def test_a_hash_that_followed_each_change_is_that_of_the_set(before: set[bytes], after: set[bytes]) -> None:
    followed = EMPTY.changed(added=before).changed(removed=before - after, added=after - before)

    assert followed == EMPTY.changed(added=sorted(after, reverse=True))


@given(one=ELEMENTS, other=ELEMENTS)
def test_other_sets_have_other_hashes(one: set[bytes], other: set[bytes]) -> None:
    hashes = [EMPTY.changed(added=elements).document() for elements in (one, other)]

    assert (hashes[0] == hashes[1]) == (one == other)


def test_a_stored_hash_is_read_back() -> None:
    kept = EMPTY.changed(added=[b"one", b"two"])

    assert len(kept.state) == SUM_BYTES
    assert SetHash.from_state(kept.count, kept.state) == kept
    assert EMPTY.changed(removed=[b"one"]).changed(added=[b"one"]) == EMPTY


def test_a_target_is_hashed_with_its_variant() -> None:
    person = uuid4()

    assert len({target_element(person, "on"), target_element(person, "off"), member_element(person)}) == 3


def test_the_hash_stays_what_it_is_in_logs_that_exist() -> None:
    document = EMPTY.changed(added=[bytes(range(16))]).document()

    # pragma: allowlist nextline secret
    assert document == {"count": 1, "hash": "cd3e528653777c68396bdcff8d27988591cf69795f152d2cc0ae11df545e6697"}
