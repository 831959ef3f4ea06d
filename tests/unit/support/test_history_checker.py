"""The history checker accepts what a correct fleet can show, and finds each kind of violation in it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from tests.faults.history import Action, Evaluation, FlagState, Operation, Outcome, Read, Step, Verdict, Write, check

OFF_1 = FlagState(write_id="w1", value=False, etag="e1")
ON_2 = FlagState(write_id="w2", value=True, etag="e2")
OFF_3 = FlagState(write_id="w3", value=False, etag="e3")

CREATED = Step(revision=1, flag_key="f", before=None, after=OFF_1, write_id="w1")
TURNED_ON = Step(revision=2, flag_key="f", before=OFF_1, after=ON_2, write_id="w2")
TURNED_OFF = Step(revision=3, flag_key="f", before=ON_2, after=OFF_3, write_id="w3")
LOG = (CREATED, TURNED_ON, TURNED_OFF)


def write(number: int, action: Action = Action.UPDATE, *, began: float, seen_etag: str = "") -> Write:
    """An acknowledged write of flag "f" through instance A that took a second."""
    return Write(
        client="editor",
        instance="A",
        began=began,
        ended=began + 1,
        outcome=Outcome.OK,
        write_id=f"w{number}",
        action=action,
        flag_key="f",
        seen_etag=seen_etag,
        revision=number,
        etag=f"e{number}",
    )


def evaluation(revision: int, *, value: bool, began: float, instance: str = "B", min_revision: int = 0) -> Evaluation:
    return Evaluation(
        client="service",
        instance=instance,
        began=began,
        ended=began + 0.1,
        outcome=Outcome.OK,
        revision=revision,
        min_revision=min_revision,
        values={"f": value},
    )


def refusal(reason: str, *, began: float, min_revision: int) -> Evaluation:
    asked = evaluation(0, value=False, began=began, min_revision=min_revision)
    return replace(asked, outcome=Outcome.REFUSED, reason=reason, values={})


def read(revision: int, state: FlagState | None, *, began: float) -> Read:
    return Read(
        client="viewer",
        instance="A",
        began=began,
        ended=began + 0.1,
        outcome=Outcome.OK,
        flag_key="f",
        state=state,
        revision=revision,
    )


W1 = write(1, Action.CREATE, began=1.0)
W2 = write(2, began=3.0, seen_etag="e1")
W3 = write(3, began=5.0, seen_etag="e2")
WRITES: Sequence[Operation] = (W1, W2, W3)


def verdict(*operations: Operation, log: Sequence[Step] = LOG, writes: Sequence[Operation] = WRITES) -> Verdict:
    return check([*writes, *operations], log)


def promises(found: Verdict) -> set[str]:
    return {violation.promise for violation in found.violations}


LAWFUL: dict[str, Sequence[Operation]] = {
    "nothing but writes": [],
    "another instance lags behind": [
        evaluation(1, value=False, began=6.5),
        evaluation(2, value=True, began=6.7),
        evaluation(3, value=False, began=7.0),
    ],
    "an answer during a write shows it or not": [
        evaluation(1, value=False, began=3.5),
        evaluation(2, value=True, began=3.5, instance="C"),
    ],
    "a restarted process is another instance": [
        evaluation(3, value=False, began=6.5, instance="B pid 1"),
        evaluation(1, value=False, began=7.0, instance="B pid 2"),
    ],
    "a revision is called missing just after it was made": [
        refusal("REVISION_NOT_REACHED", began=4.05, min_revision=2)
    ],
    "an instance that cannot confirm refuses": [refusal("UNAVAILABLE", began=9.0, min_revision=3)],
    "readers see the database": [read(1, OFF_1, began=2.5), read(2, ON_2, began=3.5), read(3, OFF_3, began=7.0)],
}


@pytest.mark.parametrize("operations", LAWFUL.values(), ids=LAWFUL.keys())
def test_what_a_correct_fleet_can_show_is_no_violation(operations: Sequence[Operation]) -> None:
    found = verdict(*operations)

    assert (found.operations.total(), found.violations) == (3 + len(operations), [])


UNLAWFUL: dict[str, tuple[str, Sequence[Operation]]] = {
    "instance goes back": ("A5", [evaluation(3, value=False, began=6.5), evaluation(2, value=True, began=7.0)]),
    "instance does not show its own write": ("A1", [evaluation(2, value=True, began=6.5, instance="A")]),
    "answer mixes revisions": ("A5", [evaluation(2, value=False, began=6.5)]),
    "answer at a revision that never was": ("A5", [evaluation(7, value=False, began=6.5)]),
    "answer from the future": ("A5", [evaluation(3, value=False, began=4.5)]),
    "min_revision ignored": ("A2", [evaluation(2, value=True, began=6.5, min_revision=3)]),
    "min_revision called missing": ("A2", [refusal("REVISION_NOT_REACHED", began=9.0, min_revision=3)]),
    "reader misses an acknowledged write": ("A3", [read(2, ON_2, began=6.5)]),
    "reader sees a state that never was": ("A3", [read(3, ON_2, began=6.5)]),
    "reader sees the future": ("A3", [read(3, OFF_3, began=4.5)]),
}


@pytest.mark.parametrize(("promise", "operations"), UNLAWFUL.values(), ids=UNLAWFUL.keys())
def test_an_answer_that_breaks_a_promise_is_found(promise: str, operations: Sequence[Operation]) -> None:
    assert promises(verdict(*operations)) == {promise}


BROKEN: dict[str, tuple[str, Sequence[Operation], Sequence[Step]]] = {
    "acknowledged write lost": ("A1", WRITES, LOG[:2]),
    "refused write done": ("A1", [W1, W2, replace(W3, outcome=Outcome.REFUSED, reason="ABORTED")], LOG),
    "entry that nobody wrote": ("A1", [W1, W2], LOG),
    "write done twice": (
        "A3",
        WRITES,
        [*LOG, Step(revision=4, flag_key="f", before=OFF_3, after=ON_2, write_id="w3")],
    ),
    "revision left out": ("A3", [W1, W2, replace(W3, revision=4)], [*LOG[:2], replace(TURNED_OFF, revision=4)]),
    "update of a state never seen": ("A3", [W1, W2, replace(W3, seen_etag="e1")], LOG),
    "another etag told": ("A3", [W1, W2, replace(W3, etag="e2")], LOG),
    "change from a state that was not": ("A3", WRITES, [CREATED, TURNED_ON, replace(TURNED_OFF, before=OFF_1)]),
    "order turned round": ("A3", [W1, W2, replace(W3, began=0.5, ended=0.9)], LOG),
}


@pytest.mark.parametrize(("promise", "writes", "log"), BROKEN.values(), ids=BROKEN.keys())
def test_a_log_that_breaks_a_promise_is_found(promise: str, writes: Sequence[Operation], log: Sequence[Step]) -> None:
    assert promise in promises(verdict(writes=writes, log=log))


@pytest.mark.parametrize("log", [LOG, LOG[:2]], ids=["done", "not done"])
def test_a_write_whose_outcome_nobody_knows_may_be_there_or_not(log: Sequence[Step]) -> None:
    unknown = replace(W3, outcome=Outcome.UNKNOWN, revision=0, etag="")

    assert verdict(writes=[W1, W2, unknown], log=log).violations == []


def test_a_slow_write_is_acknowledged_only_when_its_instance_shows_it() -> None:
    slow = replace(W3, ended=W3.began + 2.1)

    assert "A1" in promises(verdict(evaluation(2, value=True, began=8.0, instance="A"), writes=[W1, W2, slow]))


def test_a_new_epoch_is_a_revision_without_a_flag() -> None:
    epoch = Step(revision=REVISIONS_PER_EPOCH)

    found = verdict(evaluation(REVISIONS_PER_EPOCH, value=False, began=7.0), log=[*LOG, epoch])

    assert found.violations == []


def test_the_verdict_says_how_much_was_checked_and_what_was_found() -> None:
    found = verdict(evaluation(2, value=False, began=6.5), evaluation(2, value=True, began=6.5, min_revision=3))

    assert str(found) == "5 operations checked (2 evaluations ok, 3 writes ok), 2 violations; A2: 1; A5: 1"
