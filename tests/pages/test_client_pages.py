"""Commands that use a server run as they stand in their pages, and print what the pages show."""

import re
from collections.abc import Iterator

import pytest

from tests.support.blocks import CLIENT, Block, all_blocks
from tests.support.processes import Gatekeeper
from tests.support.shell import Shell

PAGES: dict[str, list[Block]] = {}
for block in all_blocks():
    if block.runner == CLIENT and not block.not_run:
        PAGES.setdefault(block.page, []).append(block)


def said(shell: Shell, block: Block) -> Iterator[tuple[str, str]]:
    """Yield what each command of a block of the kind `console` is shown to print, and what it prints."""
    for part in re.split(r"^\$ ", block.script, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        printed = (line.rstrip() for line in shell.pastes(command).splitlines())
        yield shown.rstrip(), "\n".join(line for line in printed if not line.startswith("at revision ")).rstrip()


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_print_what_it_shows(page: str, admin_shell: Shell, server: Gatekeeper) -> None:
    admin_shell.environment["TOKEN"] = access_token(admin_shell)
    for block in PAGES[page]:
        if block.language == "console":
            for shown, printed in said(admin_shell, block):
                assert printed == shown, block
        else:
            admin_shell.pastes(block.script.replace("127.0.0.1:50051", f"127.0.0.1:{server.port}"))


def access_token(shell: Shell) -> str:
    return shell.pastes(
        "gatekeeper tokens create page --role admin 2>/dev/null || gatekeeper tokens create page"
    ).strip()


def test_twin_another_output_and_a_failure_are_noticed(admin_shell: Shell) -> None:
    wrong = Block(page="", line=0, headings=("",), language="console", script="$ echo no\nyes", before="")

    assert [*said(admin_shell, wrong)] == [("yes", "no")]
    with pytest.raises(AssertionError):
        admin_shell.pastes("gatekeeper flags get no_such_flag")
