"""The flags and users of `bench.peers`, and what each user is to get: the same for Gatekeeper and every peer.

By index modulo 20, 10 flags have a rollout of 50 %, 2 are on, 1 is off, 1 is disabled, 3 give true to 20 named users,
and 3 give true to users in Switzerland and to 10 % of the others.
"""

from dataclasses import dataclass
from enum import Enum

ROLLOUT_PERCENT, OTHERS_PERCENT = 50, 10
COUNTRY = "CH"
COUNTRIES = (COUNTRY, "DE", "FR", "IT")
PLANS = ("free", "pro")


class Kind(Enum):
    """How a flag decides."""

    ROLLOUT = "rollout"
    ON = "on"
    OFF = "off"
    DISABLED = "disabled"
    NAMED = "named"
    COUNTRY = "country"


MIX = (Kind.ROLLOUT,) * 10 + (Kind.ON,) * 2 + (Kind.OFF, Kind.DISABLED) + (Kind.NAMED,) * 3 + (Kind.COUNTRY,) * 3


@dataclass(frozen=True, slots=True)
class User:
    """A user: the id, and two attributes that follow from its number."""

    number: int

    @property
    def user_id(self) -> str:
        """The id."""
        return f"user-{self.number}"

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes that each request carries."""
        return {"country": COUNTRIES[self.number % len(COUNTRIES)], "plan": PLANS[self.number % len(PLANS)]}


NAMED_USERS = [User(number).user_id for number in range(20)]


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag: its key, and how it decides."""

    key: str
    kind: Kind

    def value_for(self, user: User) -> bool | None:
        """Return what the user is to get; None if a draw decides."""
        match self.kind:
            case Kind.ROLLOUT:
                return None
            case Kind.COUNTRY:
                return True if user.attributes["country"] == COUNTRY else None
            case Kind.NAMED:
                return user.user_id in NAMED_USERS
            case _:
                return self.kind is Kind.ON


def flags_of(count: int) -> list[Flag]:
    """Return the first `count` flags."""
    return [Flag(f"flag-{number}", MIX[number % len(MIX)]) for number in range(count)]
