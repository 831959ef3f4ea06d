"""Checks logins and changes of passwords before they take a slot: those that have to wait must not keep others out."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from gatekeeper_grpc.auth.lockout import LoginGuard
from gatekeeper_grpc.transport.arrival import Standing
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall


class LoginChecks:
    """The checks of one server, on its serving thread: no I/O, in microseconds.

    Args:
        guard: Knows which addresses have failed.
    """

    def __init__(self, guard: LoginGuard) -> None:
        self._guard = guard

    def by_method(self) -> Mapping[str, Callable[[ArrivedCall], None]]:
        """Return the check of each method, for `Stages`."""
        return {
            "/gatekeeper.v1.AuthService/Login": self.check_login,
            "/gatekeeper.v1.AdminService/ChangePassword": self.check_own_password,
        }

    def check_login(self, call: ArrivedCall) -> None:
        """Refuse a login whose address has to wait; tell the pool where another one stands.

        Whose account a name is, only the database knows. What counts for the account is checked on the worker.

        Raises:
            ResourceExhausted: There were too many failures.
        """
        self._guard.admit_address(call.client)
        self._note(call, is_proven=self._guard.succeeded_last(call.client))

    def check_own_password(self, call: ArrivedCall) -> None:
        """Refuse a change of the caller's own password that has to wait: it counts like a login.

        Without an access token it is checked as a login is.

        Raises:
            ResourceExhausted: There were too many failures.
        """
        if call.arrival.caller is None:
            self.check_login(call)
        else:
            self._guard.admit(call.arrival.caller.admin_id, call.client)
            self._note(call, is_proven=True)

    def _note(self, call: ArrivedCall, *, is_proven: bool) -> None:
        client = call.client
        standing = Standing(is_proven, self._guard.tried(client), self._guard.network_failures(client))
        call.note(replace(call.arrival, standing=standing))
