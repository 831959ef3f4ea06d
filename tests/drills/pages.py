"""The pages of docs/operations that a drill follows: their commands, and the variables that these need."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
PAGES = ("restore.md", "failover.md", "upgrade.md", "key-leak.md")

_HEADING = re.compile(r"#+ (.+)")
_AS_POSTGRES = "<!-- as postgres -->"
_VARIABLES = "Variables"
_ROW = re.compile(r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \|", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Commands:
    """A block of commands that somebody pastes into a shell."""

    heading: str
    """Of its section."""
    script: str
    as_postgres: bool
    """Whether the page wants the account that runs PostgreSQL."""


def commands_of(page: str) -> Iterator[Commands]:
    """Yield the blocks of commands of a page, in order; a block may be indented."""
    lines = iter((FOLDER / page).read_text(encoding="utf-8").splitlines())
    heading, before = "", ""
    for line in lines:
        if found := _HEADING.fullmatch(line):
            heading = found[1]
        if line.strip().startswith("```"):
            script = _until_fence(lines)
            if line.strip() == "```sh":
                yield Commands(heading=heading, script=script, as_postgres=before == _AS_POSTGRES)
        before = line.strip()


def _until_fence(lines: Iterator[str]) -> str:
    """Read the rest of a block."""
    block = []
    while (line := next(lines)).strip() != "```":
        block.append(line)
    return textwrap.dedent("\n".join(block))


def variables_of(page: str) -> set[str]:
    """Return the variables that a page tells its reader to set."""
    section = (FOLDER / page).read_text(encoding="utf-8").partition(f"## {_VARIABLES}\n")[2].partition("\n## ")[0]
    return {name for cell in _ROW.findall(section) for name in re.findall(r"[A-Z_]+", cell)}
