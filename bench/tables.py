"""Tables of figures: lines for a terminal, and Markdown."""

from collections.abc import Iterable

from bench.bars import Bar
from bench.figures import Figure, shown


def plain(figure: Figure) -> str:
    """Return a figure as a line."""
    verdict = f"  {figure.bar.kind} {limit(figure.bar)}: {figure.verdict}" if figure.bar else ""
    return f"  {figure.what:<64} {with_unit(figure):>14}{spread(figure)}{verdict}"


def markdown(figures: Iterable[Figure]) -> str:
    """Return a table with bars and verdicts; a bold row has missed its bar."""
    rows = (
        [
            figure.what,
            with_unit(figure) + spread(figure),
            limit(figure.bar) if figure.bar else "",
            f"**{figure.verdict}**" if figure.verdict == "missed" else figure.verdict,
        ]
        for figure in figures
    )
    head = ["| what | median (spread) | bar | |", "|---|---|---|---|"]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def with_unit(figure: Figure) -> str:
    """Return the value with its unit."""
    return f"{shown(figure.value)} {figure.unit}".strip()


def spread(figure: Figure) -> str:
    """Return the spread over the rounds, with a space before; empty if there was one round."""
    return f" ({shown(figure.low)} to {shown(figure.high)})" if figure.rounds > 1 else ""


def limit(bar: Bar) -> str:
    """Return the limit of a bar."""
    return f"{'at most' if bar.is_maximum else 'at least'} {shown(bar.limit)}"
