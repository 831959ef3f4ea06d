"""The house speaks the field's language: no retired word in a text, no retired name in an identifier."""

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RETIRED = ROOT / "docs" / "retired-words.md"
EXEMPT = (
    "migrations/",
    "clients/python/gatekeeper_client/v1/",
    "generated/",
    "CHANGELOG.md",
    "LICENSE",
    "clients/python/LICENSE",
    "requirements",
    "docs/retired-words.md",
    "tests/golden/",
    "tests/unit/test_words.py",  # It shows what is refused.
)
ROW = re.compile(r"^\| (word|name) \| ([a-z ]+) \| (.+) \|$", re.MULTILINE)
# Names of libraries.
FOREIGN = {"_look_for_request"}
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def retired(kind: str) -> dict[str, str]:
    return {word: instead for row, word, instead in ROW.findall(RETIRED.read_text()) if row == kind}


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return [name for name in listed if not name.startswith(EXEMPT)]


def identifiers(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Names of a Python file, with their lines."""
    if name.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string not in FOREIGN:
                yield token.start[0], token.string


def faults(name: str, text: str) -> Iterator[str]:
    words, names = (
        retired("word"),
        {word.removesuffix("s"): say for word, say in (retired("name") | retired("word")).items()},
    )
    pattern = re.compile(r"\b(" + "|".join(words) + r")\b", re.IGNORECASE)
    for number, line in enumerate(text.splitlines(), start=1):
        for word in pattern.findall(line):
            yield f"{name}:{number}: {word!r}: say {words[word.lower()]}"
    for number, identifier in identifiers(name, text):
        for part in PART.findall(identifier):
            if (singular := part.lower().removesuffix("s")) in names:
                yield f"{name}:{number}: {part!r} in {identifier!r}: say {names[singular]}"


def areas() -> list[str]:
    return sorted({"/".join(name.split("/")[:2]) if "/" in name else "." for name in tracked_files()})


@pytest.mark.parametrize("area", areas())
def test_no_retired_word_is_used(area: str) -> None:
    files = [
        name
        for name in tracked_files()
        if (name.startswith(f"{area}/") or name == area or ("/" not in name and area == "."))
    ]

    found = [fault for name in files for fault in faults(name, (ROOT / name).read_text(encoding="utf-8"))]

    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "Whoever reads this"),
        ("a.proto", "// Somebody whoever"),
        ("a.py", "snapshot_place = 1"),
        ("a.py", "class SnapshotPlace: ..."),
        ("a.py", '"""Done anew."""'),
    ],
)
def test_a_retired_word_or_name_is_found(name: str, text: str) -> None:
    assert [*faults(name, text)]


@pytest.mark.parametrize(
    ("name", "text"), [("a.py", "timestamp = gatekeeper"), ("a.py", '"""It takes place."""'), ("a.md", "`replace`")]
)
def test_a_word_that_only_contains_a_retired_one_is_fine(name: str, text: str) -> None:
    assert not [*faults(name, text)]
