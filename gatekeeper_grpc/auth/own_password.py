"""What happens when an admin user changes the own password: the current one is verified, the new one hashed."""

from typing import Protocol

from gatekeeper_grpc.auth.sessions import PasswordVerifier, TryGuard
from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.commands import PasswordChange
from gatekeeper_grpc.domain.errors import Unauthenticated
from gatekeeper_grpc.domain.mutation import Intent, Written


class PasswordKeeper(PasswordVerifier, Protocol):
    """Checks passwords, and hashes new ones."""

    def check(self, password: str, *, field: str) -> None:
        """Refuse what cannot be a password."""
        ...

    def hash(self, password: str, *, field: str) -> str:
        """Hash a password that is being set."""
        ...


class AdminUserStore(Protocol):
    """Remembers password hashes."""

    def own_password_hash(self, admin_id: int) -> str | None:
        """Return the hash of an enabled admin user; None when there is no such."""
        ...

    def change_password(self, change: PasswordChange, intent: Intent) -> Written[None]:
        """Change a password; `Unauthenticated` unless the current one was verified against the hash in force."""
        ...


class FailureRecord(Protocol):
    """Remembers what went wrong with credentials."""

    def record_failed_change(self, username: str, *, peer: str, locked_out: bool) -> None:
        """Record that somebody who was logged in could not give the current password."""
        ...


class OwnPassword:
    """Changes the caller's own password. Holds no state and no lock.

    A wrong current password counts as a failed login: whoever has stolen an access token may not guess faster.
    """

    def __init__(
        self, admin_users: AdminUserStore, passwords: PasswordKeeper, guard: TryGuard, failures: FailureRecord
    ) -> None:
        self._admin_users = admin_users
        self._passwords = passwords
        self._guard = guard
        self._failures = failures

    def change(self, caller: Caller, current: str, new: str, *, intent: Intent, peer: str) -> Written[None]:
        """Change the password; takes one password check, and a hash when that succeeds, both with nothing locked.

        Raises:
            InvalidArgument: The new password cannot be one.
            ResourceExhausted: Too many failures; wait.
            Unauthenticated: The current password is wrong, or was changed meanwhile.
        """
        self._passwords.check(new, field="new_password")
        self._guard.admit(caller.username, peer)
        current_hash = self._admin_users.own_password_hash(caller.admin_id)
        matches = self._passwords.verify(current, current_hash)
        change = PasswordChange(
            admin_id=caller.admin_id,
            verified_hash=current_hash if matches else None,
            new_hash=self._passwords.hash(new, field="new_password") if matches else "",
        )
        try:
            written = self._admin_users.change_password(change, intent)
        except Unauthenticated:
            if not matches:
                self._record_failure(caller, peer)
            raise
        if matches:
            self._guard.succeeded(caller.username, peer)
        return written

    def _record_failure(self, caller: Caller, peer: str) -> None:
        locked_out = self._guard.failed(caller.username, peer)
        self._failures.record_failed_change(caller.username, peer=peer, locked_out=locked_out)
