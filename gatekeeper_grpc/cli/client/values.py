"""Values in arguments: attributes, which are JSON or else text, and pairs of a name and a value."""

import json
import shlex
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from gatekeeper_grpc.cli.client.output import choice_of

Function = TypeVar("Function", bound=Callable[..., Any])

# Numbers travel as doubles, which hold no larger integer exactly.
_LARGEST_EXACT = 2**53
_OPERATORS = (
    *("equals", "in", "contains", "starts_with", "ends_with"),
    *("greater_than", "greater_or_equal", "less_than", "less_or_equal", "exists", "before", "after"),
    *("semver_equal", "semver_greater", "semver_greater_or_equal", "semver_less", "semver_less_or_equal"),
)
_BOOLEANS = {"true": True, "on": True, "false": False, "off": False}


def attributes(_context: click.Context, _parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read attributes, for an option."""
    found: dict[str, Any] = {}
    for name, value in _pairs(pairs):
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice")
        found[name] = value_of(name, value)
    return found


def segment_targets(
    _context: click.Context, _parameter: click.Parameter, pairs: tuple[str, ...]
) -> tuple[dict[str, Any], ...]:
    """Read segments with the value of their users, for an option."""
    return tuple({"segment_key": key, "value": _boolean(value)} for key, value in _pairs(pairs))


def conditions(
    _context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[dict[str, Any], ...]:
    """Read conditions of a segment, for an option."""
    return tuple(map(_condition, texts))


def shown_condition(condition: Any) -> str:
    """Return a condition as the option takes it."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415

    operator = choice_of("operator")(condition)
    values = [_argument_of(MessageToDict(value)) for value in condition.values]
    return shlex.join([condition.attribute, *(["not"] if condition.negate else []), operator, *values])


def _argument_of(value: Any) -> str:
    """Return what `value_of` reads as the value."""
    if isinstance(value, str) and value_of("", value) == value:
        return value
    exact = int(value) if isinstance(value, float) and value.is_integer() else value
    return json.dumps(exact, ensure_ascii=False)


def _message_of(value: Any) -> dict[str, Any]:
    """Return a JSON value as a google.protobuf.Value is made of it."""
    if isinstance(value, bool):
        return {"bool_value": value}
    fields = {str: "string_value", int: "number_value", float: "number_value", list: "list_value", dict: "struct_value"}
    return {fields[type(value)]: value} if value is not None else {"null_value": 0}


def _condition(text: str) -> dict[str, Any]:
    try:
        attribute, *words = shlex.split(text) or [""]
    except ValueError as exc:
        raise click.BadParameter(f"{text!r}: {exc}") from None
    negate = words[:1] == ["not"]
    operator, *values = words[negate:] or [""]
    if operator.lower() not in _OPERATORS:
        raise click.BadParameter(
            f"{text!r} must be ATTRIBUTE [not] OPERATOR [VALUE...], with one of {', '.join(_OPERATORS)}"
        )
    return {
        "attribute": attribute,
        "negate": negate,
        "operator": f"CONDITION_OPERATOR_{operator.upper()}",
        "values": [_message_of(value_of(attribute, value)) for value in values],
    }


def value_of(name: str, text: str) -> Any:
    """Read JSON; anything else is text.

    Raises:
        click.BadParameter: It has an integer that doubles do not hold.
    """
    try:
        return exact_json(text)
    except OverflowError:
        raise click.BadParameter(
            f"{name!r} has an integer beyond 2^53: write it as text, '{name}=\"{text}\"'"
        ) from None
    except ValueError:
        return text


def exact_json(text: str) -> Any:
    """Read JSON.

    Raises:
        OverflowError: It has an integer that doubles do not hold.
        ValueError: It is no JSON.
    """
    return json.loads(text, parse_constant=str, parse_int=_exact)


def attribute_option(help: str) -> Callable[[Function], Function]:  # noqa: A002 - as click calls it
    """Return the option --attr; the command gets `attributes`."""
    return click.option(
        "--attr",
        "attributes",
        multiple=True,
        metavar="NAME=VALUE",
        callback=attributes,
        help=f"{help}; a value that is JSON (30, true, [1]) is that, any other is text. Repeatable.",
    )


def _pairs(pairs: Iterable[str]) -> Iterable[tuple[str, str]]:
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{pair!r} must be NAME=VALUE")
        yield name, value


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise click.BadParameter(f"{text!r} must be true or false")
    return _BOOLEANS[text]


def _exact(digits: str) -> int:
    if abs(value := int(digits)) > _LARGEST_EXACT:
        raise OverflowError(digits)
    return value
