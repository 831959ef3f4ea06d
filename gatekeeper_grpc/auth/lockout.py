"""Login lockout: slows down password guessing without letting an attacker lock out somebody else.

The rule and its reasons: docs/decisions/0007-login-lockout.md. It counts the failures of the last 15 minutes on this
instance, for admin users by id and otherwise by the name that was typed. Whether an account exists makes no difference,
and one that is created under the name of a deleted one begins without failures.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import ceil
from typing import Final, TypeAlias

from gatekeeper_grpc.auth.addresses import address_of, network_of
from gatekeeper_grpc.auth.tries import Tries
from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.domain.limits import MAX_USERNAME_CHARS
from gatekeeper_grpc.instrumentation.counters import LOGINS

_ALL: Final = ("all",)

Account: TypeAlias = int | str
"""What a try is for: the id of an admin user, or the name that was typed if no enabled one has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockoutRule:
    """How many failures within `window_s` are too many.

    The first `free_tries` of one address on one account have no consequence. After that a try has to wait 1 s, then
    twice as long each time, at most `max_delay_s`. At most `failures` are remembered, the addresses of at most
    `successes`, and the tries of at most `tries`; the oldest go first.
    """

    window_s: float = 900.0
    free_tries: int = 3
    max_delay_s: float = 300.0
    per_address: int = 30
    per_account: int = 100
    in_all: int = 1_000
    failures: int = 10_000
    successes: int = 10_000
    tries: int = 10_000


@dataclass(frozen=True, slots=True)
class _Failure:
    at: float
    keys: tuple[Hashable, ...]


class LoginGuard:
    """Decides which tries have to wait before a password is verified. Thread-safe; every method takes microseconds.

    Args:
        rule: How many failures are too many.
        clock: Monotonic seconds.
    """

    def __init__(self, rule: LockoutRule = LockoutRule(), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rule = rule
        self._clock = clock
        self._lock = threading.Lock()  # guards the three below
        self._failures: deque[_Failure] = deque()  # oldest first
        self._times: dict[Hashable, deque[float]] = {}  # times of failures, by what they count for; oldest first
        self._succeeded: OrderedDict[Hashable, None] = OrderedDict()  # addresses whose last try succeeded; oldest first
        self._tries = Tries(window_s=rule.window_s, remembered=rule.tries, clock=clock)

    def admit(self, account: Account, peer: str) -> None:
        """Let a try pass. A refused try is not counted.

        Raises:
            ResourceExhausted: It has to wait; says how long.
        """
        _require_no_wait(self._wait_s(*_keys(account, peer)))

    def admit_address(self, peer: str) -> None:
        """Let a try pass whose account is not known yet: by what counts for its address alone.

        Raises:
            ResourceExhausted: It has to wait for any account; says how long.
        """
        _require_no_wait(self._wait_s(_address_key(peer)))

    def tried(self, peer: str) -> int:
        """Count a try that was let pass; return how many of its address came before it without success."""
        return self._tries.note(peer)

    def network_failures(self, peer: str) -> int:
        """Count the failures of a network, for the turns of its addresses. They have no other consequence."""
        with self._lock:
            self._forget_before(self._clock() - self._rule.window_s)
            return len(self._times.get(_network_key(peer), ()))

    def failed(self, account: Account, peer: str) -> bool:
        """Count a failure; return whether the next try has to wait."""
        failure = _Failure(self._clock(), (_ALL, _network_key(peer), *_keys(account, peer)))
        with self._lock:
            self._succeeded.pop(_address_key(peer), None)
            self._failures.append(failure)
            for key in failure.keys:
                self._times.setdefault(key, deque()).append(failure.at)
            if len(self._failures) > self._rule.failures:
                self._forget_oldest()
        return self._wait_s(*_keys(account, peer)) > 0

    def succeeded(self, account: Account, peer: str) -> None:
        """Forget the failures of an address on this account.

        What counts for the address and for all stays: an attacker with an account of their own must not reset those.
        """
        address, _account, pair = _keys(account, peer)
        self._tries.succeeded(peer)
        with self._lock:
            self._times.pop(pair, None)
            self._succeeded[address] = None
            self._succeeded.move_to_end(address)
            if len(self._succeeded) > self._rule.successes:
                self._succeeded.popitem(last=False)

    def succeeded_last(self, peer: str) -> bool:
        """Return whether the last try of an address succeeded."""
        return _address_key(peer) in self._succeeded

    def _wait_s(self, address: Hashable, account: Hashable = None, pair: Hashable = None) -> float:
        rule, now = self._rule, self._clock()
        with self._lock:
            self._forget_before(now - rule.window_s)
            own = self._times.get(address)
            if not own:
                # An address without failures of its own is never locked out by others.
                return 0.0
            caps = {address: rule.per_address, account: rule.per_account, _ALL: rule.in_all}
            over_s = max(self._leaves_window(key, cap) for key, cap in caps.items())
            fresh_again_s = own[-1] + rule.window_s
            return max(self._delayed_until(pair), min(over_s, fresh_again_s)) - now

    def _leaves_window(self, key: Hashable, cap: int) -> float:
        """Return when fewer than `cap` failures will be left; in the past when fewer are."""
        times = self._times.get(key, ())
        return times[-cap] + self._rule.window_s if len(times) >= cap else float("-inf")

    def _delayed_until(self, pair: Hashable) -> float:
        times = self._times.get(pair)
        if not times or len(times) < self._rule.free_tries:
            return float("-inf")
        doublings = min(len(times) - self._rule.free_tries, 32)
        return times[-1] + min(2.0**doublings, self._rule.max_delay_s)

    def _forget_before(self, start: float) -> None:
        while self._failures and self._failures[0].at <= start:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        oldest = self._failures.popleft()
        for key in oldest.keys:
            times = self._times.get(key)
            # A pair that succeeded may have new failures.
            if times and times[0] == oldest.at:
                times.popleft()
            if not times:
                self._times.pop(key, None)


def _keys(account: Account, peer: str) -> tuple[Hashable, Hashable, Hashable]:
    """Return what a failure counts for: the address, the account, and both."""
    # A name of a megabyte must not be remembered. No account has a longer name than the limit.
    if isinstance(account, str):
        account = account[: MAX_USERNAME_CHARS + 1]
    address = address_of(peer)
    return _address_key(peer), ("account", account), ("pair", address, account)


def _address_key(peer: str) -> Hashable:
    return ("address", address_of(peer))


def _network_key(peer: str) -> Hashable:
    return ("network", network_of(peer))


def _require_no_wait(wait_s: float) -> None:
    if wait_s > 0:
        LOGINS.labels("locked_out").inc()
        raise ResourceExhausted("too many failed logins; wait before the next try", retry_after_s=ceil(wait_s))
