"""Merges the readiness and the metrics of all workers. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gatekeeper_grpc.operations.readiness import SHUTTING_DOWN, Readiness

_RESTART = "the log says why; the supervisor starts it again"
NO_WORKER = f"no worker is up: {_RESTART}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReadiness(Readiness):
    """The answer of a supervisor's `/readyz`: of all workers together, and of each."""

    workers: tuple[Mapping[str, object], ...]
    """`worker` and `up`; for a worker that is up, also the fields of its own `/readyz`."""


def fleet_readiness(workers: Mapping[int, Readiness | None], *, draining: bool) -> FleetReadiness:
    """Merge the readiness of all workers: a fleet is ready if a worker is up and all workers that are up are ready.

    The fleet reports its worst worker: the oldest revision, the longest time unconfirmed.

    Args:
        workers: Readiness by worker number; None for a worker that is not up.
        draining: The fleet is shutting down.
    """
    up = {number: readiness for number, readiness in workers.items() if readiness is not None}
    revisions = [readiness.revision for readiness in up.values()]
    ages = [readiness.unconfirmed_s for readiness in up.values()]
    return FleetReadiness(
        ready=bool(up) and not draining and all(readiness.ready for readiness in up.values()),
        stale=any(readiness.stale for readiness in up.values()),
        revision=min((revision for revision in revisions if revision is not None), default=None),
        unconfirmed_s=None if None in ages else max((age for age in ages if age is not None), default=None),
        database=bool(up) and all(readiness.database for readiness in up.values()),
        reasons=tuple(_reasons(workers, draining=draining)),
        workers=tuple(_detail(number, readiness) for number, readiness in workers.items()),
    )


def _reasons(workers: Mapping[int, Readiness | None], *, draining: bool) -> Iterable[str]:
    if draining:
        yield SHUTTING_DOWN
    if not any(workers.values()):
        yield NO_WORKER
        return
    for number, readiness in workers.items():
        if readiness is None:
            yield f"worker {number} is not up: {_RESTART}"
        else:
            yield from (f"worker {number}: {reason}" for reason in readiness.reasons)


def _detail(number: int, readiness: Readiness | None) -> Mapping[str, object]:
    detail: dict[str, object] = {"worker": number, "up": readiness is not None}
    return detail | (asdict(readiness) if readiness is not None else {})


def merged(texts: Mapping[str, str]) -> list[Metric]:
    """Merge the `/metrics` of several processes; label each sample with its process, the key in `texts`."""
    families: dict[str, Metric] = {}
    for worker, text in texts.items():
        for found in text_string_to_metric_families(text):
            merge(families, found, worker=worker)
    return list(families.values())


def merge(families: dict[str, Metric], found: Metric, *, worker: str) -> None:
    """Add the samples of one process to `families`, by name."""
    family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
    for sample in found.samples:
        family.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
