"""What a build makes: the page that the wheel shows, and the kernel of the draws if there is a C compiler.

`python hatch_build.py` builds the kernel for this checkout, or says why it does not.
"""

import os
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"!?\[([^\]]*)\]\((?!https?://)[^)]*\)")
PLATFORM = sysconfig.get_platform()
DRAWS = Path("gatekeeper_grpc/draws")
SOURCES = (DRAWS / "kernel.c", DRAWS / "kernel_row.h")
LIBRARY = DRAWS / f"_kernel.{PLATFORM}.so"
OPTIONS = ("-std=c11", "-O3", "-Wall", "-Wextra", "-Wno-psabi")


class NotBuilt(Exception):
    """There is no kernel. The message says why."""


class Readme(MetadataHookInterface):
    """Keeps the words of links into the repository and of its pictures, which lead nowhere outside it."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the field `readme`."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": RELATIVE_LINK.sub(r"\1", text)}


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Makes a wheel for this platform that has the kernel, or one for any without it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the kernel, and name the platform. A checkout that is installed in place has it in its folder."""
        try:
            library = build_kernel(Path(self.root))
        except NotBuilt as exc:
            self.app.display_warning(str(exc))
            return
        if version == "standard":
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + re.sub(r"[-.]", "_", PLATFORM)
            build_data["force_include"][str(library)] = str(LIBRARY)


def build_kernel(root: Path) -> Path:
    """Compile the kernel in its folder of a checkout, unless it is newer than what it is made from.

    Raises:
        NotBuilt: There is no compiler, or it fails.
    """
    library = root / LIBRARY
    made_from = max((root / source).stat().st_mtime for source in (*SOURCES, Path("hatch_build.py")))
    if not library.exists() or library.stat().st_mtime < made_from:
        # Another file, because a server may be using this one.
        library.unlink(missing_ok=True)
        fresh = library.with_suffix(f".{os.getpid()}")
        try:
            compile_kernel(fresh, ["-shared", "-fPIC", str(root / SOURCES[0])])
            fresh.replace(library)
        finally:
            fresh.unlink(missing_ok=True)
    return library


def compile_kernel(output: Path, arguments: Sequence[str]) -> None:
    """Run the C compiler: `cc`, or what CC says.

    Raises:
        NotBuilt: There is none, or it fails.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    command = [*compiler, *OPTIONS, *arguments, "-o", str(output)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError:
        raise NotBuilt(f"no C compiler ({compiler[0]}): draws are made in Python") from None
    except subprocess.CalledProcessError as exc:
        reason = next((line for line in exc.stderr.splitlines() if "error" in line), f"exit {exc.returncode}")
        raise NotBuilt(f"the C compiler failed: draws are made in Python ({reason.strip()})") from None


if __name__ == "__main__":
    try:
        build_kernel(Path(__file__).parent)
    except NotBuilt as reason_why:
        print(reason_why)
