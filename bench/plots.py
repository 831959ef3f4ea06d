"""Draws the plots of docs/performance.md from the result that it shows: `python -m bench.plots [FOLDER]`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from bench import results
from bench.bus_model import LISTENERS
from bench.figures import Figure
from bench.results import Result
from bench.unary import SIZES
from tests.support.pictures import drawing, save

FOLDER = results.ROOT / "docs" / "pictures"


def draw(result: Result, into: Path = FOLDER) -> None:
    """Draw what a result has figures for."""
    into.mkdir(parents=True, exist_ok=True)
    with drawing():
        _draw(
            into / "unary.svg",
            "EvaluateFlags against an empty call of grpcio",
            [
                ("CPU of a call, times the empty call's", _found(result, "unary.{}.cpu", SIZES)),
                ("calls a second, times the empty call's", _found(result, "unary.{}.rate", SIZES)),
            ],
            "flags",
        )
        _draw(
            into / "bus.svg",
            "An announcement to sessions that LISTEN",
            [
                ("ms until the last has it", _found(result, "bus.listen.{}.last", LISTENERS)),
                ("ms of PostgreSQL's CPU", _found(result, "bus.listen.{}.cpu", LISTENERS)),
            ],
            "sessions",
        )


def _found(result: Result, name: str, counts: Sequence[int]) -> dict[int, Figure]:
    found = {count: result.find(name.format(count)) for count in counts}
    return {count: each for count, each in found.items() if each}


def _draw(file: Path, title: str, panels: Sequence[tuple[str, dict[int, Figure]]], unit: str) -> None:
    if not all(found for _, found in panels):
        return
    picture = Picture(figsize=(7, 2.4), layout="constrained")
    for axes, (name, found) in zip(picture.subplots(1, len(panels)), panels, strict=True):
        _draw_panel(axes, name, found, unit)
    picture.suptitle(title, fontsize=9)
    save(picture, file)


def _draw_panel(axes: Axes, name: str, found: dict[int, Figure], unit: str) -> None:
    """Draw the medians with their spread, and the bars as short lines."""
    values = [each.value for each in found.values()]
    spread = (
        [each.value - each.low for each in found.values()],
        [each.high - each.value for each in found.values()],
    )
    axes.errorbar(range(len(found)), values, yerr=spread, fmt="o-", markersize=3, linewidth=1, capsize=3)
    for at, each in enumerate(found.values()):
        if each.bar:
            axes.hlines(each.bar.limit, at - 0.3, at + 0.3, colors="tab:red", linewidth=1)
    axes.set_xticks(range(len(found)), [f"{count:,}" for count in found])
    axes.set_xlabel(unit)
    axes.set_ylim(bottom=0)
    axes.set_title(name, fontsize=8, loc="left")
    axes.grid(visible=True, axis="y", linewidth=0.3)


if __name__ == "__main__":
    draw(results.read(results.SHOWN), *map(Path, sys.argv[1:]))
