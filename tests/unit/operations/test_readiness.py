"""Readiness: evaluation can answer, and whoever asks learns what is amiss."""

import math

import pytest

from gatekeeper_grpc.operations.readiness import (
    NO_DATABASE,
    NO_SNAPSHOT,
    SHUTTING_DOWN,
    Bounds,
    Readiness,
    readiness_of,
)

FOR_EVER = Bounds(stale_after_s=10.0, max_staleness_s=None)
FOR_A_MINUTE = Bounds(stale_after_s=10.0, max_staleness_s=60.0)
STALE = "answers are stale: the database has not confirmed the snapshot for over 10 s"
TOO_OLD = "the snapshot is too old to be served: the database has not confirmed the snapshot for over 60 s"


def judged(
    *,
    revision: int | None = 7,
    unconfirmed_s: float = 0.5,
    database: bool = True,
    draining: bool = False,
    bounds: Bounds = FOR_EVER,
) -> Readiness:
    return readiness_of(
        revision=revision, unconfirmed_s=unconfirmed_s, database=database, draining=draining, bounds=bounds
    )


def away(unconfirmed_s: float, *, revision: int | None = 7, bounds: Bounds = FOR_EVER) -> Readiness:
    """Judged while the database does not answer."""
    return judged(revision=revision, unconfirmed_s=unconfirmed_s, database=False, bounds=bounds)


def test_an_instance_with_a_confirmed_snapshot_is_ready_and_has_nothing_to_explain() -> None:
    assert judged() == Readiness(ready=True, stale=False, revision=7, unconfirmed_s=0.5, database=True, reasons=())


@pytest.mark.parametrize(
    ("readiness", "ready", "stale", "reasons"),
    [
        pytest.param(away(math.inf, revision=None), False, False, (NO_SNAPSHOT, NO_DATABASE), id="none yet"),
        pytest.param(away(5), True, False, (NO_DATABASE,), id="database away"),
        pytest.param(away(10.1), True, True, (STALE, NO_DATABASE), id="stale"),
        pytest.param(away(1e9), True, True, (STALE, NO_DATABASE), id="old is better than none"),
        pytest.param(away(60, bounds=FOR_A_MINUTE), True, True, (STALE, NO_DATABASE), id="old enough"),
        pytest.param(away(60.1, bounds=FOR_A_MINUTE), False, True, (TOO_OLD, STALE, NO_DATABASE), id="too old"),
        pytest.param(judged(draining=True), False, False, (SHUTTING_DOWN,), id="draining"),
    ],
)
def test_readiness_says_whether_to_ask_and_what_is_amiss(
    readiness: Readiness, *, ready: bool, stale: bool, reasons: tuple[str, ...]
) -> None:
    assert (readiness.ready, readiness.stale, readiness.reasons) == (ready, stale, reasons)


@pytest.mark.parametrize("revision", [7, None])
def test_a_snapshot_that_was_never_confirmed_has_no_age(revision: int | None) -> None:
    assert judged(revision=revision, unconfirmed_s=math.inf).unconfirmed_s is None
