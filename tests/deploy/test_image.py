"""The Dockerfile, as hadolint reads it. The rest of what is promised of it: tests/unit/test_deploy_files.py."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
HADOLINT = ROOT / ".venv" / "bin" / "hadolint"


def faults(dockerfile: Path) -> str:
    done = subprocess.run(
        [HADOLINT, "--no-color", "--failure-threshold", "warning", dockerfile],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode else ""


def test_hadolint_has_nothing_to_warn_of() -> None:
    assert faults(ROOT / "Dockerfile") == ""


def test_twin_hadolint_warns_of_an_image_without_a_tag(tmp_path: Path) -> None:
    odd = tmp_path / "Dockerfile"
    odd.write_text("FROM python\n")

    assert "DL3006" in faults(odd)
