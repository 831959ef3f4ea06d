"""AdminService: users."""

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.limits import check_user_id
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit
from gatekeeper_grpc.wire.users import (
    new_user_from_proto,
    user_filter_from_proto,
    user_to_proto,
    user_update_from_proto,
)


class UserRpcs(AdminRpcs):
    """CreateUser, GetUser, ListUsers, UpdateUser, DeleteUser."""

    def CreateUser(self, request: pb.CreateUserRequest, context: grpc.ServicerContext) -> pb.CreateUserResponse:
        profile = new_user_from_proto(request.user)
        written = self.stores.users.create(profile, intent_from_proto(request))
        return pb.CreateUserResponse(user=user_to_proto(written.result), **self._refresh_after(written))

    def GetUser(self, request: pb.GetUserRequest, context: grpc.ServicerContext) -> pb.GetUserResponse:
        check_user_id("user_id", request.user_id)
        read = self.stores.users.get(request.user_id)
        return pb.GetUserResponse(user=user_to_proto(read.result), revision=read.revision)

    def ListUsers(self, request: pb.ListUsersRequest, context: grpc.ServicerContext) -> pb.ListUsersResponse:
        after = self.page_tokens.cursor(request)
        wanted = user_filter_from_proto(request, after=after, limit=read_limit(request))
        paged = self.page_tokens.paged(request, convert=user_to_proto, key=lambda user: user.user_id)
        read = self.stores.users.list(wanted, paged)
        users, next_page_token = read.result
        return pb.ListUsersResponse(users=users, next_page_token=next_page_token, revision=read.revision)

    def UpdateUser(self, request: pb.UpdateUserRequest, context: grpc.ServicerContext) -> pb.UpdateUserResponse:
        update = user_update_from_proto(request)
        written = self.stores.users.update(update, intent_from_proto(request))
        return pb.UpdateUserResponse(user=user_to_proto(written.result), **self._refresh_after(written))

    def DeleteUser(self, request: pb.DeleteUserRequest, context: grpc.ServicerContext) -> pb.DeleteUserResponse:
        check_user_id("user_id", request.user_id)
        written = self.stores.users.delete(request.user_id, request.etag, intent_from_proto(request))
        return pb.DeleteUserResponse(**self._refresh_after(written))
