"""Options that are read before the one that names the server, whose callback needs them."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Function = TypeVar("Function", bound=Callable[..., Any])

CONTEXT = "--context"
_TYPED = "typed"


def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep the value of an option in the meta of the context, under its name; one that was typed comes first."""
    option, is_typed = parameter.opts[0], context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    if not value or (option in context.meta and not is_typed):
        return
    context.meta[option] = value
    if is_typed:
        context.meta.setdefault(_TYPED, {})[option] = value


def typed(context: click.Context) -> dict[str, str]:
    """Return the kept options that were typed, with their values."""
    return context.meta.setdefault(_TYPED, {})  # type: ignore[no-any-return]


def kept_option(*names: str, **settings: Any) -> Callable[[Function], Function]:
    """Return an option whose value is kept, and no argument of the command."""
    return click.option(*names, is_eager=True, expose_value=False, callback=keep, **settings)


def context_option(**settings: Any) -> Callable[[Function], Function]:
    """Return the option --context."""
    return kept_option(CONTEXT, metavar="NAME", help="A server that `gatekeeper context set` has named.", **settings)
