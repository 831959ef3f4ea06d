"""Login lockout: guessing is slow from every address, and an attacker locks out nobody else."""

from collections.abc import Callable, Hashable

import pytest

from gatekeeper_grpc.auth.lockout import LockoutRule, LoginGuard
from gatekeeper_grpc.domain.errors import ResourceExhausted

pytestmark = pytest.mark.promise("D4")

ATTACKER = "ipv4:198.51.100.1:4000"
VICTIM = "ipv4:192.0.2.7:5000"
RULE = LockoutRule()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A guard, its clock, and people who try passwords."""

    def __init__(self, rule: LockoutRule = RULE) -> None:
        self.clock = Clock()
        self.guard = LoginGuard(rule, clock=self.clock)

    def wait_s(self, username: str, peer: str) -> float:
        """How long a try would have to wait; 0: it passes."""
        try:
            self.guard.admit(username, peer)
        except ResourceExhausted as refusal:
            return refusal.retry_after_s or 0.0
        return 0.0

    def fail(self, username: str, peer: str) -> bool:
        """Try a wrong password; tell whether it was looked at."""
        if self.wait_s(username, peer):
            return False
        self.guard.failed(username, peer)
        return True

    def fail_for(self, seconds: int, tries: Callable[[int], tuple[str, str]]) -> int:
        """Fail ten times a second, and count the passwords that were looked at."""
        looked_at = 0
        for number in range(seconds * 10):
            looked_at += self.fail(*tries(number))
            self.clock.now += 0.1
        return looked_at


@pytest.fixture
def world() -> World:
    return World()


def test_after_the_free_tries_each_failure_doubles_the_wait_up_to_a_bound(world: World) -> None:
    waits = []
    for _ in range(RULE.free_tries + 9):
        world.guard.failed("ada", ATTACKER)
        waits.append(world.wait_s("ada", ATTACKER))

    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, RULE.max_delay_s]


def test_try_that_was_refused_does_not_prolong_the_wait(world: World) -> None:
    for _ in range(5):
        world.guard.failed("ada", ATTACKER)
    for _ in range(100):
        world.fail("ada", ATTACKER)

    world.clock.now += world.wait_s("ada", ATTACKER)
    assert world.wait_s("ada", ATTACKER) == 0


def test_failed_returns_whether_the_next_try_has_to_wait(world: World) -> None:
    assert [world.guard.failed("ada", ATTACKER) for _ in range(4)] == [False, False, True, True]


def test_right_password_forgives_the_pair_but_not_the_address(world: World) -> None:
    for number in range(RULE.per_address - 3):
        world.guard.failed(f"user-{number}", ATTACKER)
    for _ in range(3):
        world.guard.failed("own", ATTACKER)
    world.guard.succeeded("own", ATTACKER)

    assert world.wait_s("next", ATTACKER) > RULE.max_delay_s
    assert World().wait_s("own", ATTACKER) == 0


def test_failures_are_forgotten_after_the_window(world: World) -> None:
    for _ in range(50):
        world.guard.failed("ada", ATTACKER)
    world.clock.now += RULE.window_s

    assert world.wait_s("ada", ATTACKER) == 0
    assert (len(world.guard._failures), world.guard._times) == (0, {})


def test_spraying_over_many_accounts_from_one_address_is_capped(world: World) -> None:
    looked_at = world.fail_for(900, lambda number: (f"user-{number}", ATTACKER))

    assert looked_at == RULE.per_address


def test_spraying_from_ports_and_a_home_of_ipv6_addresses_is_one_address(world: World) -> None:
    looked_at = world.fail_for(900, lambda number: (f"user-{number}", f"ipv6:[2001:db8::{number:x}]:{number % 9_999}"))

    assert looked_at == RULE.per_address


def test_guessing_one_account_from_one_address_is_slow(world: World) -> None:
    assert world.fail_for(900, lambda _: ("ada", ATTACKER)) <= 13


def test_guessing_from_many_addresses_is_capped_for_each_that_failed() -> None:
    world = World()
    peers = [f"ipv4:198.51.100.{number}:1" for number in range(250)]

    looked_at = world.fail_for(900, lambda number: ("ada", peers[number % 250]))

    # One each, and for the first hundred failures whatever the wait allows.
    assert looked_at <= RULE.per_account + len(peers)


def test_an_address_waits_for_any_account_and_its_neighbour_for_none() -> None:
    world = World()
    for number in range(RULE.per_address):
        world.guard.admit_address(VICTIM)
        world.guard.failed(f"user-{number}", VICTIM)

    with pytest.raises(ResourceExhausted):
        world.guard.admit_address(VICTIM)
    world.guard.admit_address("ipv4:198.51.100.200:1")


def test_an_address_stands_as_its_last_try_ended() -> None:
    guard = LoginGuard(LockoutRule(successes=2))
    standing = [guard.succeeded_last(VICTIM)]
    for note in (guard.succeeded, guard.failed, guard.succeeded):
        note("ada", VICTIM)
        standing.append(guard.succeeded_last(VICTIM))
    for number in range(2):
        guard.succeeded("ada", f"ipv4:198.51.100.{number}:1")

    assert standing == [False, True, False, True]
    assert not guard.succeeded_last(VICTIM), "more addresses are remembered than the rule says"


def test_failures_count_for_the_network_and_a_neighbour_waits_for_none() -> None:
    world = World()
    world.fail("ada", VICTIM)
    neighbour, stranger = "ipv4:192.0.2.8:1", "ipv4:192.0.3.7:1"

    assert [world.guard.network_failures(peer) for peer in (VICTIM, neighbour, stranger)] == [1, 1, 0]
    assert world.wait_s("ada", neighbour) == 0
    world.clock.now += RULE.window_s
    assert world.guard.network_failures(neighbour) == 0


def test_failures_everywhere_are_capped_per_address_that_failed() -> None:
    world = World(LockoutRule(in_all=50))
    peers = [f"ipv4:198.51.100.{number}:1" for number in range(100)]

    looked_at = world.fail_for(900, lambda number: (f"user-{number}", peers[number % 100]))

    assert looked_at <= 50 + len(peers)


class Naive(LoginGuard):
    """The twin: caps hold for everybody, as in most lock-outs."""

    def _wait_s(self, address: Hashable, account: Hashable = None, pair: Hashable = None) -> float:  # noqa: ARG002 - that is what is wrong with it
        failures = self._times.get(account, ())
        return self._rule.window_s if len(failures) >= self._rule.per_account else 0.0


@pytest.mark.parametrize(("guard", "gets_in"), [(LoginGuard, True), (Naive, False)], ids=["ours", "naive"])
def test_the_victim_of_an_attack_logs_in_from_its_own_address(guard: type[LoginGuard], gets_in: bool) -> None:
    world = World()
    world.guard = guard(RULE, clock=world.clock)
    peers = [f"ipv4:198.51.{number // 200}.{number % 200}:1" for number in range(600)]
    admitted = []
    for _ in range(3):
        world.fail_for(RULE_WINDOW, lambda number: ("ada", peers[number % 600]))
        admitted.append(world.wait_s("ada", VICTIM) == 0)

    assert admitted == [gets_in] * 3


RULE_WINDOW = int(RULE.window_s)


def test_a_victim_who_mistypes_waits_no_longer_than_the_window(world: World) -> None:
    peers = [f"ipv4:198.51.100.{number}:1" for number in range(200)]
    attack = lambda number: ("ada", peers[number % 200])  # noqa: E731
    world.fail_for(60, attack)
    world.fail("ada", VICTIM)

    wait_s = world.wait_s("ada", VICTIM)
    world.fail_for(int(wait_s), attack)

    assert 0 < wait_s <= RULE.window_s
    assert world.wait_s("ada", VICTIM) == 0


def test_an_unknown_name_is_treated_like_a_known_one(world: World) -> None:
    """The guard does not even know who exists; what it says depends on what was typed."""
    seen = [[world.guard.failed(name, ATTACKER) for _ in range(4)] for name in ("admin", "nobody", "x" * 1_000_000)]

    assert seen == [[False, False, True, True]] * 3


def test_what_is_remembered_is_bounded() -> None:
    world = World(LockoutRule(failures=100))
    for number in range(1_000):
        world.guard.failed(f"{number}" * 10_000, f"ipv4:198.51.100.{number % 250}:1")

    assert len(world.guard._failures) == 100
    assert max(len(str(key)) for key in world.guard._times) < 300
    assert len(world.guard._times) <= 401
