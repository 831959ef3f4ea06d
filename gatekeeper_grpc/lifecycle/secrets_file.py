"""Generated secrets, each in a file of the data directory that only its owner can read."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gatekeeper_grpc.config.settings import SettingsError, variable_of
from gatekeeper_grpc.durable_file import replace_file

ADMIN_PASSWORD = "admin_password"  # noqa: S105 - a file's name


def read_secret(data_dir: Path, name: str) -> str | None:
    """Return a stored secret; None if there is none.

    Raises:
        SettingsError: This account cannot use the data directory.
    """
    with _named(data_dir), suppress(FileNotFoundError):
        return (data_dir / name).read_text(encoding="utf-8").strip()
    return None


def stored_secret(data_dir: Path, name: str, make: Callable[[], str]) -> str:
    """Return the secret of a name; generate and store it, mode 0600, if there is none."""
    secret = read_secret(data_dir, name)
    if secret is None:
        secret = make()
        store_secret(data_dir, name, secret)
    return secret


def store_secret(data_dir: Path, name: str, secret: str) -> None:
    """Store a secret, mode 0600, atomically and durably.

    Raises:
        SettingsError: This account cannot use the data directory.
    """
    with _named(data_dir):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(data_dir / name, [f"{secret}\n".encode()])


def new_key_ring() -> str:
    """Generate a key ring of one key: 256 random bits."""
    return f"k1:{secrets.token_urlsafe(32)}"


@contextmanager
def _named(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as exc:
        needed = "must be a directory that this account can read and write"
        raise SettingsError(f"{variable_of('data_dir')}: '{data_dir}' {needed}: {exc.strerror}") from exc
