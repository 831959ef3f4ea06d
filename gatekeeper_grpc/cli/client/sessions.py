"""Logins that are kept for later commands, in a file that only its owner can read."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gatekeeper_grpc.cli.client.own_files import OwnFile, own_folder


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
    """The kept logins, each under the name of its context, or without one under the address of its server.

    No name has a colon, and each address has one. Commands in several shells share the logins.

    Args:
        folder: Where they are kept; made, mode 0700, with the first login.
    """

    def __init__(self, folder: Path) -> None:
        self._file = OwnFile(folder, "sessions", kind="logins", instead="GATEKEEPER_TOKEN")

    @classmethod
    def of_user(cls) -> "Sessions":
        """Return those of the user who runs this."""
        return cls(own_folder())

    def find(self, server: str) -> Session | None:
        """Return the login on a server; None if there is none."""
        return self._read().get(server)

    def keep(self, server: str, session: Session) -> None:
        """Keep a login, in place of an earlier one on that server."""
        with self._file.locked():
            self._write({**self._read(), server: session})

    def forget(self, server: str) -> None:
        """Keep no login on a server any longer."""
        with self._file.locked():
            self._write({name: session for name, session in self._read().items() if name != server})

    def replace(self, server: str, stale: Session, refresh: Callable[[Session], Session | None]) -> Session | None:
        """Replace a login by a refreshed one, unless another command has done so.

        The lock is held from the second read to the write: a refresh token that is presented twice ends the session.

        Args:
            server: Whose login it is.
            stale: The login as it was read.
            refresh: Makes the new login; None if the session has ended: then it is forgotten.
        """
        with self._file.locked():
            sessions = self._read()
            current = sessions.pop(server, None)
            if current is None or current.access_token != stale.access_token:
                return current
            refreshed = refresh(current)
            self._write(sessions if refreshed is None else {**sessions, server: refreshed})
            return refreshed

    def _read(self) -> dict[str, Session]:
        return self._file.read(_sessions) or {}

    def _write(self, sessions: dict[str, Session]) -> None:
        self._file.write({server: asdict(session) for server, session in sessions.items()})


def _sessions(document: Any) -> dict[str, Session]:
    return {server: Session(**fields) for server, fields in document.items()}
