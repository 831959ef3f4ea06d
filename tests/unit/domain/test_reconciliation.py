"""Comparing a resource with its history: what is a fault, what cannot be compared, and what is neither."""

from typing import Any

import pytest

from gatekeeper_grpc.domain.erasure import PLACEHOLDER
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.reconciliation import (
    ARCHIVED,
    EARLIER_VERSION,
    REDACTED,
    Comparison,
    Recorded,
    State,
    compare,
)

A: State = {"text": "a", "revision": 1}
B: State = {"text": "b", "revision": 2}
HISTORY = [Recorded(7, A, B), Recorded(4, None, A)]


def compared(now: State, history: list[Recorded] | None = None, **options: Any) -> tuple[tuple[str, ...], str]:
    result: Comparison = compare(
        ResourceType.FLAG, "f", now=now, history=HISTORY if history is None else history, **options
    )
    return result.faults, result.not_comparable


def test_a_resource_that_is_as_the_log_left_it_agrees() -> None:
    assert compared(B) == ((), "")


def test_a_deleted_resource_that_does_not_exist_agrees() -> None:
    assert compared(None, [Recorded(9, B, None), *HISTORY]) == ((), "")


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        (A, "changed behind the log after entry 7: text, revision"),
        (None, "deleted behind the log after entry 7"),
    ],
)
def test_another_state_now_is_a_fault(now: State, fault: str) -> None:
    assert compared(now) == ((fault,), "")


def test_a_state_that_the_log_does_not_know_is_a_fault() -> None:
    assert compared(A, []) == (("created behind the log after its beginning",), "")


def test_what_exists_after_its_deletion_is_a_fault() -> None:
    assert compared(B, [Recorded(9, B, None), *HISTORY]) == (("created behind the log after entry 9",), "")


def test_a_gap_between_two_entries_is_a_fault() -> None:
    history = [Recorded(8, {"text": "x", "revision": 1}, B), Recorded(4, None, A)]

    assert compared(B, history) == (("changed behind the log between entry 4 and entry 8: text",), "")
    assert compared(B, history, trusted_seq=7) == compared(B, history)
    assert compared(B, history, trusted_seq=8) == ((), "")


@pytest.mark.parametrize(
    ("one", "other"),
    [(True, 1), (0, False), ("1", 1), ([1, 2], [2, 1]), ({"a": None}, {})],
)
def test_values_are_compared_as_json(one: object, other: object) -> None:
    faults, _ = compared({"value": one}, [Recorded(1, None, {"value": other})])

    assert faults == ("changed behind the log after entry 1: value",)


@pytest.mark.parametrize(("one", "other"), [(1.0, 1), (1e21, 1e21), ({"a": 1, "b": 2}, {"b": 2, "a": 1})])
def test_one_json_value_has_several_notations(one: object, other: object) -> None:
    assert compared({"value": one}, [Recorded(1, None, {"value": other})]) == ((), "")


@pytest.mark.parametrize("unknown", [REDACTED, ARCHIVED, EARLIER_VERSION])
def test_an_unknown_last_state_is_not_comparable(unknown: State) -> None:
    assert compared(B, [Recorded(7, A, unknown), Recorded(4, None, A)]) == ((), unknown.reason)  # type: ignore[union-attr]


def test_an_unknown_state_further_back_leaves_the_last_one_comparable() -> None:
    assert compared(B, [Recorded(7, REDACTED, B), Recorded(4, REDACTED, REDACTED)]) == ((), "")


@pytest.mark.parametrize(
    ("now", "redacted"),
    [
        ("ask ann or ben", f"ask {PLACEHOLDER} or ben"),
        (["x", "ann"], ["x", PLACEHOLDER]),
        ({"to": ["ann"], "n": 1}, {"to": [PLACEHOLDER], "n": 1}),
        ({"plan": "pro"}, PLACEHOLDER),
    ],
)
def test_a_redacted_field_is_not_comparable_and_the_others_are(now: object, redacted: object) -> None:
    history = [Recorded(1, None, {"text": redacted, "revision": 1})]

    assert compared({"text": now, "revision": 1}, history) == ((), "redacted")
    assert compared({"text": now, "revision": 2}, history) == (
        ("changed behind the log after entry 1: revision",),
        "redacted",
    )


@pytest.mark.parametrize(
    ("now", "redacted"),
    [
        ("ask eve or eve", f"ask {PLACEHOLDER} or ben"),
        (["y", "ann"], ["x", PLACEHOLDER]),
        (["x"], ["x", PLACEHOLDER]),
        ({"to": ["ann"], "n": True}, {"to": [PLACEHOLDER], "n": 1}),
    ],
)
def test_what_no_erasure_explains_is_a_fault(now: object, redacted: object) -> None:
    faults, _ = compared({"text": now}, [Recorded(1, None, {"text": redacted})])

    assert faults == ("changed behind the log after entry 1: text",)


def test_a_field_that_the_document_lacks_is_not_comparable() -> None:
    assert compared({**A, "new": True}, [Recorded(1, None, A)]) == ((), "written by an earlier version")  # type: ignore[dict-item]


def test_an_uncounted_change_may_explain_a_difference_and_only_that() -> None:
    assert compared(A, uncounted=[8]) == ((), "written by an earlier version")
    assert compared(A, uncounted=[3, 7]) == compared(A)
    history = [Recorded(9, A, B), Recorded(4, None, B)]
    assert compared(B, history, uncounted=[5]) == ((), "")
    assert compared(B, history, uncounted=[4, 9]) == compared(B, history)
    assert compared(B, uncounted=[8]) == ((), "")


def test_a_beginning_before_the_log_is_no_fault() -> None:
    assert compared(B, [], origin=lambda _: ARCHIVED) == ((), "archived")
    assert compared(B, [Recorded(7, A, B)], origin=lambda _: ARCHIVED) == ((), "")
    assert compared(B, [Recorded(7, A, B)]) == (("created behind the log between its beginning and entry 7",), "")
