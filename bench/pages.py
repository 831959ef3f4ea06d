"""Writes the tables of a result into the documents: `python -m bench.pages [RESULT...]`.

Several results of one commit are joined. Without any, the tables are made from the one that the documents show.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from bench import capacity_tables, results
from bench.figures import Figure
from bench.results import Result
from bench.tables import markdown

PAGES = tuple(results.ROOT / name for name in ("docs/performance.md", "docs/operations/capacity.md"))
_NOT_MEASURED = "Not measured in this run.\n"
_TABLE = re.compile(r"(<!-- bench:([a-z_]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def filled(text: str, result: Result) -> str:
    """Return a page with the tables of a result between its markers, `<!-- bench:NAME -->` and `<!-- /bench -->`.

    Raises:
        KeyError: There is no table of that name.
    """
    return _TABLE.sub(lambda found: found[1] + _TABLES[found[2]](result) + found[3], text)


def provenance(result: Result) -> str:
    """Return of which commit and on which machine a result is."""
    machine = result.machine
    return (
        f"Commit {result.commit}, {result.time[:10]}, {result.seconds / 60:.0f} minutes; {machine.cores} cores"
        f" ({machine.cpu}), Python {machine.python}, grpcio {machine.grpcio}. Load before the"
        f" run: {machine.load}.\n"
    )


def _judged(kind: str) -> Callable[[Result], str]:
    return lambda result: _table(result, lambda each: each.bar is not None and each.bar.kind == kind)


def _named(*prefixes: str) -> Callable[[Result], str]:
    return lambda result: _table(result, lambda each: each.name.partition(".")[0] in prefixes)


def _table(result: Result, is_in: Callable[[Figure], bool]) -> str:
    found = [each for each in result.figures if is_in(each)]
    return markdown(found) if found else _NOT_MEASURED


_USUAL = ("unary", "python", "ways", "bulk", "preview", "fairness", "load", "pauses", "propagation", "capacity", "bus")


def _if_measured(table: Callable[[Result], str]) -> Callable[[Result], str]:
    def made(result: Result) -> str:
        try:
            return table(result)
        except LookupError:
            return _NOT_MEASURED

    return made


def _others(result: Result) -> str:
    return _table(result, lambda each: each.name.partition(".")[0] not in _USUAL)


_TABLES: Mapping[str, Callable[[Result], str]] = MappingProxyType(
    {
        "machine": provenance,
        "gates": _judged("gate"),
        "aims": _judged("aim"),
        "unary": _named("unary", "python"),
        "ways": _named("ways"),
        "bulk": _named("bulk", "preview", "fairness"),
        "changes": _named("propagation", "load", "pauses"),
        "capacity": _named("capacity"),
        "bus": _named("bus"),
        "loads": _if_measured(capacity_tables.loads),
        "instances": _if_measured(capacity_tables.instances),
        "others": _others,
    }
)


def write(result: Result, shown: Path = results.SHOWN) -> None:
    """Make a result the one that the documents show."""
    shown.write_text(result.to_json(), encoding="utf-8")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    write(results.joined(map(results.read, map(Path, sys.argv[1:] or [str(results.SHOWN)]))))
