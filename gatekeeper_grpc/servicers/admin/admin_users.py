"""The RPCs of AdminService about admin users: convert, act, refresh, convert.

A password is hashed before the store is asked for anything: the head is locked for milliseconds, and a hash takes a
fifth of a second.
"""

import grpc

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceServicer
from gatekeeper_grpc.domain.admin_user import check_username
from gatekeeper_grpc.domain.caller import current_caller
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.servicers.admin.ports import AdminDependencies
from gatekeeper_grpc.wire.admin_users import (
    PASSWORD,
    admin_user_to_proto,
    admin_user_update_from_proto,
    auth_event_filter_from_proto,
    auth_event_to_proto,
    new_admin_user_from_proto,
)
from gatekeeper_grpc.wire.audit import anchor_to_proto
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit


class AdminUserRpcs(AdminServiceServicer):
    """CreateAdminUser, ListAdminUsers, UpdateAdminUser, DeleteAdminUser, ChangePassword, ListAuthEvents."""

    ports: AdminDependencies

    def CreateAdminUser(
        self, request: pb.CreateAdminUserRequest, context: grpc.ServicerContext
    ) -> pb.CreateAdminUserResponse:
        new, intent = new_admin_user_from_proto(request), intent_from_proto(request, action="CreateAdminUser")
        password_hash = self.ports.passwords.hash(request.password)
        written = self.ports.admin_users.create(new, password_hash=password_hash, intent=intent)
        self.ports.cache.refresh_after_write(written.revision)
        return pb.CreateAdminUserResponse(
            admin_user=admin_user_to_proto(written.result),
            revision=written.revision,
            audit_anchor=anchor_to_proto(written.anchor),
        )

    def ListAdminUsers(
        self, request: pb.ListAdminUsersRequest, context: grpc.ServicerContext
    ) -> pb.ListAdminUsersResponse:
        after = self.ports.page_tokens.cursor(request)
        read = self.ports.admin_users.list(after=after, limit=read_limit(request))
        users, next_page_token = self.ports.page_tokens.page(request, read.result, lambda user: user.username)
        return pb.ListAdminUsersResponse(
            admin_users=map(admin_user_to_proto, users), next_page_token=next_page_token, revision=read.revision
        )

    def UpdateAdminUser(
        self, request: pb.UpdateAdminUserRequest, context: grpc.ServicerContext
    ) -> pb.UpdateAdminUserResponse:
        update, intent = admin_user_update_from_proto(request), intent_from_proto(request, action="UpdateAdminUser")
        new_password = PASSWORD in request.update_mask.paths
        password_hash = self.ports.passwords.hash(request.password) if new_password else None
        written = self.ports.admin_users.update(update, password_hash=password_hash, intent=intent)
        self.ports.cache.refresh_after_write(written.revision)
        return pb.UpdateAdminUserResponse(
            admin_user=admin_user_to_proto(written.result),
            revision=written.revision,
            audit_anchor=anchor_to_proto(written.anchor),
        )

    def DeleteAdminUser(
        self, request: pb.DeleteAdminUserRequest, context: grpc.ServicerContext
    ) -> pb.DeleteAdminUserResponse:
        check_username("username", request.username)
        intent = intent_from_proto(request, action="DeleteAdminUser")
        written = self.ports.admin_users.delete(request.username, request.etag, intent)
        self.ports.cache.refresh_after_write(written.revision)
        return pb.DeleteAdminUserResponse(revision=written.revision, audit_anchor=anchor_to_proto(written.anchor))

    def ChangePassword(
        self, request: pb.ChangePasswordRequest, context: grpc.ServicerContext
    ) -> pb.ChangePasswordResponse:
        intent = intent_from_proto(request, action="ChangePassword")
        if not request.current_password:
            raise InvalidArgument.of("current_password", "must not be empty")
        written = self.ports.own_password.change(
            current_caller(), request.current_password, request.new_password, intent=intent, peer=context.peer()
        )
        self.ports.cache.refresh_after_write(written.revision)
        return pb.ChangePasswordResponse(revision=written.revision, audit_anchor=anchor_to_proto(written.anchor))

    def ListAuthEvents(
        self, request: pb.ListAuthEventsRequest, context: grpc.ServicerContext
    ) -> pb.ListAuthEventsResponse:
        before = self.ports.page_tokens.cursor(request)
        found = self.ports.auth_events.list_events(
            auth_event_filter_from_proto(request, before=before, limit=read_limit(request))
        )
        events, next_page_token = self.ports.page_tokens.page(request, found, lambda event: str(event.event_id))
        return pb.ListAuthEventsResponse(auth_events=map(auth_event_to_proto, events), next_page_token=next_page_token)
