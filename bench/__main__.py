"""Measures, prints a table, and writes bench/results/: `python -m bench [NAME...]`; `--list` has the names."""

import logging
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import structlog

from bench import results
from bench.figures import Effort, Figure
from bench.measures import ALL, USUAL
from bench.tables import plain


def run(names: Sequence[str], effort: Effort) -> tuple[results.Result, list[str]]:
    """Measure, and print each figure as it comes; returns the result, and what failed."""
    begun, began = results.begun(), time.monotonic()
    figures: list[Figure] = []
    failed = []
    for name in names:
        click.echo(f"{name} ({time.monotonic() - began:.0f} s)")
        try:
            for found in ALL[name](effort):
                figures.append(found)
                click.echo(plain(found))
        except Exception:  # noqa: BLE001 - the figures of the others are minutes of work
            traceback.print_exc()
            failed.append(name)
    return replace(begun, seconds=round(time.monotonic() - began), figures=tuple(figures)), failed


@click.command()
@click.argument("names", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Measure everything (an hour).")
@click.option("--list", "is_list", is_flag=True, help="List the names.")
@click.option("--rounds", default=Effort().rounds, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=Effort().seconds, show_default=True, help="Of a round.")
@click.option("--scale", default=Effort().scale, show_default=True, help="Share of flags, targets and the like.")
@click.option("--into", default=results.FOLDER, type=click.Path(path_type=Path), help="The folder of results.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a gate is missed.")
def main(  # noqa: D103 - the help is the docstring of the module
    names: Sequence[str],
    *,
    is_all: bool,
    is_list: bool,
    rounds: int,
    seconds: float,
    scale: float,
    into: Path,
    strict: bool,
) -> None:
    if is_list:
        click.echo("\n".join(f"{name:<18}{measure.__doc__ or ''}".splitlines()[0] for name, measure in ALL.items()))
        return
    chosen = names or (ALL if is_all else USUAL)
    if unknown := {*chosen} - {*ALL}:
        raise click.UsageError(f"no benchmark is called {', '.join(sorted(unknown))}; see --list")
    result, failed = run(tuple(chosen), Effort(rounds=rounds, seconds=seconds, scale=scale))
    click.echo(f"{result.seconds} s; written to {results.write(result, into)}")
    missed = [each.name for each in result.figures if each.bar and each.bar.kind == "gate" and each.verdict == "missed"]
    if missed:
        click.echo(f"missed gates: {', '.join(missed)}")
    if failed:
        click.echo(f"failed: {', '.join(failed)}")
    sys.exit(1 if failed or (missed and strict) else 0)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    main()
