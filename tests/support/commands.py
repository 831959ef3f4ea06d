"""Client commands in the process of a test."""

import io
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from gatekeeper_grpc.cli import main as cli


class Said(NamedTuple):
    """What a command did."""

    code: int
    printed: str
    complaint: str


Run = Callable[..., Said]


class Stdin(io.StringIO):
    """Standard input with a text in it, which may be typed at a terminal."""

    name = "<stdin>"

    def __init__(self, text: str, *, is_terminal: bool = False) -> None:
        super().__init__(text)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs a client command: arguments, standard input as `stdin`, and variables of the environment."""

    def run(*arguments: str, stdin: Stdin | str = "", **variables: str) -> Said:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["gatekeeper", *arguments])
            patch.setattr(sys, "stdin", Stdin(stdin) if isinstance(stdin, str) else stdin)
            code = cli.run()
        return Said(code, *capsys.readouterr())

    return run
