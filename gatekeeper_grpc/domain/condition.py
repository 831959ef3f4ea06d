"""One condition of a segment: an attribute, an operator and values, compiled once and tested for every user.

Types never coerce. An attribute that is missing, null or of another type than the operator needs does not match, and
matches with `negate`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from operator import eq, ge, gt, le, lt
from typing import TypeAlias, TypeVar

from gatekeeper_grpc.domain.attribute import (
    Attributes,
    JsonValue,
    canonical,
    elements,
    identity,
    member,
    number_of,
    reference_tokens,
    size_bytes,
    text_of,
)
from gatekeeper_grpc.domain.attribute_memo import AttributeMemo
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.ordering import instant, semver_precedence
from gatekeeper_grpc.domain.text_search import TextSearch

MAX_VALUE_BYTES = 256
MAX_VALUES = 1_000
# A condition looks for its texts one by one if that compares at most so many pairs of characters, and otherwise reads
# the attribute once for all conditions.
_MAX_COMPARED_CHARS = 4_096


class Operator(Enum):
    """How a condition tests an attribute. The values are the names in documents."""

    EQUALS = "EQUALS"
    IN = "IN"
    CONTAINS = "CONTAINS"
    STARTS_WITH = "STARTS_WITH"
    ENDS_WITH = "ENDS_WITH"
    GREATER_THAN = "GREATER_THAN"
    GREATER_OR_EQUAL = "GREATER_OR_EQUAL"
    LESS_THAN = "LESS_THAN"
    LESS_OR_EQUAL = "LESS_OR_EQUAL"
    EXISTS = "EXISTS"
    BEFORE = "BEFORE"
    AFTER = "AFTER"
    SEMVER_EQUAL = "SEMVER_EQUAL"
    SEMVER_GREATER = "SEMVER_GREATER"
    SEMVER_GREATER_OR_EQUAL = "SEMVER_GREATER_OR_EQUAL"
    SEMVER_LESS = "SEMVER_LESS"
    SEMVER_LESS_OR_EQUAL = "SEMVER_LESS_OR_EQUAL"


# They look for a part of a text, and try their values one after the other.
SCANNING_OPERATORS = frozenset({Operator.CONTAINS, Operator.STARTS_WITH, Operator.ENDS_WITH})

_Test: TypeAlias = Callable[[JsonValue, AttributeMemo], bool]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A test of one attribute, valid by construction and immutable.

    Two conditions are equal if they test the same: 5 and 5.0 are one number, 1 and true are two values.

    Attributes:
        attribute: A top-level name, or a JSON Pointer (RFC 6901) when it starts with ``/``; 1 to 256 bytes, no NUL.
        operator: EXISTS takes no value; IN, CONTAINS, STARTS_WITH and ENDS_WITH take 1 to 1,000 and match when any of
            them does; every other takes exactly one. CONTAINS looks for a substring in text, for an equal element in a
            list. EQUALS and IN compare whole JSON values, lists and objects included.
        values: None null, each at most 256 bytes (text in UTF-8, the rest as JSON) and 5 levels deep, and of the type
            the operator needs: text, a finite number, an RFC 3339 time with an offset, a SemVer version. Kept as
            `canonical` copies.
        negate: Match exactly if the condition would otherwise not.

    Raises:
        InvalidArgument: With the field relative to the condition, e.g. "values[2]"; see `segment.violations_under`.

    Source: contract, "Operators of a segment condition" and "Limits".
    """

    attribute: str
    operator: Operator
    values: tuple[JsonValue, ...] = field(default=(), compare=False)
    negate: bool = False
    # Compares instead of `values`: to Python 1 and True are equal, and lists have no hash.
    _identities: tuple[object, ...] = field(init=False, repr=False)
    _name: str = field(init=False, repr=False, compare=False)
    _inner_tokens: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _holds: _Test = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name, *inner_tokens = _checked_tokens(self.attribute)
        values = _checked_values(self.operator, self.values)
        # The way a frozen dataclass fills its derived fields.
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "_identities", tuple(map(identity, values)))
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_inner_tokens", tuple(inner_tokens))
        object.__setattr__(self, "_holds", _RULES[self.operator].compiled(values))

    @property
    def attribute_name(self) -> str:
        """The top-level attribute that is tested: the first name of a JSON Pointer, unescaped."""
        return self._name

    @property
    def sought_texts(self) -> frozenset[str]:
        """The texts that a CONTAINS condition looks for; of other operators, none."""
        if self.operator is not Operator.CONTAINS:
            return frozenset()
        return frozenset(value for value in self.values if isinstance(value, str))

    def matches(self, attributes: Attributes, memo: AttributeMemo | None = None) -> bool:
        """Return whether a user with these attributes matches. Never raises: malformed values do not match.

        Conditions that test one user share a `memo`, which then must search for the `sought_texts` of all of them.
        """
        value = attributes.get(self._name)
        for token in self._inner_tokens:
            if value is None:  # A pointer may name a hundred levels; attributes have five.
                break
            value = member(value, token)
        memo = memo or AttributeMemo(TextSearch(self.sought_texts))
        return (value is not None and self._holds(value, memo)) is not self.negate


def check_not_for_everybody(operator: Operator, values: Sequence[JsonValue]) -> None:
    """Check the values of a new condition; a stored one may have been written before this was checked.

    Raises:
        InvalidArgument: A value is the empty text, which is part of every text; see `Condition` for the field.
    """
    if operator in SCANNING_OPERATORS and "" in values:
        raise InvalidArgument.of(
            f"values[{values.index('')}]", f"must not be empty: every text matches {operator.value} of the empty text"
        )


def condition_document(condition: Condition) -> dict[str, JsonValue]:
    """Return the condition as JSON, for the store and the audit log; `condition_from_document` is the inverse."""
    return {
        "attribute": condition.attribute,
        "operator": condition.operator.value,
        "values": [canonical(value) for value in condition.values],
        "negate": condition.negate,
    }


def condition_from_document(document: Mapping[str, JsonValue]) -> Condition:
    """Return the condition that `condition_document` wrote.

    Raises:
        ValueError: The document has another shape or an unknown operator. Fields of a later release are not skipped:
            they may change whom the condition matches.
        InvalidArgument: It breaks a limit.
    """
    match document:
        case {
            "attribute": str(attribute),
            "operator": str(name),
            "values": list(values),
            "negate": bool(negate),
            **unknown,
        } if not unknown:
            return Condition(attribute=attribute, operator=Operator(name), values=tuple(values), negate=negate)
    raise ValueError("a condition document has the fields attribute, operator, values and negate, and no other")


def _checked_tokens(attribute: str) -> tuple[str, ...]:
    try:
        return reference_tokens(attribute)
    except ValueError as error:
        raise InvalidArgument.of("attribute", str(error)) from error


def _checked_values(operator: Operator, values: Sequence[JsonValue]) -> tuple[JsonValue, ...]:
    least, most = _RULES[operator].value_count
    if not least <= len(values) <= most:
        wanted = f"{least} to {most}" if least < most else f"{least}"
        raise InvalidArgument.of("values", f"must number {wanted} for {operator.value}, not {len(values)}")
    return tuple(_checked_value(operator, index, value) for index, value in enumerate(values))


def _checked_value(operator: Operator, index: int, value: JsonValue) -> JsonValue:
    path = f"values[{index}]"
    if value is None:
        raise InvalidArgument.of(path, "must not be null, which counts as missing; use EXISTS with negate")
    try:
        kept = canonical(value)
        _RULES[operator].parse(kept)
    except ValueError as error:
        raise InvalidArgument.of(path, str(error)) from error
    if size_bytes(kept) > MAX_VALUE_BYTES:
        raise InvalidArgument.of(path, f"must be at most {MAX_VALUE_BYTES} bytes")
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """What an operator needs of its values (`parse` raises `ValueError`), and how it compiles them to a test."""

    value_count: tuple[int, int]
    parse: Callable[[JsonValue], object]
    compiled: Callable[[tuple[JsonValue, ...]], _Test]


def _compared(parse: Callable[[JsonValue], _T], is_met: Callable[[_T, _T], bool]) -> _Rule:
    """Make the rule of an operator with one value, compared with the attribute after both are parsed."""

    def compiled(values: tuple[JsonValue, ...]) -> _Test:
        bound = parse(values[0])

        def test(value: JsonValue, memo: AttributeMemo) -> bool:
            parsed = memo.once(parse, value)
            return parsed is not None and is_met(parsed, bound)

        return test

    return _Rule(value_count=(1, 1), parse=parse, compiled=compiled)


def _affixed(has_any: Callable[[str, tuple[str, ...]], bool]) -> _Rule:
    def compiled(values: tuple[JsonValue, ...]) -> _Test:
        affixes = tuple(map(text_of, values))
        return lambda value, _memo: isinstance(value, str) and has_any(value, affixes)

    return _Rule(value_count=(1, MAX_VALUES), parse=text_of, compiled=compiled)


def _is_one_of(values: tuple[JsonValue, ...]) -> _Test:
    wanted = frozenset(map(identity, values))
    containers_wanted = any(isinstance(value, (list, dict)) for value in values)

    def test(value: JsonValue, memo: AttributeMemo) -> bool:
        # Text is its own identity. That of a large list takes a millisecond: skipped if no list can match.
        if isinstance(value, str):
            return value in wanted
        if isinstance(value, (list, dict)):
            return containers_wanted and memo.once(identity, value) in wanted
        return identity(value) in wanted

    return test


def _contains_any(values: tuple[JsonValue, ...]) -> _Test:
    texts = frozenset(value for value in values if isinstance(value, str))
    chars = sum(map(len, texts))
    wanted = frozenset(map(identity, values))

    def test(value: JsonValue, memo: AttributeMemo) -> bool:
        if isinstance(value, list):
            contained = memo.once(elements, value)
            return contained is not None and not wanted.isdisjoint(contained)
        if not isinstance(value, str):
            return False
        if chars * len(value) <= _MAX_COMPARED_CHARS:
            return any(text in value for text in texts)
        return not texts.isdisjoint(memo.texts_in(value))

    return test


_RULES: Mapping[Operator, _Rule] = {
    Operator.EQUALS: _Rule(value_count=(1, 1), parse=identity, compiled=_is_one_of),
    Operator.IN: _Rule(value_count=(1, MAX_VALUES), parse=identity, compiled=_is_one_of),
    Operator.CONTAINS: _Rule(value_count=(1, MAX_VALUES), parse=identity, compiled=_contains_any),
    Operator.STARTS_WITH: _affixed(str.startswith),
    Operator.ENDS_WITH: _affixed(str.endswith),
    Operator.GREATER_THAN: _compared(number_of, gt),
    Operator.GREATER_OR_EQUAL: _compared(number_of, ge),
    Operator.LESS_THAN: _compared(number_of, lt),
    Operator.LESS_OR_EQUAL: _compared(number_of, le),
    # `matches` tests only attributes that are not null.
    Operator.EXISTS: _Rule(value_count=(0, 0), parse=identity, compiled=lambda _values: lambda _value, _memo: True),
    Operator.BEFORE: _compared(instant, lt),
    Operator.AFTER: _compared(instant, gt),
    Operator.SEMVER_EQUAL: _compared(semver_precedence, eq),
    Operator.SEMVER_GREATER: _compared(semver_precedence, gt),
    Operator.SEMVER_GREATER_OR_EQUAL: _compared(semver_precedence, ge),
    Operator.SEMVER_LESS: _compared(semver_precedence, lt),
    Operator.SEMVER_LESS_OR_EQUAL: _compared(semver_precedence, le),
}
