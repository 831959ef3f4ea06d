"""Each sabotage of the fault tests still finds what it replaces: they run in `make test-faults` alone."""

from typing import Any

import pytest

from tests.faults import sabotaged


@pytest.mark.parametrize("name", sabotaged.SABOTAGES)
def test_a_sabotage_replaces_what_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []

    def put(owner: Any, **replacements: Any) -> None:
        for attribute, replacement in replacements.items():
            monkeypatch.setattr(owner, attribute, replacement)  # Raises if it is not there.
            replaced.append(attribute)

    monkeypatch.setattr(sabotaged, "_put", put)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    sabotaged.SABOTAGES[name]()

    assert replaced
