"""Pictures for the documents: SVG that is the same for the same numbers, so that a diff shows a change."""

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_STYLE = {
    "svg.fonttype": "none",  # Text stays text.
    "svg.hashsalt": "gatekeeper",  # The same series make the same file.
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def drawing() -> AbstractContextManager[Any]:
    """Draw in the style of all pictures inside the block."""
    style: AbstractContextManager[Any] = mpl.rc_context(_STYLE)
    return style


def save(figure: Figure, picture: Path) -> None:
    """Write a figure as SVG, without a date."""
    figure.savefig(picture, metadata={"Date": None})
    # A tenth of a point is enough, and half the size.
    picture.write_text(re.sub(r"(\d\.\d)\d+", r"\1", picture.read_text(encoding="utf-8")), encoding="utf-8")
