"""What the tests about admin users share: making one, logging in as one, and calling with its token."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_EDITOR, AdminUser
from gatekeeper_client.v1.api_token_pb2 import ApiToken
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest, LoginResponse
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import TIMEOUT_S, Installation, Refusal
from tests.support.servers import connect

PASSWORD = "canary-password"
WRONG_CREDENTIALS = Refusal(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", {})

_numbers = count()


def new_name() -> str:
    return f"operator-{next(_numbers)}"


def manager(installation: Installation) -> AdminServiceStub:
    """The AdminService for the installation's only admin user with role admin."""
    return AdminServiceStub(installation.channels[Role.ADMIN])


def enlisted(installation: Installation, **fields: Any) -> AdminUser:
    """Make an admin user, an editor with a new name unless `fields` say otherwise."""
    user = AdminUser(**{"username": new_name(), "role": ROLE_EDITOR, **fields})
    request = pb.CreateAdminUserRequest(admin_user=user, password=PASSWORD)
    return manager(installation).CreateAdminUser(request, timeout=TIMEOUT_S).admin_user


def logged_in(installation: Installation, username: str, password: str = PASSWORD) -> LoginResponse:
    auth = AuthServiceStub(installation.channels[None])
    return auth.Login(LoginRequest(username=username, password=password), timeout=TIMEOUT_S)


def new_token(maker: AdminServiceStub, *, lives_s: float = 3_600, **fields: Any) -> pb.CreateApiTokenResponse:
    """Make an API token, an editor's unless `fields` say otherwise."""
    token = ApiToken(**{"name": "deploy", "role": ROLE_EDITOR, "expire_time": in_s(lives_s), **fields})
    return maker.CreateApiToken(pb.CreateApiTokenRequest(api_token=token), timeout=TIMEOUT_S)


def in_s(seconds: float) -> Timestamp:
    """Return the time in so many seconds."""
    then = Timestamp()
    then.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
    return then


@contextmanager
def acting_as(installation: Installation, username: str, password: str = PASSWORD) -> Iterator[AdminServiceStub]:
    """Log in, and call the AdminService with the access token."""
    with connect(installation.server, token=logged_in(installation, username, password).access_token) as channel:
        yield AdminServiceStub(channel)
