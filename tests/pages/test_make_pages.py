"""The targets of make that pages name exist, and CI runs them or they change nothing."""

import subprocess
from pathlib import Path

import pytest

from tests.support.blocks import MAKE, Block, all_blocks

ROOT = Path(__file__).parents[2]
BLOCKS = [block for block in all_blocks() if block.runner == MAKE and not block.not_run]


def missing(script: str) -> list[str]:
    """The lines of a script that make would not know how to run."""
    return [line for line in script.splitlines() if not is_known(line.partition("#")[0].split())]


def is_known(words: list[str]) -> bool:
    command = [words[0], "--dry-run", "--question", *words[1:]]
    # 1: there is something to do. 2: make does not know it.
    return words[0] == "make" and subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode < 2


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_target_of_a_page_exists(block: Block) -> None:
    assert missing(block.script) == []


def test_twin_a_target_that_does_not_exist_is_noticed() -> None:
    assert missing("make help\nmake no-such-target") == ["make no-such-target"]
