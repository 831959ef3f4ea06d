"""Finds which of many texts occur in a text, in one pass over it: Aho and Corasick, 1975.

Python's `in` searches for one text at a time, and compares each of its characters with each of the other's at worst:
1,000 values and an attribute of 16 KiB take 15 ms, and 65 ms if they are chosen for it. One pass looks up two
transitions for a character at most, whatever is sought.
"""

from array import array
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator

_ROOT = 0
# A state and a character make one dict key. Unicode has fewer characters.
_CHARACTERS = 0x110000


class TextSearch:
    """A set of texts to search for, prepared. Immutable.

    States are the prefixes of the texts, each of which takes some 150 bytes and 4 us to prepare. The state after a
    character is the longest prefix that ends there.
    """

    __slots__ = ("_ends", "_next", "_shorter", "texts")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = frozenset(texts)
        self._next: dict[int, int] = {}
        self._ends = {self._path(text): text for text in self.texts}
        # For each state the longest other state that it ends in.
        self._shorter = array("I", bytes(4 * (len(self._next) + 1)))
        for state, char, target in self._by_depth():
            if state != _ROOT:
                self._shorter[target] = self._after(self._shorter[state], char)

    def found_in(self, text: str) -> frozenset[str]:
        """Return those of `texts` that occur in `text`."""
        found, seen = set[str](), set[int]()
        for visited in self._visited(text):
            state = visited
            while state not in seen:
                seen.add(state)
                if state in self._ends:
                    found.add(self._ends[state])
                state = self._shorter[state]
        return frozenset(found)

    def _visited(self, text: str) -> set[int]:
        # As `_after`, inline: the one loop that runs for each character.
        following, shorter = self._next.get, self._shorter
        state, visited = _ROOT, {_ROOT}
        for char in map(ord, text):
            while (target := following(state * _CHARACTERS + char, _ROOT)) == _ROOT != state:
                state = shorter[state]
            state = target
            visited.add(state)
        return visited

    def _after(self, state: int, char: int) -> int:
        while (target := self._next.get(state * _CHARACTERS + char, _ROOT)) == _ROOT != state:
            state = self._shorter[state]
        return target

    def _path(self, text: str) -> int:
        """Return the state of a text; add those that lead to it."""
        state = _ROOT
        for char in map(ord, text):
            state = self._next.setdefault(state * _CHARACTERS + char, len(self._next) + 1)
        return state

    def _by_depth(self) -> Iterator[tuple[int, int, int]]:
        """Yield state, character and next state of all transitions, those from shorter prefixes first."""
        transitions = defaultdict[int, list[tuple[int, int]]](list)
        for key, target in self._next.items():
            state, char = divmod(key, _CHARACTERS)
            transitions[state].append((char, target))
        waiting = deque([_ROOT])
        while waiting:
            state = waiting.popleft()
            for char, target in transitions.pop(state, ()):
                yield state, char, target
                waiting.append(target)
