"""Draws the pictures of docs/operations/dashboards.md: the queries of the dashboards, asked of a real Prometheus.

`python -m tests.deploy.pictures` runs two instances under test traffic for ten minutes, one of them without a database.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import grpc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, MaxNLocator, PercentFormatter, ScalarFormatter

from tests.deploy.prometheus import Prometheus, prometheus
from tests.deploy.queries import DASHBOARDS, ROOT, as_grafana_asks
from tests.deploy.stack import Stack, stack
from tests.support.pictures import drawing, save
from tests.support.processes import hanging, postgres_pids

_FOLDER = ROOT / "docs" / "operations" / "pictures"
_LABEL = "Minutes of test traffic. Drawn from the queries of the dashboard; no screenshot of Grafana."
_COLUMNS = 3
_FORMATTERS: dict[str, Callable[[], Formatter]] = {
    "s": lambda: EngFormatter(unit="s"),
    "bytes": lambda: EngFormatter(unit="B"),
    "percentunit": lambda: PercentFormatter(xmax=1),
}


def draw(source: Prometheus, into: Path, *, since: float, rate_interval: str) -> None:
    """Draw each dashboard into a file of its name.

    Args:
        source: Is asked.
        into: The folder.
        since: When the pictures begin, in seconds since 1970; they end now.
        rate_interval: What rates are over, such as 20s.
    """
    until = time.time()
    for name, dashboard in DASHBOARDS.items():
        with drawing():
            rows = -(-len(dashboard["panels"]) // _COLUMNS)
            figure = Figure(figsize=(11, 2.1 * rows + 0.4), layout="constrained")
            all_axes = figure.subplots(rows, _COLUMNS, squeeze=False).flat
            for axes, panel in zip(all_axes, dashboard["panels"], strict=False):
                _draw_panel(axes, panel, source, (since, until), rate_interval)
            for axes in [*figure.axes][len(dashboard["panels"]) :]:
                axes.remove()
            figure.suptitle(dashboard["title"], fontsize=10)
            figure.supxlabel(_LABEL, fontsize=7)
            save(figure, into / f"{name}.svg")


def _draw_panel(
    axes: Axes, panel: dict[str, Any], source: Prometheus, span: tuple[float, float], rate_interval: str
) -> None:
    since, until = span
    step = max(1, round((until - since) / 80))
    for target in panel["targets"]:
        query = as_grafana_asks(target["expr"], rate_interval=rate_interval)
        for series in source.ask("query_range", query=query, start=f"{since}", end=f"{until}", step=f"{step}")[
            "result"
        ]:
            points = _corners([((at - since) / 60, float(value)) for at, value in series["values"]])
            label = _legend(target["legendFormat"], series["metric"]) if any(value for _, value in points) else None
            axes.plot(*zip(*points, strict=True), linewidth=1, label=label)
    defaults = panel["fieldConfig"]["defaults"]
    axes.yaxis.set_major_formatter(_FORMATTERS.get(defaults["unit"], _plain)())
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=defaults["unit"] == "none"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if "min" in defaults:
        axes.set_ylim(0, 1.4 * axes.dataLim.ymax if axes.dataLim.ymax > 0 else 1)  # Above the lines is the legend.
    axes.set_title(panel["title"], fontsize=8, loc="left")
    axes.grid(visible=True, axis="y", linewidth=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=5, loc="upper left", frameon=False, ncols=3)


def _corners(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A line without the points in the middle of its level parts."""
    last = len(points) - 1
    return [
        point
        for i, point in enumerate(points)
        if i in {0, last} or len({value for _, value in points[i - 1 : i + 2]}) > 1
    ]


def _plain() -> Formatter:
    return ScalarFormatter(useOffset=False)


def _legend(template: str, labels: dict[str, str]) -> str:
    text = template
    for name in ("instance", "worker", *labels):
        text = text.replace(f"{{{{{name}}}}}", labels.get(name, ""))
    return text.replace("/gatekeeper.v1.", "").strip()


def _live_through(running: Stack, *, seconds: float) -> None:
    """Make traffic that rises and falls; for a tenth of the time the database hangs."""
    began = time.monotonic()

    def work(until_share: float) -> None:
        for number in count():
            if time.monotonic() > began + until_share * seconds:
                return
            with suppress(grpc.RpcError):
                running.make_traffic()
            time.sleep(0.2 + 0.3 * (number // 50 % 2))

    work(0.6)
    with hanging(lambda: postgres_pids(running.one.data_dir)):
        work(0.7)
    work(1.0)


def main(minutes: float = 10) -> None:
    """Run what is drawn, and draw it."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        stack(Path(name)) as running,
        prometheus(Path(name) / "prometheus", running.ops_ports) as source,
    ):
        since = time.time()
        _live_through(running, seconds=60 * minutes)
        draw(source, _FOLDER, since=since, rate_interval="20s")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
