"""The threads of a server have names that docs/architecture.md explains."""

import re
import threading
from pathlib import Path

from tests.support.servers import StartServer

ARCHITECTURE = Path(__file__).parents[3] / "docs" / "architecture.md"


def documented() -> set[str]:
    section = ARCHITECTURE.read_text(encoding="utf-8").partition("<!-- threads -->")[2].partition("## Locks")[0]
    return {without_number(name) for row in re.findall(r"^\| (.*?) \|", section, re.MULTILINE) for name in names(row)}


def names(row: str) -> list[str]:
    return re.findall(r"`([^`]+)`", row)


def without_number(name: str) -> str:
    return re.sub(r"[-_]?(\d+|N)(?=$| )", "", name)


def test_every_thread_of_a_server_is_in_the_architecture_page(start_server: StartServer) -> None:
    others = set(threading.enumerate())

    start_server()

    started = {without_number(thread.name) for thread in set(threading.enumerate()) - others}
    assert started
    assert started <= documented()
