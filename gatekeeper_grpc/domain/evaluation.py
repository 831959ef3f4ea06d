"""The input and output of evaluation: question, context, reason, detail."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from gatekeeper_grpc.domain.flag import ON, VARIANTS

TALLY_BITS: Final = 48
"""For how many decisions of one reason a tally has room."""


class Reason(IntEnum):
    """The rule that decided. Values are those of the proto enum."""

    STATIC = 1
    DEFAULT = 2
    TARGETING_MATCH = 3
    SPLIT = 4
    DISABLED = 5


# The first two fit into a machine word, and are added faster: the most frequent ones.
_BY_FREQUENCY: Final = (Reason.SPLIT, Reason.DEFAULT, Reason.STATIC, Reason.TARGETING_MATCH, Reason.DISABLED)


def tally_of(reason: Reason) -> int:
    """Return a one at the bits of a reason: in the sum of many tallies, these bits have the number of its decisions."""
    return 1 << _BY_FREQUENCY.index(reason) * TALLY_BITS


CODES: Final = len(VARIANTS) * len(Reason)
"""How many codes there are, see `decision_of`."""


def code_of(variant: str, reason: Reason) -> int:
    """Return the number, from 0 on, of a variant that was decided for a reason."""
    return VARIANTS.index(variant) * len(Reason) + reason - 1


def decision_of(code: int) -> tuple[str, Reason]:
    """Return the variant and the reason with this code."""
    variant, reason = divmod(code, len(Reason))
    return VARIANTS[variant], Reason(reason + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationContext:
    """The user and attributes to evaluate against. `user_id` None is an anonymous user: never targeted, never drawn.

    `attributes` are those of the request; the snapshot has the stored ones. `user` is the id in UTF-8, encoded once for
    all flags.
    """

    user_id: str | None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    user: bytes | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "user", None if self.user_id is None else self.user_id.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationDetail:
    """One result and its reason. `bucket` (0 to 99) is set only with SPLIT, `segment_key` only if a segment decided.

    `value` is the variant as a boolean. `tally` is that of its reason; `code` has variant and reason.
    """

    variant: str
    reason: Reason
    segment_key: str = ""
    bucket: int | None = None
    value: bool = field(init=False)
    tally: int = field(init=False, compare=False, repr=False)
    code: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Computed once: details are shared, and bulk evaluation reads the value millions of times a second.
        object.__setattr__(self, "value", self.variant == ON)
        object.__setattr__(self, "tally", tally_of(self.reason))
        object.__setattr__(self, "code", code_of(self.variant, self.reason))
