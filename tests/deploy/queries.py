"""Every query that we ship: those of the alerts and those of the dashboards."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(GRAFANA.glob("dashboards/*.json"))
}
ALL_RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in ALL_RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in ALL_RULES if "record" in rule}
_NAME = re.compile(r"\b(?:job:)?(?:gatekeeper|process)_[a-z_]+(?::\w+)?")
_SELECTOR = re.compile(rf"{_NAME.pattern}\{{[^}}]*\}}")


def as_grafana_asks(expression: str, *, rate_interval: str = "1m") -> str:
    """The query of a panel for all instances."""
    return expression.replace("$instance", ".+").replace("$__rate_interval", rate_interval)


def panel_queries() -> Iterator[tuple[str, str]]:
    """Each query of each panel: its dashboard, panel and legend, and what Prometheus is asked."""
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}: {target['legendFormat']}", as_grafana_asks(target["expr"])


def all_queries() -> list[str]:
    """What Prometheus is asked by panels and rules."""
    return [query for _, query in panel_queries()] + [rule["expr"] for rule in ALL_RULES]


def names_in(text: str) -> set[str]:
    """The metrics that a query asks for."""
    return set(_NAME.findall(text))


def selectors_in(query: str) -> set[str]:
    """What a query selects by labels: `metric{label="value"}`."""
    return set(_SELECTOR.findall(query))
