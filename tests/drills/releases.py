"""Two releases side by side: this one, and the one before the newest migration.

Each is a wheel in an environment of its own. Both use the packages of this environment; nothing is downloaded.
"""

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PREVIOUS = Path(__file__).with_name("PREVIOUS").read_text(encoding="utf-8").strip()
"""The commit that this release's newest migration came after, as `before_newest_migration` finds it."""


@dataclass(frozen=True, slots=True)
class Release:
    """An installed release."""

    folder: Path

    @property
    def commands(self) -> Path:
        """The directory of its `gatekeeper` command."""
        return self.folder / "bin"

    @property
    def program(self) -> tuple[str, ...]:
        """Its `gatekeeper` command."""
        return (str(self.commands / "gatekeeper"),)

    def run(self, *arguments: str) -> str:
        """Run a `gatekeeper` command that needs no settings; returns what it prints."""
        return subprocess.run([*self.program, *arguments], check=True, capture_output=True, text=True).stdout


def migrations_of(commit: str) -> list[str]:
    """Return the names of a commit's migrations, lowest first."""
    listed = git("ls-tree", "--name-only", commit, "migrations/").split()
    return sorted(Path(name).name.removesuffix(".up.sql") for name in listed if name.endswith(".up.sql"))


def migrations() -> list[str]:
    """Return the names of this checkout's migrations, lowest first."""
    return sorted(path.name.removesuffix(".up.sql") for path in (ROOT / "migrations").glob("*.up.sql"))


def before_newest_migration() -> str:
    """Return the commit that the main line was at before it got the newest migration."""
    newest = f"migrations/{migrations()[-1]}.up.sql"
    parents = git("log", "-1", "--first-parent", "-m", "--diff-filter=A", "--format=%P", "--", newest).split()
    # One that is not committed yet comes after all that is.
    return parents[0] if parents else git("rev-parse", "HEAD").strip()


def git(*arguments: str) -> str:
    """Run git in this repository; returns what it prints."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}A shallow clone lacks the old release: git fetch --unshallow"
    return done.stdout


def install(source: Path, folder: Path) -> Release:
    """Build the wheels of a source tree, and install them into an environment of their own in `folder`."""
    wheels = folder / "wheels"
    for project in (source / "clients" / "python", source):
        _run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels), cwd=project)
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    _share_packages(folder)
    uv = str(Path(sys.executable).with_name("uv"))
    command = (uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(folder / "bin" / "python"))
    _run(*command, *map(str, wheels.glob("*.whl")), cwd=folder)
    return Release(folder)


def source_of(commit: str, folder: Path) -> Path:
    """Write the files of a commit into a folder."""
    folder.mkdir()
    archive = folder.with_suffix(".tar")
    git("archive", "--output", str(archive), commit)
    _run("tar", "--extract", "--file", str(archive), "--directory", str(folder))
    return folder


def _share_packages(folder: Path) -> None:
    """Let an environment find the packages of this one behind its own, but no release that is installed in place."""
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
