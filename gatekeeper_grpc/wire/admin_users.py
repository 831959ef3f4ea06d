"""Admin users and authentication events, between domain types and messages."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from uuid import UUID

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import admin_user_pb2, audit_pb2
from gatekeeper_grpc.domain.admin_user import AdminUser, AuthEventEntry, Session, check_new_username, check_username
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.commands import AdminUserUpdate, AuthEventFilter, CredentialFilter, NewAdminUser
from gatekeeper_grpc.domain.errors import InvalidArgument, PermissionDenied
from gatekeeper_grpc.domain.limits import MAX_USERNAME_CHARS, check_text, check_user_id
from gatekeeper_grpc.wire.masks import changes_from_mask
from gatekeeper_grpc.wire.timestamps import time_to_proto

PASSWORD = "password"  # noqa: S105 - a path of the mask
_MAX_EVENT_CHARS = 64
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def admin_user_to_proto(user: AdminUser) -> admin_user_pb2.AdminUser:
    """Convert an admin user."""
    return admin_user_pb2.AdminUser(
        username=user.username,
        role=admin_user_pb2.Role.ValueType(user.role),
        enabled=user.enabled,
        create_time=time_to_proto(user.create_time),
        update_time=time_to_proto(user.update_time),
        etag=user.etag,
        revision=user.revision,
        admin_id=user.admin_id,
        must_change_password=user.must_change_password,
    )


def new_admin_user_from_proto(request: admin.CreateAdminUserRequest) -> NewAdminUser:
    """Convert a new admin user; fields that the server decides are ignored.

    Raises:
        InvalidArgument: The username or the role is invalid.
    """
    check_new_username("admin_user.username", request.admin_user.username)
    user = request.admin_user
    return NewAdminUser(username=user.username, role=_role(user), must_change_password=user.must_change_password)


def admin_user_update_from_proto(request: admin.UpdateAdminUserRequest) -> AdminUserUpdate:
    """Convert an update, without the password.

    Raises:
        InvalidArgument: As `changes_from_mask`, or the username or the role is invalid.
    """
    check_username("admin_user.username", request.admin_user.username)
    changes = changes_from_mask(request.update_mask, request.admin_user, _READERS)
    changes.pop(PASSWORD, None)
    return AdminUserUpdate(username=request.admin_user.username, changes=changes, etag=request.admin_user.etag)


def role_from_proto(field: str, role: int) -> Role:
    """Convert a role.

    Raises:
        InvalidArgument: It is none; names `field`.
    """
    try:
        return Role(role)
    except ValueError:
        raise InvalidArgument.of(field, "must be ROLE_VIEWER, ROLE_EDITOR or ROLE_ADMIN") from None


def _role(user: admin_user_pb2.AdminUser) -> Role:
    return role_from_proto("admin_user.role", user.role)


_READERS: Mapping[str, Callable[[admin_user_pb2.AdminUser], Any]] = MappingProxyType(
    {
        "role": _role,
        "enabled": lambda user: user.enabled,
        "must_change_password": lambda user: user.must_change_password,
        PASSWORD: lambda _user: None,  # a field of the request, not of the message
    }
)


def session_to_proto(session: Session, *, current: UUID) -> admin_user_pb2.Session:
    """Convert a session; `current` is the one of the caller."""
    return admin_user_pb2.Session(
        session_id=str(session.session_id),
        username=session.username,
        create_time=time_to_proto(session.create_time),
        refresh_time=time_to_proto(session.refresh_time),
        expire_time=time_to_proto(session.expire_time),
        address=session.address,
        current=session.session_id == current,
    )


def credential_filter_from_proto(
    request: admin.ListSessionsRequest | admin.ListApiTokensRequest, caller: Caller, *, after: str, limit: int
) -> CredentialFilter:
    """Convert the filters of a list; below role admin, a caller sees its own sessions and API tokens only.

    Raises:
        InvalidArgument: The username is too long.
        PermissionDenied: The username is another's.
    """
    check_text("username", request.username, at_most=MAX_USERNAME_CHARS)
    if caller.role is Role.ADMIN:
        return CredentialFilter(limit=limit, after=after, username=request.username)
    if request.username not in ("", caller.username):
        raise PermissionDenied.role(caller.role.name, required=Role.ADMIN.name)
    return CredentialFilter(limit=limit, after=after, admin_id=caller.admin_id)


def session_id_from_proto(session_id: str) -> UUID:
    """Convert the id of a session.

    Raises:
        InvalidArgument: It is not a UUID.
    """
    if not _UUID.fullmatch(session_id):
        raise InvalidArgument.of("session_id", "must be the session_id of a session of ListSessions, a UUID")
    return UUID(session_id)


def auth_event_to_proto(event: AuthEventEntry) -> audit_pb2.AuthEvent:
    """Convert an event."""
    return audit_pb2.AuthEvent(
        create_time=time_to_proto(event.create_time),
        event=event.event,
        username=event.username,
        peer=event.peer,
        subject_id=str(event.subject_ids[0]) if event.subject_count == 1 else "",
        actor=event.actor,
        subject_ids=map(str, event.subject_ids),
        subject_count=event.subject_count,
    )


def auth_event_filter_from_proto(request: admin.ListAuthEventsRequest, *, before: str, limit: int) -> AuthEventFilter:
    """Convert the filters of a list; `before` is the id of the last event of the previous page, if any.

    Raises:
        InvalidArgument: A filter is too long, or no user can have the id.
    """
    check_text("username", request.username, at_most=MAX_USERNAME_CHARS)
    check_text("event", request.event, at_most=_MAX_EVENT_CHARS)
    if request.user_id:
        check_user_id("user_id", request.user_id)
    return AuthEventFilter(
        limit=limit,
        before=int(before) if before else None,
        username=request.username,
        event=request.event,
        user_id=request.user_id,
    )
