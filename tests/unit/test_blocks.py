"""No command of a page goes unexecuted: a test runs it, or the page says what a run would need."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support import blocks
from tests.support.blocks import RUN_BY, SERVER, all_blocks, blocks_of

ROOT = Path(__file__).parents[2]
ALL_RUN = "docs/maintaining.md"


def test_every_block_of_commands_is_run_or_says_what_it_would_need() -> None:
    assert [str(block) for block in all_blocks() if not block.runner and not block.not_run] == []


def test_each_section_of_a_page_about_servers_is_run_by_its_heading() -> None:
    text = (ROOT / SERVER).read_text(encoding="utf-8")
    found = [block for block in all_blocks() if block.runner == SERVER and not block.not_run]

    assert [str(block) for block in found if block.page != ALL_RUN and f'"{block.heading}"' not in text] == []
    assert f'blocks_of("{ALL_RUN}")' in text


def test_blocks_that_are_not_run_are_as_few_as_they_were() -> None:
    assert Counter(block.not_run for block in all_blocks() if block.not_run) == {
        "a cluster": 2,
        "a published release": 1,
        "an hour and an idle machine": 1,
        "servers of other products": 7,
    }


@pytest.mark.parametrize(("page", "test"), RUN_BY.items())
def test_what_runs_a_page_names_it_and_finds_blocks(page: str, test: str) -> None:
    name, _, heading = page.partition("#")
    text = (ROOT / test).read_text(encoding="utf-8")

    assert Path(name).name in text or "all_blocks()" in text
    assert [block for block in blocks_of(name) if not heading or heading in block.headings]


def test_twin_a_block_that_nothing_runs_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    (tmp_path / "new.md").write_text(
        "# New\n\n## A\n\n   ```sh\n   rm x\n   ```\n\n<!-- not run: a ship -->\n```sh\ny\n```\n"
    )

    first, second = blocks_of("new.md")

    assert (first.headings, first.script, first.line, first.runner, first.not_run) == (("New", "A"), "rm x", 5, "", "")
    assert (second.script, second.not_run) == ("y", "a ship")
