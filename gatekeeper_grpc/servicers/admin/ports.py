"""What the AdminService needs of the rest of the house."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from gatekeeper_grpc.domain.admin_user import AdminUser, AuthEventEntry
from gatekeeper_grpc.domain.audit import AuditAnchor, AuditCheckpoint, AuditHead, AuditPage
from gatekeeper_grpc.domain.audit_verifier import Verification
from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.client_key import ClientKey, ClientKeyConfig, CreatedClientKey
from gatekeeper_grpc.domain.commands import (
    AdminUserUpdate,
    AuditFilter,
    AuthEventFilter,
    FlagFilter,
    FlagUpdate,
    MemberEdit,
    NewAdminUser,
    SegmentFilter,
    SegmentUpdate,
    TargetEdit,
    TargetEditResult,
    UserFilter,
    UserUpdate,
)
from gatekeeper_grpc.domain.erasure import Erased, ExportPart
from gatekeeper_grpc.domain.flag import Flag, FlagConfig, Target
from gatekeeper_grpc.domain.mutation import Intent, Read, Written
from gatekeeper_grpc.domain.segment import CountedSegment, SegmentConfig
from gatekeeper_grpc.domain.user import User, UserProfile
from gatekeeper_grpc.wire.paging import PageTokens


class Flags(Protocol):
    """Keeps flags."""

    def create(self, config: FlagConfig, intent: Intent) -> Written[Flag]: ...
    def get(self, key: str) -> Read[Flag]: ...
    def list(self, wanted: FlagFilter) -> Read[list[Flag]]: ...
    def update(self, update: FlagUpdate, intent: Intent) -> Written[Flag]: ...
    def delete(self, key: str, etag: str, intent: Intent) -> Written[None]: ...


class Targets(Protocol):
    """Keeps individual targets."""

    def edit(self, edit: TargetEdit, intent: Intent) -> Written[TargetEditResult]: ...
    def list(self, flag_key: str, *, after: str, limit: int) -> Read[list[Target]]: ...
    def revision(self) -> int: ...


class Segments(Protocol):
    """Keeps segments."""

    def create(self, config: SegmentConfig, intent: Intent) -> Written[CountedSegment]: ...
    def get(self, key: str) -> Read[CountedSegment]: ...
    def list(self, wanted: SegmentFilter) -> Read[list[CountedSegment]]: ...
    def update(self, update: SegmentUpdate, intent: Intent) -> Written[CountedSegment]: ...
    def delete(self, key: str, etag: str, intent: Intent) -> Written[None]: ...


class Members(Protocol):
    """Keeps members of segments."""

    def add(self, edit: MemberEdit, intent: Intent) -> Written[int]: ...
    def remove(self, edit: MemberEdit, intent: Intent) -> Written[int]: ...
    def list(self, segment_key: str, *, after: str, limit: int) -> Read[list[str]]: ...
    def revision(self) -> int: ...


class AuditLog(Protocol):
    """Keeps the audit log."""

    def list(self, wanted: AuditFilter) -> AuditPage: ...
    def verify(self, anchor: AuditAnchor | None) -> Iterator[Verification]: ...
    def head(self) -> AuditHead: ...


class AuditSigner(Protocol):
    """Vouches for where the audit log stands."""

    def sign(self, head: AuditHead) -> AuditCheckpoint: ...


class Users(Protocol):
    """Keeps known users."""

    def create(self, profile: UserProfile, intent: Intent) -> Written[User]: ...
    def get(self, user_id: str) -> Read[User]: ...
    def list(self, wanted: UserFilter) -> Read[list[User]]: ...
    def update(self, update: UserUpdate, intent: Intent) -> Written[User]: ...
    def delete(self, user_id: str, etag: str, intent: Intent) -> Written[None]: ...


class Erasures(Protocol):
    """Erases people."""

    def erase(self, user_id: str, intent: Intent) -> Written[Erased]: ...


class Exports(Protocol):
    """Tells what is held about people."""

    def export(self, user_id: str) -> Iterator[Read[ExportPart]]: ...


class AdminUsers(Protocol):
    """Keeps admin users."""

    def create(self, new: NewAdminUser, *, password_hash: str, intent: Intent) -> Written[AdminUser]: ...
    def list(self, *, after: str, limit: int) -> Read[list[AdminUser]]: ...
    def update(self, update: AdminUserUpdate, *, password_hash: str | None, intent: Intent) -> Written[AdminUser]: ...
    def delete(self, username: str, etag: str, intent: Intent) -> Written[None]: ...


class Passwords(Protocol):
    """Hashes passwords, in a fifth of a second: never while something is locked."""

    def hash(self, password: str) -> str: ...


class OwnPassword(Protocol):
    """Changes the caller's own password."""

    def change(self, caller: Caller, current: str, new: str, *, intent: Intent, peer: str) -> Written[None]: ...


class AuthEvents(Protocol):
    """Remembers logins and the like."""

    def list_events(self, wanted: AuthEventFilter) -> list[AuthEventEntry]: ...


class ClientKeys(Protocol):
    """Keeps client keys."""

    def create(
        self, config: ClientKeyConfig, *, key_id: str, secret: str, intent: Intent
    ) -> Written[CreatedClientKey]: ...
    def list(self, *, after: str, limit: int) -> Read[list[ClientKey]]: ...
    def revoke(self, key_id: str, intent: Intent) -> Written[ClientKey]: ...


class LiveClientKeys(Protocol):
    """Holds the client keys that are good, in memory."""

    def refresh_after_write(self) -> None:
        """Make a durable change of a key act on this instance at once; never raises."""
        ...


class Cache(Protocol):
    """Serves snapshots."""

    def refresh_after_write(self, revision: int) -> None:
        """Make a durable write visible on this instance; never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminDependencies:
    """Everything the AdminService works with."""

    flags: Flags
    targets: Targets
    segments: Segments
    members: Members
    users: Users
    erasures: Erasures
    exports: Exports
    admin_users: AdminUsers
    passwords: Passwords
    own_password: OwnPassword
    auth_events: AuthEvents
    client_keys: ClientKeys
    live_client_keys: LiveClientKeys
    audit: AuditLog
    audit_signer: AuditSigner | None
    """None: this installation has no key to sign checkpoints with."""
    cache: Cache
    page_tokens: PageTokens
