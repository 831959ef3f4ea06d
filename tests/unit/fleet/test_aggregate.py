"""The merged readiness and metrics of many workers."""

import math
from dataclasses import asdict, replace
from textwrap import dedent

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gatekeeper_grpc.fleet.aggregate import NO_WORKER, FleetReadiness, fleet_readiness, merged
from gatekeeper_grpc.fleet.probe import readiness_from_json
from gatekeeper_grpc.operations.readiness import SHUTTING_DOWN, Readiness

READY = Readiness(ready=True, stale=False, revision=7, unconfirmed_s=0.5, database=True, reasons=())
STALE = replace(READY, stale=True, database=False, unconfirmed_s=12.0, reasons=("answers are stale",))
EMPTY = Readiness(ready=False, stale=False, revision=None, unconfirmed_s=None, database=False, reasons=("no snapshot",))


def judged(*workers: Readiness | None, draining: bool = False) -> FleetReadiness:
    return fleet_readiness(dict(enumerate(workers, 1)), draining=draining)


def test_a_fleet_whose_workers_are_all_ready_has_nothing_to_explain() -> None:
    fleet = judged(READY, READY)

    assert (fleet.ready, fleet.stale, fleet.database, fleet.reasons) == (True, False, True, ())
    assert fleet.workers == tuple({"worker": number, "up": True, **asdict(READY)} for number in (1, 2))


@pytest.mark.parametrize(
    ("fleet", "ready", "reasons"),
    [
        pytest.param(judged(None, None), False, (NO_WORKER,), id="no worker is up"),
        pytest.param(
            judged(READY, None),
            True,
            ("worker 2 is not up: the log says why; the supervisor starts it again",),
            id="one is up",
        ),
        pytest.param(judged(READY, EMPTY), False, ("worker 2: no snapshot",), id="one that is up is not ready"),
        pytest.param(judged(READY, STALE), True, ("worker 2: answers are stale",), id="one is stale"),
        pytest.param(judged(READY, draining=True), False, (SHUTTING_DOWN,), id="draining"),
    ],
)
def test_a_fleet_is_ready_if_all_workers_that_are_up_are_ready(
    fleet: FleetReadiness, *, ready: bool, reasons: tuple[str, ...]
) -> None:
    assert (fleet.ready, fleet.reasons) == (ready, reasons)


def test_a_fleet_is_as_good_as_its_worst_worker() -> None:
    fleet = judged(replace(READY, revision=9), STALE)

    assert (fleet.stale, fleet.database, fleet.revision, fleet.unconfirmed_s) == (True, False, 7, 12.0)


def test_an_age_that_one_worker_does_not_know_the_fleet_does_not_know() -> None:
    fleet = judged(READY, EMPTY)

    assert (fleet.revision, fleet.unconfirmed_s) == (7, None)


def test_readiness_of_a_worker_is_read_back_whatever_a_later_release_adds() -> None:
    text = '{"ready":true,"stale":false,"revision":7,"unconfirmed_s":0.5,"database":true,"reasons":["x"],"new":1}'

    assert readiness_from_json(text) == replace(READY, reasons=("x",))


ONE = """
    # HELP gatekeeper_revision The revision.
    # TYPE gatekeeper_revision gauge
    gatekeeper_revision 7.0
    # HELP gatekeeper_refused_calls_total Refused.
    # TYPE gatekeeper_refused_calls_total counter
    gatekeeper_refused_calls_total{pool="admin"} 3.0
    # HELP gatekeeper_audit_log_rewritable Rewritable.
    # TYPE gatekeeper_audit_log_rewritable gauge
    gatekeeper_audit_log_rewritable NaN
    """


def test_metrics_of_workers_are_one_family_each_with_the_worker_as_label() -> None:
    text = rendered(merged({"1": dedent(ONE), "2": dedent(ONE).replace("7.0", "8.0")}))

    assert text.count("# TYPE gatekeeper_revision gauge") == 1
    assert 'gatekeeper_revision{worker="1"} 7.0' in text
    assert 'gatekeeper_revision{worker="2"} 8.0' in text


def test_labels_and_counters_of_a_worker_are_kept() -> None:
    text = rendered(merged({"1": dedent(ONE)}))

    assert "# TYPE gatekeeper_refused_calls_total counter" in text
    assert 'gatekeeper_refused_calls_total{pool="admin",worker="1"} 3.0' in text


def test_what_a_worker_does_not_know_stays_unknown() -> None:
    (family,) = (one for one in merged({"1": dedent(ONE)}) if one.name == "gatekeeper_audit_log_rewritable")

    assert math.isnan(family.samples[0].value)


def test_a_family_that_one_worker_alone_has_is_shown() -> None:
    families = merged({"1": "", "2": dedent(ONE)})

    assert [sample.labels["worker"] for family in families for sample in family.samples] == ["2"] * 3


def rendered(families: list[Metric]) -> list[str]:
    """What a scraper gets, line by line."""

    class Families(Collector):
        def collect(self) -> list[Metric]:
            return families

    registry = CollectorRegistry()
    registry.register(Families())
    return generate_latest(registry).decode().splitlines()
