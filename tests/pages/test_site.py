"""The site of the documentation is built without a warning, and needs nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages.pictures import PICTURE, drawn, first_minute, run, text_of

ROOT = Path(__file__).parents[2]
MKDOCS = Path(sys.executable).parent / "mkdocs"
# What a page loads, as opposed to what it links to.
LOADED = re.compile(r"""<(?:script|img|source|iframe)\b[^>]*\bsrc="(https?:[^"]*)|<link\b[^>]*\bhref="(https?:[^"]*)""")


# A make within another one says where it is.
_MAKE = ("make", "--no-print-directory", "docs-site")


@pytest.fixture(scope="module")
def site() -> Path:
    made = subprocess.run(_MAKE, cwd=ROOT, capture_output=True, text=True, check=False)

    said = (made.stdout + made.stderr).splitlines()
    assert (made.returncode, [line for line in said if not line.startswith("INFO ")]) == (0, []), made.stderr
    return ROOT / "dist" / "site"


def build(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    """Build a site of one page by our settings."""
    (folder / "pages").mkdir()
    (folder / "pages" / "index.md").write_text(page)
    paths = f"docs_dir: {folder / 'pages'}\nsite_dir: {folder / 'site'}\nnav: [index.md]\nextra_javascript: []\n"
    (folder / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\n{paths}")
    command: list[str | Path] = [MKDOCS, "build", "--strict", "--config-file", folder / "mkdocs.yml"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_site_is_built_without_a_warning(site: Path) -> None:
    assert (site / "index.html").exists()
    assert (site / "reference" / "api" / "flag.html").exists()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html")]

    assert len(pages) > 100
    assert {found for page in pages for found in LOADED.findall(page.read_text(encoding="utf-8"))} == set()


def test_diagrams_are_drawn_by_what_the_site_brings(site: Path) -> None:
    page = (site / "evaluation.html").read_text(encoding="utf-8")

    assert '<pre class="mermaid">' in page
    assert 'src="assets/mermaid.js"' in page
    assert (site / "assets" / "mermaid.js").stat().st_size > 1_000_000


@pytest.mark.parametrize("link", ["[a](missing.md)", "[a](#no-such-heading)"], ids=["page", "anchor"])
def test_a_broken_link_or_anchor_fails_the_build(tmp_path: Path, link: str) -> None:
    assert build(tmp_path, f"# A page\n\n{link}\n").returncode != 0


def test_twin_a_link_and_an_anchor_that_exist_build(tmp_path: Path) -> None:
    assert build(tmp_path, "# A page\n\n[a](index.md) [b](#a-page)\n").returncode == 0


def test_the_picture_of_the_first_minute_is_of_the_commands_of_today() -> None:
    assert text_of(PICTURE.read_text(encoding="utf-8")) == text_of(drawn(run(first_minute()))), "run `make screens`"
