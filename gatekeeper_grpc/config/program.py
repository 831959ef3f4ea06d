"""How a reader's shell calls this program, for the lines and hints that it prints."""

import shlex
import shutil
import sys
from pathlib import Path

_NAME = "gatekeeper"


def program() -> str:
    """Return the shell's words for `gatekeeper`: the bare name if PATH leads to this installation, else its path."""
    script = Path(sys.executable).parent / _NAME
    found = shutil.which(_NAME)
    if found and script.exists() and Path(found).samefile(script):
        return _NAME
    if script.exists():
        return shlex.quote(str(script.absolute()))
    return f"{shlex.quote(sys.executable)} -m gatekeeper_grpc"


def with_program(text: str) -> str:
    """Return a text whose hints, such as `gatekeeper migrate up` in backticks, work in the reader's shell."""
    return text.replace(f"`{_NAME} ", f"`{program()} ")
