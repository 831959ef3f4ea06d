"""Writes the pages that the site is built from: `python -m docs_site FOLDER`.

They are those of the repository, with links that lead to places of the site, files that they link to, and references.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from docs_site.api_reference import api_reference
from docs_site.command_reference import command_reference
from docs_site.links import API, ROOT, is_source, links_of, location, rewritten

_ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "clients/python/README.md")


def write(folder: Path) -> None:
    """Write all pages into a folder, whose content is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    linked: set[str] = set()
    for path in _repository_pages():
        text = (ROOT / path).read_text(encoding="utf-8")
        linked |= {target for target in links_of(path, text) if is_source(target)}
        _write(folder / location(path), rewritten(path, text).encode())
    for path in filter(lambda path: (ROOT / path).exists(), linked):
        _write(folder / location(path), (ROOT / path).read_bytes())
    for name, text in api_reference():
        _write(folder / API / f"{name}.md", text.encode())
    _write(folder / "reference" / "commands.md", command_reference().encode())


def _repository_pages() -> Iterator[str]:
    """Yield the paths of pages and pictures; samples of clients have none."""
    yield from _ROOT_PAGES
    for path in sorted((ROOT / "docs").rglob("*.*")):
        if path.suffix in (".md", ".svg") and "node_modules" not in path.parts:
            yield str(path.relative_to(ROOT))


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
