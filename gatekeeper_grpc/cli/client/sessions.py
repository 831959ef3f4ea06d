"""Logins that are kept for later commands, in a file that only its owner can read."""

import errno
import fcntl
import json
import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gatekeeper_grpc.cli.client.failures import Failure
from gatekeeper_grpc.durable_file import replace_file

_FILE, _LOCK = "sessions.json", "sessions.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A login on one server."""

    username: str
    access_token: str
    expire_time_s: float
    """When the access token expires, in seconds since 1970."""
    refresh_token: str
    """Empty: the access token is an API token."""
    role: str = ""
    """The role when the tokens were issued; empty: an earlier release kept the login."""

    @property
    def is_api_token(self) -> bool:
        """Whether it is no login of a person: it cannot be refreshed, and a logout does not end it."""
        return not self.refresh_token


class Sessions:
    """The kept logins, by server. Commands in several shells share them.

    Args:
        folder: Where they are kept; made, mode 0700, with the first login.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / _FILE

    @classmethod
    def of_user(cls) -> "Sessions":
        """Return those of the user: below XDG_CONFIG_HOME, else in ~/.config of the account that runs this."""
        configured = os.environ.get("XDG_CONFIG_HOME", "")
        # The XDG specification has relative paths ignored.
        return cls(Path(configured) / "gatekeeper" if Path(configured).is_absolute() else _default_folder())

    def find(self, server: str) -> Session | None:
        """Return the login on a server; None if there is none."""
        return self._read().get(server)

    def keep(self, server: str, session: Session) -> None:
        """Keep a login, in place of an earlier one on that server."""
        with self._locked():
            self._write({**self._read(), server: session})

    def forget(self, server: str) -> None:
        """Keep no login on a server any longer."""
        with self._locked():
            self._write({name: session for name, session in self._read().items() if name != server})

    def replace(self, server: str, stale: Session, refresh: Callable[[Session], Session | None]) -> Session | None:
        """Replace a login by a refreshed one, unless another command has done so.

        The lock is held from the second read to the write: a refresh token that is presented twice ends the session.

        Args:
            server: Whose login it is.
            stale: The login as it was read.
            refresh: Makes the new login; None if the session has ended: then it is forgotten.
        """
        with self._locked():
            sessions = self._read()
            current = sessions.pop(server, None)
            if current is None or current.access_token != stale.access_token:
                return current
            refreshed = refresh(current)
            self._write(sessions if refreshed is None else {**sessions, server: refreshed})
            return refreshed

    def _read(self) -> dict[str, Session]:
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            return {server: Session(**fields) for server, fields in kept.items()}
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise self._failure(exc) from None
        except (ValueError, TypeError, AttributeError):
            raise Failure(f"{self._file} is damaged: remove it, and log in again", 1) from None

    def _write(self, sessions: dict[str, Session]) -> None:
        document = {server: asdict(session) for server, session in sessions.items()}
        replace_file(self._file, [json.dumps(document, indent=2).encode()])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._folder.stat().st_uid != os.geteuid():
                raise PermissionError(errno.EACCES, "it belongs to another user")
            with (self._folder / _LOCK).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as exc:
            raise self._failure(exc) from None

    def _failure(self, exc: OSError) -> Failure:
        return Failure(
            f"cannot keep logins in {self._folder}: {exc.strerror}; set XDG_CONFIG_HOME, or GATEKEEPER_TOKEN", 1
        )


def _default_folder() -> Path:
    """Return a folder of this account, which may have no home, or a HOME that belongs to another."""
    homes = [Path(os.environ.get("HOME", ""))]
    with suppress(KeyError):
        homes.append(Path(pwd.getpwuid(os.geteuid()).pw_dir))
    for home in homes:
        if home.is_absolute() and _is_ours(home):
            return home / ".config" / "gatekeeper"
    return Path(tempfile.gettempdir()) / f"gatekeeper-{os.geteuid()}"


def _is_ours(home: Path) -> bool:
    try:
        return home.stat().st_uid == os.geteuid()
    except OSError:
        return False
