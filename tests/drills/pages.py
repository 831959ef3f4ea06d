"""The pages of docs/operations that a drill follows: their commands, and the variables that these need."""

import re
from pathlib import Path

from tests.support.blocks import Block, blocks_of

FOLDER = Path("docs") / "operations"
PAGES = ("restore.md", "failover.md", "upgrade.md", "key-leak.md")
AS_POSTGRES = "<!-- as postgres -->"
"""Before a block that the page wants run by the account that runs PostgreSQL."""

_ROOT = Path(__file__).parents[2]
_VARIABLES = "Variables"
_ROW = re.compile(r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \|", re.MULTILINE)


def commands_of(page: str) -> list[Block]:
    """Return the blocks of commands of a page, in order."""
    return blocks_of(str(FOLDER / page), "sh")


def variables_of(page: str) -> set[str]:
    """Return the variables that a page tells its reader to set."""
    text = (_ROOT / FOLDER / page).read_text(encoding="utf-8")
    section = text.partition(f"## {_VARIABLES}\n")[2].partition("\n## ")[0]
    return {name for cell in _ROW.findall(section) for name in re.findall(r"[A-Z_]+", cell)}
