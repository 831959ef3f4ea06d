"""The blocks of commands in the documentation, and what runs each: `python -m tests.support.blocks` counts them.

A block that no test can run says why in the line before it: `<!-- not run: a cluster -->`.
"""

import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[2]
SHELLS = ("sh", "bash", "console")
CLIENT, SERVER, SETTINGS, MAKE = (
    f"tests/pages/test_{name}.py" for name in ("client_pages", "server_pages", "settings_pages", "make_pages")
)
# By page, or by page and heading, which counts for all that is below it.
RUN_BY: Mapping[str, str] = MappingProxyType(
    {
        "CONTRIBUTING.md": MAKE,
        "README.md": MAKE,
        "README.md#Running it in production": SERVER,
        "README.md#The first minute": SERVER,
        "docs/command-line.md#Operate the server": CLIENT,
        "docs/command-line.md#Other clients": CLIENT,
        "docs/command-line.md#Use flags": "tests/rpc/cli/test_command_line_page.py",
        "docs/consistency.md": CLIENT,
        "docs/evaluation.md": CLIENT,
        "docs/maintaining.md": SERVER,
        "docs/migrating.md": CLIENT,
        "docs/operations/audit.md": SERVER,
        "docs/operations/failover.md": "tests/drills/test_failover.py",
        "docs/operations/key-leak.md": "tests/drills/test_key_leak.py",
        "docs/operations/network.md": SETTINGS,
        "docs/operations/restore.md": "tests/drills/test_restore.py",
        "docs/operations/secrets.md": SERVER,
        "docs/operations/traces.md": SERVER,
        "docs/operations/transport.md": SETTINGS,
        "docs/operations/upgrade.md": "tests/drills/test_upgrade.py",
        "docs/targeting.md": CLIENT,
    }
)
_HEADING = re.compile(r"(#+) (.+)")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    headings: tuple[str, ...]
    """From that of the page to that of its section."""
    language: str
    script: str
    before: str
    """The line before it."""

    @property
    def heading(self) -> str:
        """Of its section."""
        return self.headings[-1]

    @property
    def not_run(self) -> str:
        """What a run of it would need; empty if it is run."""
        marked = _NOT_RUN.fullmatch(self.before)
        return marked[1] if marked else ""

    @property
    def runner(self) -> str:
        """The test that runs it, by the nearest heading that `RUN_BY` has; empty if none does."""
        keys = (*(f"{self.page}#{heading}" for heading in reversed(self.headings)), self.page)
        return next((RUN_BY[key] for key in keys if key in RUN_BY), "")

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, *languages: str) -> list[Block]:
    """Return the blocks of a page of the repository, in order; a block may be indented."""
    return [block for block in _blocks(page) if block.language in (languages or SHELLS)]


def all_blocks() -> list[Block]:
    """Return the blocks of commands of all pages."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [block for page in listed.stdout.split() for block in blocks_of(page)]


def counts() -> Counter[str]:
    """Count the blocks of commands by what runs them, or by why nothing does."""
    return Counter(f"not run: {block.not_run}" if block.not_run else block.runner for block in all_blocks())


def _blocks(page: str) -> Iterator[Block]:
    lines = enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1)
    headings: list[str] = []
    before = ""
    for number, line in lines:
        text = line.strip()
        if found := _HEADING.fullmatch(line):
            headings = [*headings[: len(found[1]) - 1], found[2]]
        if text.startswith("```"):
            script = _until_fence(lines)
            yield Block(
                page=page, line=number, headings=tuple(headings), language=text[3:], script=script, before=before
            )
        before = text


def _until_fence(lines: Iterator[tuple[int, str]]) -> str:
    """Read the rest of a block."""
    block = []
    while (line := next(lines)[1]).strip() != "```":
        block.append(line)
    return textwrap.dedent("\n".join(block))


if __name__ == "__main__":
    sys.stdout.writelines(f"{count:4} {name}\n" for name, count in sorted(counts().items()))
