"""Stored users, between domain types and messages."""

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import user_pb2
from gatekeeper_grpc.domain.commands import UserFilter, UserUpdate
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import MAX_USER_ID_BYTES, check_text, check_visible
from gatekeeper_grpc.domain.user import User, UserProfile, check_new_attribute_names, checked_attributes
from gatekeeper_grpc.wire.evaluation import attributes_from_proto
from gatekeeper_grpc.wire.json import struct_to_proto
from gatekeeper_grpc.wire.timestamps import time_to_proto

_ALL = "attributes"
_ONE = "attributes."


def user_to_proto(user: User) -> user_pb2.User:
    """Convert a user; one that is not stored (revision 0) has no etag."""
    return user_pb2.User(
        user_id=user.user_id,
        attributes=struct_to_proto(user.attributes),
        create_time=time_to_proto(user.create_time),
        update_time=time_to_proto(user.update_time),
        etag=user.etag if user.revision else "",
        revision=user.revision,
    )


def new_user_from_proto(message: user_pb2.User) -> UserProfile:
    """Convert a new user; fields that the server decides are ignored.

    Raises:
        InvalidArgument: A field is invalid.
    """
    profile = profile_from_proto(message)
    check_visible("user.user_id", profile.user_id)
    check_new_attribute_names(profile.attributes)
    return profile


def profile_from_proto(message: user_pb2.User) -> UserProfile:
    """Convert what an editor decides of a user, new or not.

    Raises:
        InvalidArgument: A field is invalid.
    """
    return UserProfile(user_id=message.user_id, attributes=attributes_from_proto("user.attributes", message.attributes))


def user_update_from_proto(request: admin.UpdateUserRequest) -> UserUpdate:
    """Convert an update, whose mask names all attributes or single ones.

    Raises:
        InvalidArgument: The mask is empty or names another path, or a field is invalid.
    """
    paths = request.update_mask.paths
    if not paths:
        raise InvalidArgument.of("update_mask", f"must name {_ALL}, or {_ONE}<name> for each attribute to change")
    for position, path in enumerate(paths):
        if path != _ALL and not path.startswith(_ONE):
            raise InvalidArgument.of(
                f"update_mask.paths[{position}]", f"is {path!r}, which cannot be updated; use {_ALL} or {_ONE}<name>"
            )
    profile = profile_from_proto(request.user)
    return UserUpdate(
        user_id=profile.user_id,
        attributes=profile.attributes,
        # Everything after the first dot is the name, including dots, quotes and spaces.
        names=None if _ALL in paths else frozenset(path.removeprefix(_ONE) for path in paths),
        etag=request.user.etag,
    )


def user_filter_from_proto(request: admin.ListUsersRequest, *, after: str, limit: int) -> UserFilter:
    """Convert the filters of a list.

    Raises:
        InvalidArgument: A filter is invalid.
    """
    check_text("user_id_prefix", request.user_id_prefix, at_most=MAX_USER_ID_BYTES)
    attributes = attributes_from_proto("attributes", request.attributes)
    return UserFilter(
        after=after,
        limit=limit,
        user_id_prefix=request.user_id_prefix,
        attributes=checked_attributes("attributes", attributes),
    )
