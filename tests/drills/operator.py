"""An operator who follows a page: pastes the commands of a section into a shell, block by block."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gatekeeper_grpc.embedded.account import Account, account_for
from tests.drills.pages import AS_POSTGRES, commands_of, variables_of
from tests.support.blocks import Block
from tests.support.processes import under
from tests.support.replication import Node
from tests.support.shell import Shell

CHECKOUT = Path(sys.executable).parent
"""The directory of the `gatekeeper` command that runs the code of this checkout."""


class Operator:
    """Follows one section of a page, as `following` describes."""

    def __init__(self, page: str, heading: str, *, account: Account, path: str, variables: Mapping[str, str]) -> None:
        own = {name for name in variables if not name.startswith("GATEKEEPER_")}
        assert own <= variables_of(page), f"{page} does not list {own - variables_of(page)}"
        self._left = [commands for commands in commands_of(page) if commands.heading == heading]
        assert self._left, f"{page} has no commands under {heading!r}"
        self._section = f"{page}, {heading}"
        self._account = account
        self._shell = Shell({"HOME": tempfile.gettempdir(), "PATH": path, **variables})

    def pastes(self, blocks: int = 1) -> str:
        """Run the next blocks; returns what they print. A command that fails fails the drill."""
        return "".join(self._pasted(self._left.pop(0)) for _ in range(blocks))

    def pastes_all(self) -> str:
        """Run all blocks that are left."""
        return self.pastes(len(self._left))

    def sees_refused(self) -> str:
        """Run the next block, which the page announces as one that fails; returns what it prints."""
        code, printed = self._run(self._left.pop(0))
        assert code != 0, f"{self._section}: expected a failure, got:\n{printed}"
        return printed

    def sets(self, **variables: str) -> None:
        """Set variables that could not be known before."""
        self._shell.environment |= variables

    def has_finished(self) -> bool:
        """Whether all blocks of the section have been run."""
        return not self._left

    def _pasted(self, commands: Block) -> str:
        code, printed = self._run(commands)
        assert code == 0, f"{self._section}:\n{commands.script}\nended with {code}:\n{printed}"
        return printed

    def _run(self, commands: Block) -> tuple[int, str]:
        launcher = under(self._account) if commands.before == AS_POSTGRES else ()
        return self._shell.run(commands.script, launcher=launcher)


@contextmanager
def following(
    page: str, heading: str, *, node: Node, variables: Mapping[str, str], release: Path = CHECKOUT
) -> Iterator[Operator]:
    """Follow a section for the length of the block, which has to run all of it.

    Args:
        page: A page of docs/operations.
        heading: Its section.
        node: A server of PostgreSQL: its programs, and the account that runs it.
        variables: What the page lets its reader set, and settings; a page that uses another variable fails.
        release: The directory of the `gatekeeper` command.
    """
    path = os.pathsep.join([str(release), str(node.bin_dir), os.environ["PATH"]])
    operator = Operator(page, heading, account=account_for(node.data_dir), path=path, variables=variables)
    yield operator
    assert operator.has_finished(), f"{page}: commands under {heading!r} were not run"
