"""What one evaluation has found out about the attributes of its user: each value is parsed and searched once.

Thousands of conditions may test one list or one text of 16 KiB. Without this, each would go through all of it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.text_search import TextSearch

_T = TypeVar("_T")


class AttributeMemo:
    """Remembers what was derived from attribute values, for one user and one evaluation.

    Args:
        search: Searches for the texts of all CONTAINS conditions that use this memo.
    """

    __slots__ = ("_derived", "_found", "_search")

    def __init__(self, search: TextSearch) -> None:
        self._search = search
        # By identity: 1 and true are equal to Python, and lists have no hash. The attributes keep the values alive.
        self._derived: dict[tuple[Callable[[JsonValue], object], int], Any] = {}
        self._found: dict[int, frozenset[str]] = {}

    def once(self, derive: Callable[[JsonValue], _T], value: JsonValue) -> _T | None:
        """Return `derive(value)`, or None if it raises `ValueError`; computed for the first condition that asks."""
        key = (derive, id(value))
        if key not in self._derived:
            self._derived[key] = _or_none(derive, value)
        derived: _T | None = self._derived[key]
        return derived

    def texts_in(self, text: str) -> frozenset[str]:
        """Return which of the texts that are searched for occur in the value of an attribute."""
        if id(text) not in self._found:
            self._found[id(text)] = self._search.found_in(text)
        return self._found[id(text)]


def _or_none(derive: Callable[[JsonValue], _T], value: JsonValue) -> _T | None:
    try:
        return derive(value)
    except ValueError:
        return None
