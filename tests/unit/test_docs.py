"""What README says about settings is what the code says."""

from pathlib import Path

from gatekeeper_grpc.config import settings_markdown

README = Path(__file__).parents[2] / "README.md"


def test_readme_lists_every_setting_as_the_code_defines_it() -> None:
    assert settings_markdown() in README.read_text(encoding="utf-8"), "run `make docs`"
