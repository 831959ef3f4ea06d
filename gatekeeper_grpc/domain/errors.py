"""Expected failures. Independent of gRPC and SQL; `wire.status` maps kinds to status codes.

A *kind* (`NotFound`, `FailedPrecondition`, ...) decides the status that a client receives. A *reason* is the stable,
documented name of one cause (`ErrorReason` in errors.proto, without its prefix), on which programs may branch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from types import MappingProxyType

from gatekeeper_grpc.domain.rate import Rate

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One invalid request field: its proto path and what would be right."""

    field: str
    description: str


class GatekeeperError(Exception):
    """Base of every expected failure.

    Clients receive the message: it says what is wrong, with which resource, and what to do. It never contains a secret.
    `metadata` repeats the variables of the message for programs.
    """

    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] = _NOTHING,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason or type(self).reason
        self.metadata = metadata
        self.violations = violations
        self.retry_after_s = retry_after_s

    def add_metadata(self, **variables: object) -> None:
        """Add variables for programs, such as the progress of a stream."""
        self.metadata = {**self.metadata, **{name: str(value) for name, value in variables.items()}}


class InvalidArgument(GatekeeperError):
    """The request can never succeed as sent; `violations` name the fields."""

    reason = "INVALID_ARGUMENT"

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidArgument":
        """Build the error for one field.

        `description` completes the sentence "<field> ...", e.g. "must be 0 to 100".
        """
        violation = FieldViolation(field=field, description=description)
        return cls(f"{field} {description}", metadata={"field": field}, violations=(violation,))


class NotFound(GatekeeperError):
    """The named resource does not exist, or no longer exists."""

    reason = "NOT_FOUND"

    @classmethod
    def flag(cls, key: str) -> "NotFound":
        """No flag has this key."""
        return cls(f"flag {key!r} does not exist", reason="FLAG_NOT_FOUND", metadata={"flag_key": key})

    @classmethod
    def segment(cls, key: str) -> "NotFound":
        """No segment has this key."""
        return cls(f"segment {key!r} does not exist", reason="SEGMENT_NOT_FOUND", metadata={"segment_key": key})

    @classmethod
    def user(cls, user_id: str) -> "NotFound":
        """No stored user has this id."""
        return cls(f"user {user_id!r} does not exist", reason="USER_NOT_FOUND", metadata={"user_id": user_id})

    @classmethod
    def admin_user(cls, username: str) -> "NotFound":
        """No admin user has this name."""
        message = f"admin user {username!r} does not exist"
        return cls(message, reason="ADMIN_USER_NOT_FOUND", metadata={"username": username})

    @classmethod
    def client_key(cls, key_id: str) -> "NotFound":
        """No client key has this id."""
        return cls(f"client key {key_id!r} does not exist", reason="CLIENT_KEY_NOT_FOUND", metadata={"key_id": key_id})

    @classmethod
    def api_token(cls, token_id: str) -> "NotFound":
        """No API token that the caller may revoke has this id."""
        return cls(
            f"API token {token_id!r} does not exist", reason="API_TOKEN_NOT_FOUND", metadata={"token_id": token_id}
        )

    @classmethod
    def session(cls, session_id: str) -> "NotFound":
        """No session that the caller may revoke has this id."""
        message = f"session {session_id!r} does not exist"
        return cls(message, reason="SESSION_NOT_FOUND", metadata={"session_id": session_id})


class AlreadyExists(GatekeeperError):
    """A resource with that identity exists."""

    reason = "ALREADY_EXISTS"


class Changed(GatekeeperError):
    """The resource changed since the caller read it: the caller should read it again and decide again."""

    reason = "ETAG_MISMATCH"

    @classmethod
    def since_read(cls, resource: str, *, current_etag: str) -> "Changed":
        """A resource, such as "flag 'x'", has another etag than the one in the request."""
        return cls(
            f"{resource} changed since it was read: read it again; its current etag is {current_etag!r}",
            metadata={"current_etag": current_etag},
        )


class FailedPrecondition(GatekeeperError):
    """The system is not in the state that this call needs."""

    reason = "FAILED_PRECONDITION"

    @classmethod
    def last_admin(cls, username: str) -> "FailedPrecondition":
        """Without this admin user, nobody could manage admin users."""
        return cls(
            f"{username!r} is the last enabled admin user with role ADMIN; give another one that role first",
            reason="LAST_ADMIN",
            metadata={"username": username},
        )

    @classmethod
    def password_change_required(cls, username: str) -> "FailedPrecondition":
        """The password is right, and must be changed before a login."""
        return cls(
            "the password must be changed before you can log in: call ChangePassword with username, current_password"
            " and new_password, without an access token",
            reason="PASSWORD_CHANGE_REQUIRED",
            metadata={"username": username},
        )

    @classmethod
    def usage_not_covered(cls, counted_since: datetime) -> "FailedPrecondition":
        """Whether a flag was used before usage was counted is not known."""
        since = counted_since.isoformat(timespec="seconds")
        return cls(
            f"usage is counted since {since}, which is less than stale_for: ask for a shorter time, or later",
            reason="USAGE_NOT_COVERED",
            metadata={"counted_since": since},
        )


class Unauthenticated(GatekeeperError):
    """No valid credentials. Never says which part was wrong: that would tell an attacker which part was right."""

    reason = "UNAUTHENTICATED"

    @classmethod
    def credentials(cls) -> "Unauthenticated":
        """A password or refresh token is not valid."""
        return cls("these credentials are not valid")

    @classmethod
    def access_token(cls) -> "Unauthenticated":
        """An access token or API token is missing, not valid or revoked."""
        return cls("a valid access token is required: send it as metadata 'authorization: Bearer <token>'")

    @classmethod
    def client(cls) -> "Unauthenticated":
        """A client key or signature is missing, not valid or used before."""
        return cls("a valid client key or signature is required: see EvaluationService; the server's log has the cause")


class PermissionDenied(GatekeeperError):
    """Valid credentials that do not suffice."""

    reason = "PERMISSION_DENIED"

    @classmethod
    def role(cls, role: str, *, required: str) -> "PermissionDenied":
        """The caller has another role than the call needs at least."""
        message = f"this call needs role {required}, yours is {role}"
        return cls(message, metadata={"role": role, "required_role": required})

    @classmethod
    def api_token(cls) -> "PermissionDenied":
        """API tokens may not make this call, whatever their role."""
        return cls("API tokens may not make this call: log in", reason="API_TOKEN_NOT_ALLOWED")


class ResourceExhausted(GatekeeperError):
    """A rate, a capacity or a limit is used up; `retry_after_s` is set if waiting helps."""

    reason = "RESOURCE_EXHAUSTED"

    @classmethod
    def segment_targets(cls, limit: int) -> "ResourceExhausted":
        """All flags together would have too many segment targets."""
        return cls(
            f"all flags together may have {limit} segment targets, and would have more: take some out of other flags",
            reason="QUOTA_EXCEEDED",
            metadata={"quota": "segment_targets", "limit": str(limit)},
        )


class RateLimited(ResourceExhausted):
    """The caller has called too often."""

    reason = "RATE_LIMITED"

    @classmethod
    def of(cls, limit: str, rate: Rate, *, retry_after_s: float) -> "RateLimited":
        """The budget of a caller under a limit, such as "login", is used up."""
        return cls(
            f"too many calls: the {limit} limit is {rate}; call again in {ceil(retry_after_s)} s",
            metadata={"limit": limit, "rate": str(rate)},
            retry_after_s=retry_after_s,
        )


class Unavailable(GatekeeperError):
    """A dependency of the call is unavailable; the same call may succeed later."""

    reason = "UNAVAILABLE"

    @classmethod
    def credentials(cls) -> "Unavailable":
        """Nobody can tell yet whether a credential is valid: the database has not answered since the start."""
        return cls("this instance has not loaded client keys and API tokens yet", retry_after_s=1.0)


class Busy(Unavailable):
    """A dependency of the call works, and others use it: the same call will probably succeed soon."""

    reason = "DATABASE_BUSY"


class OutcomeUnknown(Unavailable):
    """A change was sent to the database and not confirmed: it was made, or it was not."""

    reason = "OUTCOME_UNKNOWN"


class CallAbandoned(GatekeeperError):
    """The caller cancelled the call, or its deadline has passed. Nothing was changed, and nobody reads this."""

    reason = "CALL_ABANDONED"


class HistoryLost(Unavailable):
    """The database lost revisions that were served, and has created others with the same numbers."""
