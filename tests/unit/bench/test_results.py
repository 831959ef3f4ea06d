"""A result survives its file, and the documents show the one that is kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import results
from bench.figures import figure
from bench.pages import PAGES, filled
from bench.tables import markdown, plain
from tests.support.figures import RESULT


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = results.write(RESULT, tmp_path / "made")

    assert file.name == "2026-01-02T0304-0123456789.json"
    assert results.read(file) == RESULT


def test_joined_results_have_the_figures_of_all_and_of_one_name_the_last() -> None:
    newer = figure("bus.x", "bus", "ms", 2)

    joined = results.joined([RESULT, replace(RESULT, time="later", figures=(newer,))])

    assert joined.figures == (RESULT.figures[0], newer)
    assert (joined.time, joined.seconds) == ("later", 240)


def test_results_of_two_commits_are_not_joined() -> None:
    with pytest.raises(ValueError, match="other commits: 0123456789"):
        results.joined([RESULT, replace(RESULT, commit="other")])


def test_a_table_says_what_missed_its_bar() -> None:
    assert markdown(RESULT.figures).splitlines()[2:] == [
        "| a call | 0.95 x empty (0.8 to 2) | at most 0.8 | **missed** |",
        "| bus | 1 ms |  |  |",
    ]


def test_a_line_for_a_terminal_says_the_same() -> None:
    words = " ".join(plain(RESULT.figures[0]).split())

    assert words == "a call 0.95 x empty (0.8 to 2) gate at most 0.8: missed"


def test_a_page_gets_the_tables_between_its_markers() -> None:
    page = "before\n<!-- bench:gates -->\nold\n<!-- /bench -->\nafter\n<!-- bench:aims -->\n<!-- /bench -->\n"

    text = filled(page, RESULT)

    assert "old" not in text
    assert text.startswith("before\n<!-- bench:gates -->\n| what")
    assert text.endswith("after\n<!-- bench:aims -->\nNot measured in this run.\n<!-- /bench -->\n")
    assert filled(text, RESULT) == text


def test_a_page_with_an_unknown_table_is_refused() -> None:
    with pytest.raises(KeyError, match="no_such"):
        filled("<!-- bench:no_such -->\n<!-- /bench -->", RESULT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_documents_show_the_result_that_is_kept(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert "<!-- bench:" in text
    assert filled(text, results.read(results.SHOWN)) == text, "run `make bench-pages`"
