"""Whether an instance is ready to serve evaluations, and why not: what `/readyz` and gRPC health report."""

import math
from dataclasses import dataclass

SHUTTING_DOWN = "the instance is shutting down: send calls to another one"
NO_SNAPSHOT = "no snapshot is loaded yet: if this lasts, the log says why no database could be read"
NO_DATABASE = (
    "the database does not answer; admin calls and logins fail: check PostgreSQL and the way to it; evaluation"
    " continues, and the instance reconnects by itself"
)
_REMEDY = "check PostgreSQL and the way to it, and the log for task_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What `/readyz` returns, field by field."""

    ready: bool
    """The instance can serve evaluations, from a snapshot that is not too old."""
    stale: bool
    """Responses are marked stale."""
    revision: int | None
    """Revision being served; None before the first snapshot."""
    unconfirmed_s: float | None
    """Seconds since the database last confirmed the snapshot as the newest; None if it never has."""
    database: bool
    """The database answered recently."""
    reasons: tuple[str, ...]
    """Sentences for operators, without changing figures: why the instance is not ready, and other problems. After a
    colon, each says what to do.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits for the seconds without a confirmation by the database."""

    stale_after_s: float
    """Beyond it, responses are marked stale."""
    max_staleness_s: float | None
    """Beyond it, the instance is not ready; None: no limit."""


def readiness_of(
    *,
    revision: int | None,
    unconfirmed_s: float,
    database: bool,
    draining: bool,
    bounds: Bounds,
    since_start: tuple[str, ...] = (),
) -> Readiness:
    """Decide whether an instance is ready. A database outage alone does not make it unready, unless `bounds` say so.

    `since_start` are problems since the start, for example that the database has not been opened.
    """
    stale = revision is not None and unconfirmed_s > bounds.stale_after_s
    too_old = _too_old(revision, unconfirmed_s, bounds.max_staleness_s)
    blockers = (SHUTTING_DOWN if draining else "", NO_SNAPSHOT if revision is None else "", too_old)
    warnings = (f"responses are stale, because {_unconfirmed(bounds.stale_after_s)}: {_REMEDY}" if stale else "",)
    return Readiness(
        ready=not any(blockers),
        stale=stale,
        revision=revision,
        unconfirmed_s=unconfirmed_s if math.isfinite(unconfirmed_s) else None,
        database=database,
        reasons=tuple(filter(None, (*blockers, *warnings, *since_start, "" if database else NO_DATABASE))),
    )


def _too_old(revision: int | None, unconfirmed_s: float, limit_s: float | None) -> str:
    if revision is None or limit_s is None or unconfirmed_s <= limit_s:
        return ""
    return f"the snapshot is too old to serve, because {_unconfirmed(limit_s)}: {_REMEDY}"


def _unconfirmed(bound_s: float) -> str:
    return f"the database has not confirmed the snapshot for more than {bound_s:g} s"
