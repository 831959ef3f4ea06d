"""Files that client commands keep for the user who runs them, and that only this user can read."""

import errno
import fcntl
import json
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from gatekeeper_grpc.cli.client.failures import Failure
from gatekeeper_grpc.durable_file import replace_file

Content = TypeVar("Content")


def own_folder() -> Path:
    """Return the folder of the user: below XDG_CONFIG_HOME, else in ~/.config of the account that runs this."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification has relative paths ignored.
    return Path(configured) / "gatekeeper" if Path(configured).is_absolute() else _default_folder()


class OwnFile:
    """A JSON document that commands in several shells share.

    Args:
        folder: Where it is kept; made, mode 0700, when it is first written.
        name: Its name, without the end.
        kind: What is in it, for messages.
        instead: The variable that one can set instead.
    """

    def __init__(self, folder: Path, name: str, *, kind: str, instead: str) -> None:
        self._folder = folder
        self._file = folder / f"{name}.json"
        self._lock = folder / f"{name}.lock"
        self._kind = kind
        self._instead = instead

    def read(self, content_of: Callable[[Any], Content]) -> Content | None:
        """Return what `content_of` makes of the document; None if there is none.

        Raises:
            Failure: It cannot be read, or is damaged.
        """
        try:
            return content_of(json.loads(self._file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._failure(exc) from None
        except (ValueError, TypeError, AttributeError, KeyError):
            raise Failure(f"{self._file} is damaged: remove it, with the {self._kind} in it", 1) from None

    def write(self, document: Any) -> None:
        """Replace the document; only in a block of `locked`."""
        replace_file(self._file, [json.dumps(document, indent=2).encode()])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from writing for the length of a block.

        Raises:
            Failure: The folder cannot be used.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._folder.stat().st_uid != os.geteuid():
                raise PermissionError(errno.EACCES, "it belongs to another user")
            with os.fdopen(os.open(self._lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as exc:
            raise self._failure(exc) from None

    def _failure(self, exc: OSError) -> Failure:
        return Failure(
            f"cannot keep {self._kind} in {self._folder}: {exc.strerror}; set XDG_CONFIG_HOME, or {self._instead}", 1
        )


def _default_folder() -> Path:
    """Return a folder of this account, which may have no home, or a HOME that belongs to another."""
    homes = [Path(os.environ.get("HOME", ""))]
    with suppress(KeyError):
        homes.append(Path(pwd.getpwuid(os.geteuid()).pw_dir))
    for home in homes:
        if home.is_absolute() and _is_ours(home):
            return home / ".config" / "gatekeeper"
    import tempfile  # noqa: PLC0415 - slow, and seldom needed

    return Path(tempfile.gettempdir()) / f"gatekeeper-{os.geteuid()}"


def _is_ours(home: Path) -> bool:
    try:
        return home.stat().st_uid == os.geteuid()
    except OSError:
        return False
