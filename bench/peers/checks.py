"""Judges answers: a value that no draw decides must be right, and half of the draws at 50 % must be true."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.peers.flags import Flag, Kind, User

SHARES = (0.4, 0.6)
# With fewer draws, a fair share of true leaves that range too often.
ENOUGH_DRAWS = 200


class WrongAnswer(Exception):
    """The server did not answer, or not as its flags say."""


@dataclass(slots=True)
class Tally:
    """What the checked answers of a server have held so far."""

    answers: int = 0
    draws: int = 0
    trues: int = 0
    kinds: set[Kind] = field(default_factory=set)

    def add(self, flags: Sequence[Flag], user: User, values: Mapping[str, bool]) -> None:
        """Judge the answer to a question about `flags`. A flag that it leaves out is not true for the user.

        Raises:
            WrongAnswer: a value is not what the flag says.
        """
        self.answers += 1
        for flag in flags:
            value, expected = values.get(flag.key, False), flag.value_for(user)
            if expected is not None and value is not expected:
                raise WrongAnswer(f"{flag.key} ({flag.kind.value}) is {value} for {user.user_id}, not {expected}")
            self.kinds.add(flag.kind)
            self.draws += flag.kind is Kind.ROLLOUT
            self.trues += flag.kind is Kind.ROLLOUT and value
        unknown = values.keys() - {flag.key for flag in flags}
        if unknown:
            raise WrongAnswer(f"answers about {len(unknown)} flags that nobody asked for, such as {min(unknown)}")

    @property
    def share(self) -> float:
        """The share of true among the draws at 50 %."""
        return self.trues / max(self.draws, 1)

    def judge(self) -> None:
        """Judge the draws, if there are enough of them.

        Raises:
            WrongAnswer: the share of true is no 50 %.
        """
        if self.draws >= ENOUGH_DRAWS and not SHARES[0] <= self.share <= SHARES[1]:
            raise WrongAnswer(f"{self.share:.2f} of {self.draws} draws at 50 % are true")
