"""Whether an instance should be asked for evaluations, and why not: what `/ready` and gRPC health say."""

import math
from dataclasses import dataclass

SHUTTING_DOWN = "it is shutting down"
NO_SNAPSHOT = "no snapshot of the flags is loaded yet"
NO_DATABASE = "the database does not answer: admin calls and logins fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What `/ready` answers, field by field."""

    ready: bool
    """Evaluation can answer, from a snapshot that is young enough."""
    stale: bool
    """Answers are marked stale."""
    revision: int | None
    """The revision that answers are true at; None before the first snapshot."""
    unconfirmed_s: float | None
    """For how long the database has not confirmed the snapshot as the newest; None when it never has."""
    database: bool
    """The database answered lately."""
    reasons: tuple[str, ...]
    """Sentences for people, without figures that change: why not ready, and what is amiss though ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When an instance is no longer ready, or no longer fresh; seconds without a confirmation by the database."""

    stale_after_s: float
    max_staleness_s: float | None
    """None: an answer of any age is better than none."""


def readiness_of(
    *,
    revision: int | None,
    unconfirmed_s: float,
    database: bool,
    draining: bool,
    bounds: Bounds,
    since_start: tuple[str, ...] = (),
) -> Readiness:
    """Judge an instance by what it has: losing the database alone makes none unready, unless `bounds` say so.

    `since_start` tells what has been amiss since the start, such as that the database has not been opened.
    """
    stale = revision is not None and unconfirmed_s > bounds.stale_after_s
    too_old = _too_old(revision, unconfirmed_s, bounds.max_staleness_s)
    obstacles = (SHUTTING_DOWN if draining else "", NO_SNAPSHOT if revision is None else "", too_old)
    shortcomings = (f"answers are stale: {_unconfirmed(bounds.stale_after_s)}" if stale else "",)
    return Readiness(
        ready=not any(obstacles),
        stale=stale,
        revision=revision,
        unconfirmed_s=unconfirmed_s if math.isfinite(unconfirmed_s) else None,
        database=database,
        reasons=tuple(filter(None, (*obstacles, *shortcomings, *since_start, "" if database else NO_DATABASE))),
    )


def _too_old(revision: int | None, unconfirmed_s: float, limit_s: float | None) -> str:
    if revision is None or limit_s is None or unconfirmed_s <= limit_s:
        return ""
    return f"the snapshot is too old to be served: {_unconfirmed(limit_s)}"


def _unconfirmed(bound_s: float) -> str:
    return f"the database has not confirmed the snapshot for over {bound_s:g} s"
