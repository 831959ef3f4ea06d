"""Admin users and events of logging in, between domain types and messages."""

from typing import Any

from gatekeeper.v1 import admin_service_pb2 as admin
from gatekeeper.v1 import admin_user_pb2, audit_pb2
from gatekeeper_grpc.domain.admin_user import AdminUser, AuthEventEntry, check_username
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.commands import AdminUserUpdate, AuthEventFilter, NewAdminUser
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import MAX_USERNAME_CHARS, check_text
from gatekeeper_grpc.wire.flags import timestamp

PASSWORD = "password"  # noqa: S105 - a path of the mask
_PATHS = ("role", "enabled", PASSWORD)
_MAX_EVENT_CHARS = 64


def admin_user_to_proto(user: AdminUser) -> admin_user_pb2.AdminUser:
    """Convert an admin user."""
    return admin_user_pb2.AdminUser(
        username=user.username,
        role=admin_user_pb2.Role.ValueType(user.role),
        enabled=user.enabled,
        create_time=timestamp(user.create_time),
        update_time=timestamp(user.update_time),
        etag=user.etag,
        revision=user.revision,
    )


def new_admin_user_from_proto(request: admin.CreateAdminUserRequest) -> NewAdminUser:
    """Convert whom to make an admin user; what the server decides is ignored."""
    check_username("admin_user.username", request.admin_user.username)
    return NewAdminUser(username=request.admin_user.username, role=_role(request.admin_user))


def admin_user_update_from_proto(request: admin.UpdateAdminUserRequest) -> AdminUserUpdate:
    """Convert an update, less the password; `InvalidArgument` names the mask's path that cannot be updated."""
    check_username("admin_user.username", request.admin_user.username)
    if not request.update_mask.paths:
        raise InvalidArgument.of("update_mask", f"must name at least one of {', '.join(_PATHS)}")
    changes: dict[str, Any] = {}
    for position, path in enumerate(request.update_mask.paths):
        if path not in _PATHS:
            field = f"update_mask.paths[{position}]"
            raise InvalidArgument.of(field, f"is {path!r}, which cannot be updated; use {', '.join(_PATHS)}")
        if path == "role":
            changes[path] = _role(request.admin_user)
        elif path == "enabled":
            changes[path] = request.admin_user.enabled
    return AdminUserUpdate(username=request.admin_user.username, changes=changes, etag=request.admin_user.etag)


def _role(user: admin_user_pb2.AdminUser) -> Role:
    try:
        return Role(user.role)
    except ValueError:
        raise InvalidArgument.of("admin_user.role", "must be ROLE_VIEWER, ROLE_EDITOR or ROLE_ADMIN") from None


def auth_event_to_proto(event: AuthEventEntry) -> audit_pb2.AuthEvent:
    """Convert an event of logging in."""
    return audit_pb2.AuthEvent(
        create_time=timestamp(event.create_time), event=event.event, username=event.username, peer=event.peer
    )


def auth_event_filter_from_proto(request: admin.ListAuthEventsRequest, *, before: str, limit: int) -> AuthEventFilter:
    """Convert the filters of a listing; `before` is the id of the last event that its caller has, if any."""
    check_text("username", request.username, at_most=MAX_USERNAME_CHARS)
    check_text("event", request.event, at_most=_MAX_EVENT_CHARS)
    return AuthEventFilter(
        limit=limit, before=int(before) if before else None, username=request.username, event=request.event
    )
