"""The runner: what it writes, and how it ends."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench import __main__ as runner
from bench import results
from bench.figures import Effort, Figure, figure
from bench.measures import ALL, USUAL

Bench = Callable[..., Result]


def good(_: Effort) -> Iterator[Figure]:
    yield figure("load.first", "first load", "s", 1.0)


def slow(_: Effort) -> Iterator[Figure]:
    yield figure("load.first", "first load", "s", 1e9)


def broken(_: Effort) -> Iterator[Figure]:
    yield figure("before", "before", "s", 1.0)
    raise RuntimeError("broken")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(runner, "ALL", {"good": good, "slow": slow, "broken": broken})
    return lambda *arguments: CliRunner().invoke(runner.main, [*arguments, "--into", str(tmp_path)])


def written(folder: Path) -> Mapping[str, float]:
    (file,) = folder.glob("*.json")
    return {each.name: each.value for each in results.read(file).figures}


def test_a_run_writes_its_figures(bench: Bench, tmp_path: Path) -> None:
    done = bench("good")

    assert done.exit_code == 0
    assert written(tmp_path) == {"load.first": 1.0}


def test_a_benchmark_that_fails_costs_no_figure_of_the_others(bench: Bench, tmp_path: Path) -> None:
    done = bench("broken", "good")

    assert done.exit_code == 1
    assert "failed: broken" in done.output
    assert written(tmp_path) == {"before": 1.0, "load.first": 1.0}


def test_a_missed_bar_is_named_and_fails_a_strict_run_alone(bench: Bench) -> None:
    lenient = bench("slow")
    strict = bench("slow", "--strict")

    assert "missed gates: load.first" in lenient.output
    assert (lenient.exit_code, strict.exit_code) == (0, 1)


def test_an_unknown_name_is_refused(bench: Bench) -> None:
    done = bench("no-such")

    assert done.exit_code == 2
    assert "no benchmark is called no-such" in done.output


def test_every_benchmark_says_in_a_line_what_it_measures() -> None:
    assert {*USUAL} <= {*ALL}
    assert [name for name, measure in ALL.items() if not measure.__doc__] == []
