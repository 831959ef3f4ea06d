"""What the documents say about the repository is true: settings, links, paths and names."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from gatekeeper_grpc.config.settings import Settings, secret_fields, settings_markdown, variable_of
from tests.support.markdown import CODE, FENCE
from tests.support.promises import PROMISES, promised_tests, promises_markdown

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "docs" / "settings.md"
OUTAGES = ROOT / "docs" / "operations" / "outages.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
LINK = re.compile(r"\[[^\]]*\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
PATH = re.compile(r"[\w.-]+/[\w./-]*|[\w-]+\.(?:py|md|proto|sql|toml|yml)")
PACKAGE = ROOT / "gatekeeper_grpc"
LOCK = re.compile(r"(\w+) = threading\.(?:R?Lock|Condition|(?:Bounded)?Semaphore)\(")
METRIC = re.compile(r"gatekeeper_(?!grpc|client\b)[a-z_]+")
VARIABLE = re.compile(r"GATEKEEPER_[A-Z_]+")
# Made by a run or named as a pattern: in no checkout. Or a rate, such as 50/s.
NOT_TRACKED = re.compile(r"^(?:\.(?:faults|venv|gatekeeper)|dist)/|NNNN|^\d+/(?:s|min)$")


@cache
def tracked_files() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()


def pages() -> list[str]:
    return [name for name in tracked_files() if name.endswith(".md")]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def paths_in(text: str) -> list[str]:
    """Repository paths in backticks; a path may leave out its first folders."""
    codes = CODE.findall(FENCE.sub("", text))
    return [code for code in codes if PATH.fullmatch(code) and not NOT_TRACKED.search(code)]


def is_in_repository(path: str) -> bool:
    if path.endswith("/"):
        return any(f"/{path}" in f"/{name}" for name in tracked_files())
    return any(f"/{name}".endswith(f"/{path}") for name in tracked_files())


def anchors_of(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(heading: str) -> str:
    """The text under a heading of the architecture page."""
    return ARCHITECTURE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]


@cache
def modules() -> dict[str, str]:
    """The text of each module, by its path within the package."""
    return {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def is_in_code(name: str) -> bool:
    """Whether a log event or metric is in the code, where a metric may be without its prefix and suffix."""
    stem = name.removeprefix("gatekeeper_").removesuffix("_total")
    return any(re.search(rf"\"(?:gatekeeper_)?{stem}\"", text) for text in modules().values())


def test_the_page_lists_every_setting_as_the_code_defines_it() -> None:
    assert settings_markdown() in SETTINGS.read_text(encoding="utf-8"), "run `make docs`"


@pytest.mark.parametrize("page", pages())
def test_every_relative_link_leads_somewhere(page: str) -> None:
    broken = []
    for target, anchor in LINK.findall(FENCE.sub("", text_of(page))):
        found = (ROOT / page).parent / target if target else ROOT / page
        if not found.exists() or (anchor and anchor not in anchors_of(found)):
            broken.append(f"{target}#{anchor}")

    assert not broken


@pytest.mark.parametrize("project", [ROOT, ROOT / "clients" / "python"])
def test_the_page_of_a_wheel_has_no_link_into_the_repository(project: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "metadata", "readme"]
    page = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout

    assert len(page) > 1000
    assert LINK.findall(page) == []


@pytest.mark.parametrize("page", pages())
def test_every_path_in_backticks_exists(page: str) -> None:
    assert [path for path in paths_in(text_of(page)) if not is_in_repository(path)] == []


@pytest.mark.parametrize("name", ["EvaluateFlags", "UpdateFlag"])
def test_a_journey_is_ten_steps_that_begin_with_a_file(name: str) -> None:
    steps = re.findall(r"^\d+\. .+$", section(f"The journey of an {name}"), re.MULTILINE)

    assert len(steps) == 10
    assert [step for step in steps if not re.match(r"\d+\. `[\w/]+\.py`:", step)] == []


def test_the_tree_lists_every_folder_and_loose_module() -> None:
    tree = section("The tree")
    folders = {f"{path.parent.relative_to(PACKAGE)}/" for path in PACKAGE.glob("*/__init__.py")}
    loose = {path.name for path in PACKAGE.glob("[!_]*.py")}

    assert {name for name in folders | loose if f"`{name}`" not in tree} == set()


def test_the_table_of_locks_has_every_lock_with_its_module() -> None:
    rows = re.findall(r"^\|.*$", section("Locks"), re.MULTILINE)
    locks = {(lock, name) for name, text in modules().items() for lock in LOCK.findall(text)}

    assert {lock for lock in locks if not any({*lock} <= {*CODE.findall(row)} for row in rows)} == set()


def test_the_data_model_shows_every_table() -> None:
    sql = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("migrations/*.up.sql"))
    tables = re.findall(r"^CREATE TABLE (\w+)", sql, re.MULTILINE)

    assert tables
    assert [table for table in tables if f"    {table} {{\n" not in section("Data model")] == []


@pytest.mark.parametrize("page", pages())
def test_every_metric_and_setting_in_a_page_exists(page: str) -> None:
    named = set(CODE.findall(FENCE.sub("", text_of(page))))
    metrics = {name for name in named if METRIC.fullmatch(name)}
    settings = {name for name in named if VARIABLE.fullmatch(name)}

    assert {name for name in metrics if not is_in_code(name)} == set()
    known = {variable_of(field) for field in Settings.model_fields} | {
        f"{variable_of(field)}_FILE" for field in secret_fields()
    }
    assert settings - known == set()


def test_page_about_secrets_says_of_each_what_a_changed_file_does() -> None:
    table = text_of("docs/operations/secrets.md").partition("a changed file |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)

    assert {name for cell in cells for name in CODE.findall(cell)} == set(map(variable_of, secret_fields()))


def test_every_log_event_that_operators_are_told_of_exists() -> None:
    table = OUTAGES.read_text(encoding="utf-8").partition("## Log events\n")[2].partition("\n## ")[0]
    events = {event for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for event in CODE.findall(cell)}

    assert events
    assert {event for event in events if not is_in_code(event)} == set()


def test_a_path_that_is_not_there_is_found() -> None:
    assert [path for path in paths_in("see `store/no_such.py` and `wire/status.py`") if not is_in_repository(path)] == [
        "store/no_such.py"
    ]


def test_threat_model_names_a_test_of_each_promise_about_attacks() -> None:
    rows = re.findall(
        r"\| ([CDF]\d+) \| \[[^\]]+\]\(\.\./\.\./([^)]+)\) \|$", text_of("docs/security/threat-model.md"), re.MULTILINE
    )
    shown = {promise: {test.partition("::")[0] for test in tests} for promise, tests in promised_tests().items()}

    assert [promise for promise, _ in rows] == [promise for promise in PROMISES if promise[0] in "CDF"]
    assert [(promise, file) for promise, file in rows if file not in shown[promise]] == []


def test_the_index_of_promises_lists_what_the_tests_are_marked_with() -> None:
    assert promises_markdown() == (ROOT / "docs" / "promises.md").read_text(encoding="utf-8"), "run `make docs`"


def test_every_promise_has_a_test_and_every_marker_names_a_promise() -> None:
    assert promised_tests().keys() == PROMISES.keys()
