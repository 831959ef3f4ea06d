"""Readiness: whether an instance can serve evaluations, and the reasons if it cannot."""

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

NO_LIMIT = Bounds(stale_after_s=10.0, max_staleness_s=None)
ONE_MINUTE = Bounds(stale_after_s=10.0, max_staleness_s=60.0)
CHECK = "check PostgreSQL and the way to it, and the log for task_failed"
STALE = f"responses are stale, because the database has not confirmed the snapshot for more than 10 s: {CHECK}"
TOO_OLD = (
    f"the snapshot is too old to serve, because the database has not confirmed the snapshot for more than 60 s: {CHECK}"
)


def readiness(
    *,
    revision: int | None = 7,
    unconfirmed_s: float = 0.5,
    database: bool = True,
    draining: bool = False,
    bounds: Bounds = NO_LIMIT,
) -> Readiness:
    return readiness_of(
        revision=revision, unconfirmed_s=unconfirmed_s, database=database, draining=draining, bounds=bounds
    )


def outage(unconfirmed_s: float, *, revision: int | None = 7, bounds: Bounds = NO_LIMIT) -> Readiness:
    """Readiness while the database does not answer."""
    return readiness(revision=revision, unconfirmed_s=unconfirmed_s, database=False, bounds=bounds)


def test_an_instance_with_a_confirmed_snapshot_is_ready_without_reasons() -> None:
    assert readiness() == Readiness(ready=True, stale=False, revision=7, unconfirmed_s=0.5, database=True, reasons=())


@pytest.mark.parametrize(
    ("found", "ready", "stale", "reasons"),
    [
        pytest.param(outage(math.inf, revision=None), False, False, (NO_SNAPSHOT, NO_DATABASE), id="none yet"),
        pytest.param(outage(5), True, False, (NO_DATABASE,), id="database outage"),
        pytest.param(outage(10.1), True, True, (STALE, NO_DATABASE), id="stale"),
        pytest.param(outage(1e9), True, True, (STALE, NO_DATABASE), id="any age"),
        pytest.param(outage(60, bounds=ONE_MINUTE), True, True, (STALE, NO_DATABASE), id="old enough"),
        pytest.param(outage(60.1, bounds=ONE_MINUTE), False, True, (TOO_OLD, STALE, NO_DATABASE), id="too old"),
        pytest.param(readiness(draining=True), False, False, (SHUTTING_DOWN,), id="draining"),
    ],
)
def test_readiness_gives_the_reasons(found: Readiness, *, ready: bool, stale: bool, reasons: tuple[str, ...]) -> None:
    assert (found.ready, found.stale, found.reasons) == (ready, stale, reasons)


@pytest.mark.parametrize("reason", [SHUTTING_DOWN, NO_SNAPSHOT, NO_DATABASE, STALE, TOO_OLD])
def test_reason_says_after_a_colon_what_to_do(reason: str) -> None:
    _cause, _, remedy = reason.partition(": ")

    assert remedy


@pytest.mark.parametrize("revision", [7, None])
def test_a_snapshot_that_was_never_confirmed_has_no_age(revision: int | None) -> None:
    assert readiness(revision=revision, unconfirmed_s=math.inf).unconfirmed_s is None
