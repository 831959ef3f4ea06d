"""ChangePassword: verifies the current password of the caller and hashes the new one."""

from typing import Protocol

from gatekeeper_grpc.auth.lockout import LoginGuard
from gatekeeper_grpc.auth.passwords import Passwords
from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.commands import PasswordChange
from gatekeeper_grpc.domain.errors import InvalidArgument, Unauthenticated
from gatekeeper_grpc.domain.mutation import Intent, Written


class PasswordRecords(Protocol):
    """Keeps password hashes. A Protocol, like the one below: `auth` does not import the store."""

    def own_password_hash(self, admin_id: int) -> str | None:
        """Return the hash of an enabled admin user; None when there is none."""
        ...

    def change_password(self, change: PasswordChange, intent: Intent) -> Written[None]:
        """Change a password.

        Raises:
            Unauthenticated: The current password was not verified against the stored hash.
        """
        ...


class FailureRecord(Protocol):
    """Records failed credentials."""

    def record_failed_change(self, username: str, *, peer: str, locked_out: bool) -> None:
        """Record that a caller gave a wrong current password."""
        ...


class OwnPassword:
    """Changes the caller's own password. Holds no state and no lock.

    A wrong current password counts as a failed login: a stolen access token must not speed up guessing.
    """

    def __init__(
        self, admin_users: PasswordRecords, passwords: Passwords, guard: LoginGuard, failures: FailureRecord
    ) -> None:
        self._admin_users = admin_users
        self._passwords = passwords
        self._guard = guard
        self._failures = failures

    def change(self, caller: Caller, current: str, new: str, *, intent: Intent, peer: str) -> Written[None]:
        """Change the password. Takes one password check, and one hash if it succeeds, without holding a lock.

        Raises:
            InvalidArgument: The new password may not be set, see `check_new`.
            ResourceExhausted: There were too many failures; the caller has to wait.
            Unauthenticated: The current password is wrong, or was changed during the call.
        """
        self.check_new(caller.username, current, new)
        self._guard.admit(caller.admin_id, peer)
        current_hash = self._admin_users.own_password_hash(caller.admin_id)
        matches = self._passwords.verify(current, current_hash)
        change = PasswordChange(
            admin_id=caller.admin_id,
            verified_hash=current_hash if matches else None,
            new_hash=self._passwords.rehash(new) if matches else "",
        )
        try:
            written = self._admin_users.change_password(change, intent)
        except Unauthenticated:
            if not matches:
                self._record_failure(caller, peer)
            raise
        if matches:
            self._guard.succeeded(caller.admin_id, peer)
        return written

    def check_new(self, username: str, current: str, new: str) -> None:
        """Check that a password may take the place of the current one.

        Raises:
            InvalidArgument: It may not be set, see `Passwords.check`, or it is the current one.
        """
        self._passwords.check(new, username=username, field="new_password")
        if new == current:
            raise InvalidArgument.of("new_password", "must not be the current password")

    def _record_failure(self, caller: Caller, peer: str) -> None:
        locked_out = self._guard.failed(caller.admin_id, peer)
        self._failures.record_failed_change(caller.username, peer=peer, locked_out=locked_out)
