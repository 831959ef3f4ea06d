"""The flags of one request, compiled: for most users, constants and draws alone decide all of them."""

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import getitem
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from gatekeeper_grpc.domain.evaluation import EvaluationDetail
from gatekeeper_grpc.domain.evaluator import FlagPlan
from gatekeeper_grpc.draws import Draws, compile_draws

_MAX_REMEMBERED_KEYS: Final = 20_000
"""For all selections of a snapshot that name flags: with 10,000 keys, some 5 MiB are compiled."""
NO_EXCEPTIONS: Final[Mapping[int, EvaluationDetail]] = MappingProxyType({})


class Decisions(NamedTuple):
    """What was decided about each flag of a selection, for one user after the other.

    `values` has a byte for each, 0 or 1. `exceptions` are the details of those that a target, a segment, or the lack of
    a user id decided or could have decided, by their position in `values`.
    """

    values: bytes
    exceptions: Mapping[int, EvaluationDetail] = NO_EXCEPTIONS
    users: int = 1


class Selection:
    """The flags of one request in its order (by key if it names none), and the keys that no flag has.

    Args:
        plans: The flags.
        unknown_flag_keys: The keys that no flag has, in the order of the request.
        are_named: Whether the request names them; otherwise it is for all flags.
        revision: That of the snapshot whose flags they are.
    """

    def __init__(
        self,
        plans: Sequence[FlagPlan] = (),
        *,
        unknown_flag_keys: Sequence[str] = (),
        are_named: bool = False,
        revision: int = 0,
    ) -> None:
        self.plans = plans
        self.unknown_flag_keys = unknown_flag_keys
        self.are_named = are_named
        self.revision = revision
        self.serialised: Any = None
        """What `wire` makes of it once, for all answers."""

    @cached_property
    def draws(self) -> Draws:
        """What constants and draws decide for a user."""
        return compile_draws([plan.salt for plan in self.plans], [plan.weight for plan in self.plans])

    @cached_property
    def flag_ids(self) -> Sequence[int]:
        """The id of each flag."""
        return tuple(plan.flag_id for plan in self.plans)

    @cached_property
    def aimed(self) -> Sequence[int]:
        """The positions of the flags that aim at segments."""
        return tuple(position for position, plan in enumerate(self.plans) if plan.segments and not plan.constant)

    @cached_property
    def positions(self) -> Mapping[int, int]:
        """The positions of the flags that have individual targets, by flag id."""
        return {plan.flag_id: position for position, plan in enumerate(self.plans) if plan.has_targets}

    @cached_property
    def has_exceptions(self) -> bool:
        """Whether a target or a segment decides for some users."""
        return bool(self.aimed or self.positions)

    def of_details(self, details: Sequence[EvaluationDetail]) -> Decisions:
        """Return decisions whose details are all known."""
        return Decisions(bytes([detail.value for detail in details]), dict(enumerate(details)))

    def tally(self, decisions: Decisions) -> int:
        """Return the number of decisions by reason, see `tally_of`."""
        tally, plans = self._tally * decisions.users, self.plans
        for at, detail in decisions.exceptions.items():
            tally += detail.tally - plans[at % len(plans)].tally
        return tally

    def codes(self, decisions: Decisions, *, user: int = 0, first: int = 0, step: int = 1) -> list[int]:
        """Return variant and reason, see `code_of`, of the decisions about each `step`th flag for one of the users."""
        begin, end = user * len(self.plans), (user + 1) * len(self.plans)
        codes = [*map(getitem, self._codes[first::step], decisions.values[begin + first : end : step])]
        if decisions.exceptions:
            for nth, at in enumerate(range(begin + first, end, step)):
                if detail := decisions.exceptions.get(at):
                    codes[nth] = detail.code
        return codes

    @cached_property
    def _tally(self) -> int:
        return sum([plan.tally for plan in self.plans])

    @cached_property
    def _codes(self) -> Sequence[tuple[int, int]]:
        return tuple(plan.codes for plan in self.plans)


class Selections:
    """The selections that requests of one snapshot have asked for, the newest of them. Thread-safe.

    Clients ask for the same flags again and again. What is forgotten is compiled again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows against other writers
        self._by_keys: dict[tuple[str, ...], Selection] = {}
        self._keys = 0

    def get(self, flag_keys: tuple[str, ...]) -> Selection | None:
        """Return the selection that was made for these keys; None: none, or it is forgotten."""
        return self._by_keys.get(flag_keys)

    def add(self, flag_keys: tuple[str, ...], selection: Selection) -> Selection:
        """Remember a selection; return the one that is remembered for these keys. The one of all flags stays."""
        with self._lock:
            known = self._by_keys.setdefault(flag_keys, selection)
            if known is selection:
                self._keys += len(flag_keys)
                self._forget()
            return known

    def _forget(self) -> None:
        while self._keys > _MAX_REMEMBERED_KEYS:
            oldest = next(keys for keys in self._by_keys if keys)
            del self._by_keys[oldest]
            self._keys -= len(oldest)
