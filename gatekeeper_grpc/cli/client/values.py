"""Values in arguments: attributes, which are JSON or else text, and pairs of a name and a value."""

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

# Numbers travel as doubles, which hold no larger integer exactly.
_LARGEST_EXACT = 2**53
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


def value_of(name: str, text: str) -> Any:
    """Read JSON; anything else is text.

    Raises:
        click.BadParameter: It has an integer that doubles do not hold.
    """
    try:
        return json.loads(text, parse_constant=str, parse_int=_exact)
    except OverflowError:
        raise click.BadParameter(
            f"{name!r} has an integer beyond 2^53: write it as text, '{name}=\"{text}\"'"
        ) from None
    except ValueError:
        return text


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
