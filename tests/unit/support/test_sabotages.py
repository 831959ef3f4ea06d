"""Each sabotage of the fault tests still finds what it replaces: they run in `make test-faults` alone."""

import inspect
from inspect import Parameter
from typing import Any

import pytest

from tests.faults import sabotaged


def takes_the_arguments_of(replaced: Any, replacement: Any) -> bool:
    """Whether the replacement can be called with every argument of what it replaces; true unless both are functions."""
    if not (inspect.isfunction(replaced) and inspect.isfunction(replacement)):
        return True
    parameters = inspect.signature(replaced).parameters.values()
    positional = [one.name for one in parameters if one.kind is Parameter.POSITIONAL_OR_KEYWORD]
    named = {one.name: None for one in parameters if one.kind is Parameter.KEYWORD_ONLY}
    try:
        inspect.signature(replacement).bind(*positional, **named)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("name", sabotaged.SABOTAGES)
def test_a_sabotage_replaces_what_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []

    def put(owner: Any, **replacements: Any) -> None:
        for attribute, replacement in replacements.items():
            assert takes_the_arguments_of(getattr(owner, attribute), replacement)
            monkeypatch.setattr(owner, attribute, replacement)  # Raises if it is not there.
            replaced.append(attribute)

    monkeypatch.setattr(sabotaged, "_put", put)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("GATEKEEPER_ANSWER_AT_ONCE", "true")  # Some set it; this takes it back.
    sabotaged.SABOTAGES[name]()

    assert replaced
