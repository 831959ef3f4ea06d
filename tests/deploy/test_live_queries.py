"""Every query of a panel or a rule, as a real Prometheus answers it about real servers after real calls."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.pictures import draw
from tests.deploy.prometheus import Prometheus, prometheus
from tests.deploy.queries import (
    ALL_RULES,
    DASHBOARDS,
    RECORDED,
    ROOT,
    all_queries,
    names_in,
    panel_queries,
    selectors_in,
)
from tests.deploy.stack import Stack, stack
from tests.support.markdown import CODE, FENCE
from tests.support.processes import START_TIMEOUT_S
from tests.support.scrapes import text_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(600)

PANELS = dict(panel_queries())
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PROMTOOL = ROOT / ".venv" / "bin" / "promtool"
# What a healthy server has none of; it is asked for by statuses of gRPC, which another test knows.
FAILURES = re.compile('code=~"UNAVAILABLE')


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def asked(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped both instances before, during and after traffic."""
    with prometheus(tmp_path_factory.mktemp("prometheus") / "run", running.ops_ports) as asked:
        assert eventually(lambda: asked.values("sum(up)") == [2], timeout_s=START_TIMEOUT_S)
        eventually(
            lambda: has_data_after_traffic(asked, running), timeout_s=START_TIMEOUT_S
        )  # Each panel has a test of its own.
        yield asked


def has_data_after_traffic(asked: Prometheus, running: Stack) -> bool:
    running.make_traffic()
    return all(map(asked.values, PANELS.values()))


@pytest.mark.parametrize("panel", PANELS)
def test_panel_has_data(panel: str, asked: Prometheus, running: Stack) -> None:
    assert asked.values(PANELS[panel])


@pytest.mark.parametrize("query", ["sum(gatekeeper_no_such_thing)", 'gatekeeper_ready{instance="three"}'])
def test_twin_a_query_for_what_is_not_there_has_no_data(query: str, asked: Prometheus) -> None:
    assert asked.values(query) == []


def test_rules_are_evaluated_without_an_error(asked: Prometheus) -> None:
    rules = [rule for group in asked.ask("rules")["groups"] for rule in group["rules"]]

    assert len(rules) == len(ALL_RULES)
    assert eventually(lambda: all(map(asked.values, RECORDED)))
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}


def test_every_name_in_a_query_is_a_series(asked: Prometheus) -> None:
    names = {name for query in all_queries() for name in names_in(query)}

    assert len(names) > 40
    assert names - asked.names() == set()


def test_everything_that_a_query_selects_by_labels_is_there(asked: Prometheus) -> None:
    """A label that is spelt wrongly would select nothing, and its alert never fire."""
    selectors = {selector for query in [*PANELS.values(), *all_queries()] for selector in selectors_in(query)}

    assert [each for each in selectors if not FAILURES.search(each) and not asked.values(f"count({each})")] == []


def test_every_name_in_a_page_is_a_metric_that_is_shown(running: Stack) -> None:
    families = [
        family
        for port in running.ops_ports.values()
        for family in text_string_to_metric_families(text_of(port))
        if family.name.startswith("gatekeeper_")
    ]
    shown = {name for family in families for name in (family.name, *(sample.name for sample in family.samples))}
    code = " ".join(code for page in PAGES for code in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))))
    written = set(re.findall(r"\bgatekeeper_(?!grpc|client\b)[a-z_]+[a-z]\b", code))

    assert len(written) > 40
    assert written - shown == set()


@pytest.mark.parametrize("instance", ["gatekeeper-1", "gatekeeper-2"])
def test_promtool_has_nothing_to_say_about_the_metrics(instance: str, running: Stack) -> None:
    text = text_of(running.ops_ports[instance])
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_pictures_are_drawn_from_the_queries(asked: Prometheus, tmp_path: Path) -> None:
    draw(asked, tmp_path, since=time.time() - 30, rate_interval="20s")

    for name, dashboard in DASHBOARDS.items():
        picture = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert [panel["title"] for panel in dashboard["panels"] if panel["title"] not in picture] == []
