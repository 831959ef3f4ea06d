"""Nonces: each is used once, by one process or by all together."""

import pytest

from gatekeeper_grpc.auth.nonces import KEEP_S, Nonces, SharedNonces
from gatekeeper_grpc.auth.signatures import CLOCK_WINDOW_S
from gatekeeper_grpc.domain.errors import Unavailable

pytestmark = pytest.mark.promise("D1")

KEY_ID = "ck_0123456789abcdef0123"


class Store:
    """Stands for what all instances ask; empty and away at will."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()
        self.kept_s: set[float] = set()
        self.is_away = False

    def use(self, mark: bytes, *, keep_s: float) -> bool:
        if self.is_away:
            raise Unavailable("away", retry_after_s=1.0)
        self.kept_s.add(keep_s)
        is_new = mark not in self.known
        self.known.add(mark)
        return is_new


@pytest.mark.parametrize(("after_s", "known"), [(59.0, True), (60.0, True), (121.0, False), (500.0, False)])
def test_nonces_are_forgotten_when_their_signatures_are_no_good_any_more(after_s: float, known: bool) -> None:
    now = [0.0]
    nonces = Nonces(keep_s=60, capacity=10, clock=lambda: now[0])
    nonces.use(KEY_ID, "n")

    now[0] = after_s

    assert nonces.use(KEY_ID, "n") is not known


def test_two_keys_may_use_one_nonce() -> None:
    nonces = Nonces(keep_s=60, capacity=10)

    assert [nonces.use(key_id, "n") for key_id in ("a", "b", "a")] == [True, True, False]


def instances(store: Store, *, is_strict: bool = False) -> tuple[SharedNonces, SharedNonces]:
    return tuple(SharedNonces(Nonces(), store, is_strict=is_strict) for _ in range(2))  # type: ignore[return-value]


def test_a_nonce_is_used_once_by_all_instances_together() -> None:
    one, other = instances(store := Store())

    assert [nonces.use(KEY_ID, "n") for nonces in (one, other, one)] == [True, False, False]
    assert other.use(KEY_ID, "m")
    assert store.kept_s == {KEEP_S}
    assert KEEP_S > 2 * CLOCK_WINDOW_S


def test_while_the_store_is_away_each_process_counts_for_itself() -> None:
    one, other = instances(store := Store())
    store.is_away = True

    assert [nonces.use(KEY_ID, "n") for nonces in (one, other, one, other)] == [True, True, False, False]
    assert (one.unshared(), other.unshared()) == (2, 2)


def test_a_strict_instance_refuses_while_the_store_is_away_and_no_longer() -> None:
    one, _ = instances(store := Store(), is_strict=True)
    store.is_away = True
    with pytest.raises(Unavailable) as refused:
        one.use(KEY_ID, "n")
    store.is_away = False

    assert refused.value.retry_after_s == 1.0
    assert one.use(KEY_ID, "n")
    assert one.unshared() == 1


def test_what_the_store_forgets_the_process_remembers() -> None:
    one, other = instances(store := Store())
    one.use(KEY_ID, "n")

    store.known.clear()

    assert not one.use(KEY_ID, "n")
    assert not other.use(KEY_ID, "n")
