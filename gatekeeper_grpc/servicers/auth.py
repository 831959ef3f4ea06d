"""AuthService: login, refresh, logout."""

from typing import Any

import grpc

from gatekeeper_client.v1.auth_service_pb2 import (
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    RefreshTokenRequest,
    RefreshTokenResponse,
)
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceServicer
from gatekeeper_grpc.auth.sessions import IssuedTokens, Sessions
from gatekeeper_grpc.domain.current_call import call_arrived_at, current_peer
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.wire.timestamps import time_to_proto


class AuthServicer(AuthServiceServicer):
    """Serves AuthService. Its RPCs need no caller; the address of the peer is recorded."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def Login(self, request: LoginRequest, context: grpc.ServicerContext) -> LoginResponse:
        _check_given("username", request.username)
        _check_given("password", request.password)
        issued = self._sessions.log_in(request.username, request.password, peer=current_peer())
        return LoginResponse(**_fields(issued))

    def RefreshToken(self, request: RefreshTokenRequest, context: grpc.ServicerContext) -> RefreshTokenResponse:
        _check_given("refresh_token", request.refresh_token)
        issued = self._sessions.refresh(
            request.refresh_token, peer=current_peer(), arrived_at=call_arrived_at(), is_awaited=context.is_active
        )
        return RefreshTokenResponse(**_fields(issued))

    def Logout(self, request: LogoutRequest, context: grpc.ServicerContext) -> LogoutResponse:
        _check_given("refresh_token", request.refresh_token)
        self._sessions.log_out(request.refresh_token, peer=current_peer())
        return LogoutResponse()


def _check_given(field: str, text: str) -> None:
    # Only the empty text is INVALID_ARGUMENT: a text that is too long is a wrong credential like any other.
    if not text:
        raise InvalidArgument.of(field, "must not be empty")


def _fields(issued: IssuedTokens) -> dict[str, Any]:
    """Convert tokens to the fields of LoginResponse and RefreshTokenResponse."""
    return {
        "access_token": issued.access.text,
        "access_token_expire_time": time_to_proto(issued.access.expire_time),
        "refresh_token": issued.refresh.text,
        "refresh_token_expire_time": time_to_proto(issued.refresh.expire_time),
        "role": issued.role.value,
    }
