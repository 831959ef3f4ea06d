"""No command of the operators' pages goes unexecuted."""

import re
from pathlib import Path

import pytest

from tests.drills.pages import PAGES, commands_of

DRILLS = Path(__file__).parent


@pytest.mark.parametrize("page", PAGES)
def test_every_section_with_commands_is_followed_by_a_drill(page: str) -> None:
    text = (DRILLS / f"test_{page.removesuffix('.md').replace('-', '_')}.py").read_text(encoding="utf-8")
    followed = set(re.findall(r'"([^"\n]+)"', text))
    headings = {commands.heading for commands in commands_of(page)}

    assert headings
    assert headings - followed == set()
