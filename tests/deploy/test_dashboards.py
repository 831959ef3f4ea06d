"""The dashboards as files: as Grafana's own types know them. What their queries find: test_live_queries.py."""

import json
import re
from typing import Any

import grafana_foundation_sdk.cog.plugins as grafana_plugins
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy.queries import DASHBOARDS, GRAFANA, ROOT

PAGE = ROOT / "docs" / "operations" / "dashboards.md"
# Those of Grafana's that panels need: seconds, bytes, a share, events and calls a second, events a minute, numbers.
UNITS = {"s", "bytes", "percentunit", "cps", "reqps", "cpm", "none"}
SENTENCE = re.compile(r"[A-Z0-9][^.]+\.")
PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in dashboard["panels"]]


def left_out(written: Any, understood: Any, path: str = "") -> list[str]:
    """What of a document another one lacks or has otherwise; it may have more."""
    if isinstance(written, dict) and isinstance(understood, dict):
        return [
            fault
            for key, value in written.items()
            for fault in (left_out(value, understood[key], f"{path}.{key}") if key in understood else [f"{path}.{key}"])
        ]
    if isinstance(written, list) and isinstance(understood, list) and len(written) == len(understood):
        return [fault for i, each in enumerate(written) for fault in left_out(each, understood[i], f"{path}[{i}]")]
    return [] if written == understood else [path]


def unknown_to_grafana(dashboard: dict[str, Any]) -> list[str]:
    """The fields of a dashboard that Grafana's types have no place for."""
    grafana_plugins.register_default_plugins()
    understood = Dashboard.from_json(json.loads(json.dumps(dashboard)))
    return left_out(dashboard, json.loads(JSONEncoder().encode(understood)))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_knows_every_field_of_a_dashboard(name: str) -> None:
    assert unknown_to_grafana(DASHBOARDS[name]) == []


def test_twin_a_misspelt_field_is_found() -> None:
    odd = json.loads(json.dumps(DASHBOARDS["service"]).replace('"legendFormat"', '"legendFromat"', 1))

    assert unknown_to_grafana(odd) == [".panels[0].targets[0].legendFromat"]


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=lambda each: each if isinstance(each, str) else each["title"])
def test_panel_has_a_unit_and_one_sentence(name: str, panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert SENTENCE.fullmatch(panel["description"].replace("0.1 %", "a share"))
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_are_few_and_cover_no_other(name: str) -> None:
    panels = DASHBOARDS[name]["panels"]
    positions = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]

    assert len({panel["id"] for panel in panels}) == len({*positions}) == len(panels) <= 15
    assert {(panel["gridPos"]["w"], panel["gridPos"]["h"]) for panel in panels} == {(8, 8)}
    assert all((x % 8, y % 8) == (0, 0) for x, y in positions)


def test_every_query_of_a_panel_is_about_the_chosen_instances() -> None:
    without = [
        panel["title"]
        for _, panel in PANELS
        for target in panel["targets"]
        if target["expr"].count("gatekeeper_") != target["expr"].count('instance=~"$instance"')
        and "process_" not in target["expr"]
    ]

    assert without == ["Failed evaluations"]  # What the rules have recorded is of all.


def test_provisioning_names_the_source_that_dashboards_choose() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "gatekeeper.yml").read_text())["providers"]

    assert (source["type"], source["isDefault"], provider["type"]) == ("prometheus", True, "file")


def test_page_has_each_dashboard_with_its_picture() -> None:
    text = PAGE.read_text(encoding="utf-8")

    assert {name for name in DASHBOARDS if f"](pictures/{name}.svg)" in text} == DASHBOARDS.keys()
    for name, dashboard in DASHBOARDS.items():
        picture = (PAGE.parent / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
        missing = [panel["title"] for panel in dashboard["panels"] if panel["title"] not in picture]
        assert missing == [], "run `make pictures`"
        assert "no screenshot of Grafana" in picture
