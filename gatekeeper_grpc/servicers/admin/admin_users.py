"""AdminService: admin users.

A password is hashed before the store is called: a mutation locks the head for milliseconds, a hash takes a fifth of a
second.
"""

from functools import partial

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.admin_user import check_username
from gatekeeper_grpc.domain.caller import Role, caller_if_any, current_caller, set_current_caller
from gatekeeper_grpc.domain.current_call import current_peer
from gatekeeper_grpc.domain.errors import InvalidArgument, Unauthenticated
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.admin_users import (
    PASSWORD,
    admin_user_to_proto,
    admin_user_update_from_proto,
    auth_event_filter_from_proto,
    auth_event_to_proto,
    credential_filter_from_proto,
    new_admin_user_from_proto,
    session_id_from_proto,
    session_to_proto,
)
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit


class AdminUserRpcs(AdminRpcs):
    """CreateAdminUser, ListAdminUsers, UpdateAdminUser, DeleteAdminUser, ChangePassword, sessions, ListAuthEvents."""

    def CreateAdminUser(
        self, request: pb.CreateAdminUserRequest, context: grpc.ServicerContext
    ) -> pb.CreateAdminUserResponse:
        new, intent = new_admin_user_from_proto(request), intent_from_proto(request)
        password_hash = self.passwords.hash(request.password, username=new.username)
        written = self.stores.admin_users.create(new, password_hash=password_hash, intent=intent)
        return pb.CreateAdminUserResponse(
            admin_user=admin_user_to_proto(written.result), **self._refresh_after(written)
        )

    def ListAdminUsers(
        self, request: pb.ListAdminUsersRequest, context: grpc.ServicerContext
    ) -> pb.ListAdminUsersResponse:
        after = self.page_tokens.cursor(request)
        read = self.stores.admin_users.list(after=after, limit=read_limit(request))
        users, next_page_token = self.page_tokens.page(
            request, read.result, convert=admin_user_to_proto, key=lambda user: user.username
        )
        return pb.ListAdminUsersResponse(admin_users=users, next_page_token=next_page_token, revision=read.revision)

    def UpdateAdminUser(
        self, request: pb.UpdateAdminUserRequest, context: grpc.ServicerContext
    ) -> pb.UpdateAdminUserResponse:
        update, intent = admin_user_update_from_proto(request), intent_from_proto(request)
        new_password = PASSWORD in request.update_mask.paths
        password_hash = self.passwords.hash(request.password, username=update.username) if new_password else None
        written = self.stores.admin_users.update(update, password_hash=password_hash, intent=intent)
        return pb.UpdateAdminUserResponse(
            admin_user=admin_user_to_proto(written.result), **self._refresh_after(written)
        )

    def DeleteAdminUser(
        self, request: pb.DeleteAdminUserRequest, context: grpc.ServicerContext
    ) -> pb.DeleteAdminUserResponse:
        check_username("username", request.username)
        intent = intent_from_proto(request)
        written = self.stores.admin_users.delete(request.username, request.etag, intent)
        return pb.DeleteAdminUserResponse(**self._refresh_after(written))

    def ChangePassword(
        self, request: pb.ChangePasswordRequest, context: grpc.ServicerContext
    ) -> pb.ChangePasswordResponse:
        if caller_if_any() is None:
            self._prove_password(request)
        intent = intent_from_proto(request)
        if not request.current_password:
            raise InvalidArgument.of("current_password", "must not be empty")
        written = self.own_password.change(
            current_caller(), request.current_password, request.new_password, intent=intent, peer=current_peer()
        )
        return pb.ChangePasswordResponse(**self._refresh_after(written))

    def _prove_password(self, request: pb.ChangePasswordRequest) -> None:
        """Make the admin user whose name and password are in the request the caller.

        Raises:
            Unauthenticated: The name or the password is missing or wrong.
            InvalidArgument: The new password may not be set.
        """
        if not request.username or not request.current_password:
            raise Unauthenticated.access_token()
        self.own_password.check_new(request.username, request.current_password, request.new_password)
        caller = self.sessions.begin_password_change(request.username, request.current_password, peer=current_peer())
        set_current_caller(caller)

    def ListSessions(self, request: pb.ListSessionsRequest, context: grpc.ServicerContext) -> pb.ListSessionsResponse:
        caller, after = current_caller(), self.page_tokens.cursor(request)
        wanted = credential_filter_from_proto(request, caller, after=after, limit=read_limit(request))
        found = self.stores.logins.list_sessions(wanted)
        sessions, next_page_token = self.page_tokens.page(
            request,
            found,
            convert=partial(session_to_proto, current=caller.session_id),
            key=lambda session: str(session.session_id),
        )
        return pb.ListSessionsResponse(sessions=sessions, next_page_token=next_page_token)

    def RevokeSession(
        self, request: pb.RevokeSessionRequest, context: grpc.ServicerContext
    ) -> pb.RevokeSessionResponse:
        caller, session_id = current_caller(), session_id_from_proto(request.session_id)
        owner_id = None if caller.role is Role.ADMIN else caller.admin_id
        self.stores.logins.revoke_session(session_id, caller, owner_id=owner_id, peer=current_peer())
        return pb.RevokeSessionResponse()

    def ListAuthEvents(
        self, request: pb.ListAuthEventsRequest, context: grpc.ServicerContext
    ) -> pb.ListAuthEventsResponse:
        before = self.page_tokens.cursor(request)
        found = self.stores.logins.list_events(
            auth_event_filter_from_proto(request, before=before, limit=read_limit(request))
        )
        events, next_page_token = self.page_tokens.page(
            request, found, convert=auth_event_to_proto, key=lambda event: str(event.event_id)
        )
        return pb.ListAuthEventsResponse(auth_events=events, next_page_token=next_page_token)
