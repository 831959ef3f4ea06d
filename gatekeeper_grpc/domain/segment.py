"""The segment: users aimed at together, by conditions on their attributes or one by one (members, kept elsewhere)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.condition import MAX_VALUES, Condition, Operator
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import MAX_DESCRIPTION_CHARS, check_count, check_key, check_text

MAX_CONDITIONS = 64


class Match(Enum):
    """How many of a segment's conditions a user has to meet."""

    ALL = "ALL"
    ANY = "ANY"


# Unlike an IN of 1,000 values, which costs what an IN of one does, these try their values one after the other.
_SCANNING_OPERATORS = frozenset({Operator.CONTAINS, Operator.STARTS_WITH, Operator.ENDS_WITH})

# Python 3.11 takes longer to look an enum member up (140 ns) than to test a condition.
_ANY = Match.ANY


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment, valid by construction; `InvalidArgument` names the field as "segment.<name>".

    `segment_id` is its identity: a segment created again under a freed key is another segment. It has at most 64
    conditions, with at most 1,000 values between them. Members are not held here: there may be a million of them.
    """

    segment_id: int
    key: str
    description: str = ""
    match: Match = Match.ALL
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        check_key("segment.key", self.key)
        check_text("segment.description", self.description, at_most=MAX_DESCRIPTION_CHARS)
        check_count("segment.conditions", self.conditions, at_most=MAX_CONDITIONS)
        value_count = sum(len(condition.values) for condition in self.conditions)
        if value_count > MAX_VALUES:
            raise InvalidArgument.of(
                "segment.conditions", f"must have at most {MAX_VALUES} values in all, not {value_count}"
            )

    def conditions_match(self, attributes: Mapping[str, JsonValue]) -> bool:
        """Say whether a user with these attributes is in by the conditions; without any, nobody is. Never raises."""
        # One miss settles ALL, one hit settles ANY. A loop, because a generator for all() costs as much as a condition.
        settling = self.match is _ANY
        for condition in self.conditions:
            if condition.matches(attributes) is settling:
                return settling
        return bool(self.conditions) and not settling

    def attribute_names(self) -> frozenset[str]:
        """Return the top-level attributes that the conditions look at: all that a snapshot needs of a stored user."""
        return frozenset(condition.attribute_name for condition in self.conditions)

    def scanned_value_count(self) -> int:
        """Return how many values evaluation tries one by one; over all segments the contract allows 1,000."""
        return sum(len(condition.values) for condition in self.conditions if condition.operator in _SCANNING_OPERATORS)


@contextmanager
def violations_under(path: str) -> Iterator[None]:
    """Prefix the field of an `InvalidArgument` raised inside with `path`, such as "segment.conditions[3]"."""
    try:
        yield
    except InvalidArgument as error:
        violation = error.violations[0]
        raise InvalidArgument.of(f"{path}.{violation.field}", violation.description) from error
