"""Options that all commands share."""

from typing import Any, Final

HELP: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}
