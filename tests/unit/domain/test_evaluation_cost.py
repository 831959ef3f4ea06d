"""An evaluation takes a bounded number of steps, whatever the conditions are and whatever the client sends.

Steps are counted, not timed: one is an instruction of the interpreter, or 100 pairs of characters that `in` compares.
"""

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from gatekeeper_grpc.domain import condition as condition_module
from gatekeeper_grpc.domain.attribute import JsonValue, size_bytes
from gatekeeper_grpc.domain.attribute_memo import AttributeMemo
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.limits import (
    MAX_ATTRIBUTES_BYTES,
    MAX_SCANNED_VALUES,
    MAX_SEGMENT_TARGETS,
    MAX_STEPS_PER_ATTRIBUTE_BYTE,
    MAX_STEPS_PER_CONDITION,
    MAX_STEPS_PER_FLAG,
    MAX_STEPS_PER_SEGMENT_TARGET,
)
from gatekeeper_grpc.domain.segment import MAX_CONDITIONS, Match, Segment
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user_index import UserIndex
from tests.support.flags import flag, on_for
from tests.support.segments import segment

pytestmark = pytest.mark.promise("F6")

COMPARED_CHARS_PER_STEP = 100


class CountedText(str):
    """Text that counts how many pairs of characters `in` compares at worst."""

    __slots__ = ()
    compared = 0

    def __contains__(self, sought: object) -> bool:
        CountedText.compared += len(self) * len(str(sought))
        return super().__contains__(sought)  # type: ignore[operator] # pyright: ignore[reportArgumentType]


class Case:
    """A snapshot whose flags target segments with these conditions, and a user whom each condition has to refuse."""

    def __init__(self, conditions: list[Condition], attributes: dict[str, JsonValue]) -> None:
        assert size_bytes(attributes) <= MAX_ATTRIBUTES_BYTES + 100
        self._conditions = conditions
        self._attributes = attributes
        parts = [conditions[at : at + MAX_CONDITIONS] for at in range(0, len(conditions), MAX_CONDITIONS)]
        self._segments = [segment(f"s{n}", *part, match=Match.ANY, segment_id=n) for n, part in enumerate(parts)]

    def limit(self) -> int:
        """The most steps that the evaluation may take."""
        return (
            MAX_STEPS_PER_FLAG * 2
            + MAX_STEPS_PER_SEGMENT_TARGET * len(self._segments) * 2
            + MAX_STEPS_PER_CONDITION * len(self._conditions)
            + MAX_STEPS_PER_ATTRIBUTE_BYTE * size_bytes(self._attributes)
        )

    def steps(self) -> int:
        """The steps that the evaluation takes."""
        snapshot, attributes = self._snapshot(), {name: _counted(value) for name, value in self._attributes.items()}
        before = CountedText.compared
        instructions = _instructions_of(
            lambda: snapshot.evaluate(
                snapshot.plans.values(), EvaluationContext(user_id="alice", attributes=attributes)
            )
        )
        return instructions + (CountedText.compared - before) // COMPARED_CHARS_PER_STEP

    def _snapshot(self) -> Snapshot:
        targets = on_for(*(each.key for each in self._segments[:MAX_SEGMENT_TARGETS]))
        flags = [flag(f"f{n}", enabled=True, segment_targets=targets, flag_id=n) for n in range(2)]
        return Snapshot.build(revision=1, flags=flags, segments=self._segments)


def _counted(value: JsonValue) -> JsonValue:
    return CountedText(value) if isinstance(value, str) else value


def _instructions_of(act: Callable[[], object]) -> int:
    """Count the instructions that the interpreter runs in the domain."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        if event == "call":
            if "/gatekeeper_grpc/domain/" not in frame.f_code.co_filename:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def of(operator: Operator, *values: JsonValue, attribute: str = "a") -> Condition:
    return Condition(attribute=attribute, operator=operator, values=values)


def contains(*values: JsonValue, attribute: str = "a") -> Condition:
    return of(Operator.CONTAINS, *values, attribute=attribute)


TEXT = "a" * MAX_ATTRIBUTES_BYTES
WORDS = [f"needle-{number}" for number in range(MAX_SCANNED_VALUES)]
NEARLY = ["a" * at + "b" + "a" * (200 - at) for at in range(200)]
LIST: list[JsonValue] = [f"{number:x}" for number in range(2_500)]
MANY = range(1_000)

# Each test makes its own: every process of a run imports this module, and thousands of conditions take a second.
CASES: dict[str, Callable[[], Case]] = {
    "1,000 texts sought in 16 KiB": lambda: Case([contains(*WORDS)], {"a": TEXT}),
    "texts that nearly occur": lambda: Case([contains(*NEARLY)], {"a": TEXT}),
    "a condition for each text": lambda: Case([contains(word) for word in WORDS], {"a": TEXT}),
    "one attribute by two names": lambda: Case(
        [contains(*WORDS[:500]), contains(*WORDS[500:], attribute="/a")], {"a": TEXT}
    ),
    "many short texts": lambda: Case(
        [contains(word, attribute=f"a{n}") for n, word in enumerate(WORDS)], {f"a{n}": "a" * 9 for n in range(800)}
    ),
    "1,000 texts sought in a list": lambda: Case([contains(*WORDS)], {"a": LIST}),
    "a condition for each element": lambda: Case([contains(word) for word in WORDS], {"a": LIST}),
    "elements that are lists": lambda: Case([contains([n]) for n in range(1_000)], {"a": [[n] for n in MANY]}),
    "lists compared whole": lambda: Case([of(Operator.EQUALS, [n]) for n in MANY], {"a": LIST}),
    "deep lists compared whole": lambda: Case([of(Operator.EQUALS, [[[[n]]]]) for n in MANY], {"a": [[[[*MANY]]]]}),
    "versions": lambda: Case(
        [of(Operator.SEMVER_LESS, f"0.0.{n}") for n in MANY], {"a": "1.0.0-" + ".".join("1" * 125)}
    ),
    "times": lambda: Case([of(Operator.BEFORE, f"{1000 + n}-01-01T00:00:00Z") for n in MANY], {"a": "2" * 256}),
    "prefixes": lambda: Case([of(Operator.STARTS_WITH, *WORDS)], {"a": TEXT}),
    "pointers of 128 levels": lambda: Case(
        [of(Operator.EQUALS, n, attribute="/a" * 128) for n in MANY], {"a": {"a": {"a": {"a": {}}}}}
    ),
    "many attributes": lambda: Case(
        [of(Operator.EQUALS, -1, attribute=f"a{n}") for n in MANY], {f"a{n}": n for n in range(1_000)}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_no_condition_and_attribute_cost_more_than_the_limit(name: str) -> None:
    case = CASES[name]()

    assert case.steps() <= case.limit()


@pytest.mark.parametrize("seed", range(8))
def test_no_mixture_of_conditions_costs_more_than_the_limit(seed: int) -> None:
    case = _random_case(random.Random(seed))

    assert case.steps() <= case.limit()


def _random_case(choose: random.Random) -> Case:
    names = ["a", "/a", "/a/0", "b", "/b/x/0"]
    texts = ["".join(choose.choices("ab", k=choose.randrange(1, 200))) for _ in range(300)]
    values: dict[Operator, Callable[[], Any]] = {
        Operator.CONTAINS: lambda: choose.choice([choose.choice(texts), choose.randrange(99), [1]]),
        Operator.EQUALS: lambda: choose.choice([choose.choice(texts), choose.randrange(99), [[1]], {"x": [1]}]),
        Operator.ENDS_WITH: lambda: choose.choice(texts) + "z",
        Operator.GREATER_THAN: lambda: 1e9,
        Operator.SEMVER_GREATER: lambda: "999.0.0",
    }
    conditions = [
        of(operator, values[operator](), attribute=choose.choice(names))
        for operator in choose.choices(list(values), k=choose.randrange(1, 900))
    ]
    attributes: dict[str, Any] = {
        "a": choose.choice([choose.choice(texts) * 40, [choose.choice(texts)[:9] for _ in range(600)], "1.0.0-1.1.1"]),
        "b": {"x": choose.choice([[choose.choice(texts) * 20], [[[n] for n in range(900)]], 5])},
    }
    return Case(conditions, attributes)


# --- Without what bounds the cost ------------------------------------------------------------------------------------


def test_without_the_memo_each_condition_goes_through_the_list_again(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = [contains(word) for word in WORDS[:100]]  # Enough to go beyond the limit; more would only take longer.
    case = Case(conditions, {"a": LIST})
    assert case.steps() <= case.limit()

    monkeypatch.setattr(AttributeMemo, "once", lambda _self, derive, value: derive(value))

    assert case.steps() > case.limit()


def test_without_one_search_each_text_is_compared_with_all_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition_module, "_MAX_COMPARED_CHARS", sys.maxsize)
    case = CASES["texts that nearly occur"]()

    assert case.steps() > case.limit()


def test_members_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    segments: list[Segment] = [segment(f"s{n}", segment_id=n) for n in range(MAX_SEGMENT_TARGETS)]
    targets = on_for(*(each.key for each in segments))
    snapshot = Snapshot.build(revision=1, flags=[flag(enabled=True, segment_targets=targets)], segments=segments)
    found: list[str] = []

    def find(_self: UserIndex, user_id: str) -> dict[int, int]:
        found.append(user_id)
        return {}

    monkeypatch.setattr(UserIndex, "find", find)

    snapshot.evaluate(snapshot.plans.values(), EvaluationContext(user_id="alice"))

    assert found == ["alice", "alice"]  # Once among the targets, once among the members.
