"""Where the site has a file of the repository, and the links of a page so that they lead there."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
API = "reference/api"
_PROTOS = "protos/gatekeeper/v1"
_HOME = "README.md"
_SOURCE = "source/"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_PUT_ASIDE = re.compile(r"\0(\d+)\0")


def location(path: str) -> str:
    """Return where the site has a file or folder of the repository; empty for a folder without a page.

    Pages are pages, protos are pages of the API reference, a folder is its README.md. Every other file is text below
    `source/`: the site shows what belongs to its release, and needs no host of the repository.
    """
    if (ROOT / path).is_dir():
        readme = posixpath.join(path, "README.md")
        return f"{API}/index.md" if path == _PROTOS else location(readme) * (ROOT / readme).is_file()
    if path.startswith(f"{_PROTOS}/"):
        return f"{API}/{posixpath.basename(path).removesuffix('.proto')}.md"
    if path.endswith((".md", ".svg")):
        return "index.md" if path == _HOME else path.removeprefix("docs/")
    return f"{_SOURCE}{path}" + ".txt" * (not path.endswith(".binpb"))


def is_source(path: str) -> bool:
    """Return whether the site shows a file as it is, and only because a page links to it."""
    return location(path).startswith(_SOURCE)


def links_of(path: str, text: str) -> Iterator[str]:
    """Yield the paths of the files and folders that a page links to."""
    for found in _LINK.finditer(_CODE.sub("`code`", text)):
        yield _target(path, found[3])


def rewritten(path: str, text: str) -> str:
    """Return the text of a page with links that lead to places of the site; a folder without a page stays as words."""
    aside: list[str] = []  # Code, which has no links but may be the words of one.

    def put_aside(code: re.Match[str]) -> str:
        aside.append(code[0])
        return f"\0{len(aside) - 1}\0"

    def link(found: re.Match[str]) -> str:
        to = location(_target(path, found[3]))
        relative = posixpath.relpath(to or ".", posixpath.dirname(location(path)))
        return f"{found[1]}[{found[2]}]({relative}{found[4] or ''})" if to else found[2]

    links = _LINK.sub(link, _CODE.sub(put_aside, text))
    return _PUT_ASIDE.sub(lambda found: aside[int(found[1])], links)


def _target(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
