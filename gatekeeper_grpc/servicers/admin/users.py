"""The user RPCs of AdminService: convert, act, refresh, convert."""

import grpc

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceServicer
from gatekeeper_grpc.domain.limits import check_user_id
from gatekeeper_grpc.servicers.admin.ports import AdminDependencies
from gatekeeper_grpc.wire.audit import anchor_to_proto
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit
from gatekeeper_grpc.wire.users import (
    user_filter_from_proto,
    user_profile_from_proto,
    user_to_proto,
    user_update_from_proto,
)


class UserRpcs(AdminServiceServicer):
    """CreateUser, GetUser, ListUsers, UpdateUser, DeleteUser."""

    ports: AdminDependencies

    def CreateUser(self, request: pb.CreateUserRequest, context: grpc.ServicerContext) -> pb.CreateUserResponse:
        profile = user_profile_from_proto(request.user)
        written = self.ports.users.create(profile, intent_from_proto(request, action="CreateUser"))
        self.ports.cache.refresh_after_write(written.revision)
        return pb.CreateUserResponse(
            user=user_to_proto(written.result), revision=written.revision, audit_anchor=anchor_to_proto(written.anchor)
        )

    def GetUser(self, request: pb.GetUserRequest, context: grpc.ServicerContext) -> pb.GetUserResponse:
        check_user_id("user_id", request.user_id)
        read = self.ports.users.get(request.user_id)
        return pb.GetUserResponse(user=user_to_proto(read.result), revision=read.revision)

    def ListUsers(self, request: pb.ListUsersRequest, context: grpc.ServicerContext) -> pb.ListUsersResponse:
        after = self.ports.page_tokens.cursor(request)
        read = self.ports.users.list(user_filter_from_proto(request, after=after, limit=read_limit(request)))
        users, next_page_token = self.ports.page_tokens.page(request, read.result, lambda user: user.user_id)
        return pb.ListUsersResponse(
            users=map(user_to_proto, users), next_page_token=next_page_token, revision=read.revision
        )

    def UpdateUser(self, request: pb.UpdateUserRequest, context: grpc.ServicerContext) -> pb.UpdateUserResponse:
        update = user_update_from_proto(request)
        written = self.ports.users.update(update, intent_from_proto(request, action="UpdateUser"))
        self.ports.cache.refresh_after_write(written.revision)
        return pb.UpdateUserResponse(
            user=user_to_proto(written.result), revision=written.revision, audit_anchor=anchor_to_proto(written.anchor)
        )

    def DeleteUser(self, request: pb.DeleteUserRequest, context: grpc.ServicerContext) -> pb.DeleteUserResponse:
        check_user_id("user_id", request.user_id)
        written = self.ports.users.delete(
            request.user_id, request.etag, intent_from_proto(request, action="DeleteUser")
        )
        self.ports.cache.refresh_after_write(written.revision)
        return pb.DeleteUserResponse(revision=written.revision, audit_anchor=anchor_to_proto(written.anchor))
