"""The picture of README.md's first minute, from a real run: `python -m tests.pages.pictures`."""

import html
import os
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.support.blocks import ROOT, blocks_of
from tests.support.processes import serving
from tests.support.shell import BIN, Shell

PICTURE = ROOT / "docs" / "pictures" / "first-minute.svg"
_COLUMNS = 100
# Of another site, which a page shall not need.
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_EACH_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:]+Z|etag: *\S+")


def first_minute() -> list[str]:
    """Return the lines that README.md lets its reader paste, without their comments."""
    (script,) = (block.script for block in blocks_of("README.md") if block.heading == "The first minute")
    return [line.partition(" # ")[0].rstrip() for line in script.splitlines()]


def run(commands: list[str]) -> list[tuple[str, str]]:
    """Run commands in a folder that is like a checkout after `make run`; returns each with what it printed."""
    with tempfile.TemporaryDirectory() as name, serving(Path(name) / ".gatekeeper", "--demo") as server:
        folder = Path(name)
        (folder / ".venv").symlink_to(BIN.parent)
        address = f"127.0.0.1:{server.port}"
        shell = Shell({"PATH": os.environ["PATH"], "HOME": name, "GATEKEEPER_SERVER": address}, folder=folder)
        return [(command, shell.pastes(command).replace(address, "127.0.0.1:50051")) for command in commands]


def drawn(said: list[tuple[str, str]]) -> str:
    """Return the picture of a terminal in which commands were run."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=_COLUMNS, file=nowhere)
        for command, printed in said:
            console.print(Text(f"$ {command}", style="bold"))
            console.print(Text(printed.rstrip()), highlight=False)
        svg = console.export_svg(title="Gatekeeper", unique_id="terminal")
    return _FONT_FACE.sub("", svg)


def text_of(svg: str) -> str:
    """Return the text of a picture without spaces, and without what is another one each time."""
    text = html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", "", svg, flags=re.DOTALL)).replace("\xa0", " ")
    return re.sub(r"\s", "", _EACH_TIME.sub("", text))


if __name__ == "__main__":
    PICTURE.write_text(drawn(run(first_minute())), encoding="utf-8")
