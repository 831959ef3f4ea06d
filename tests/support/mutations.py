"""Every mutation of AdminService in one table: what it is called with and on what, by whom, and what it records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct, Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_VIEWER, AdminUser
from gatekeeper_client.v1.api_token_pb2 import ApiToken
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_SIGNING, RATE_TIER_HIGH, ClientKey
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EXISTS, Condition, Segment
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import (
    LEAST_ROLE,
    TIMEOUT_S,
    Installation,
    Refusal,
    created,
    new_key,
    no_admin_user,
    no_api_token,
    no_client_key,
    no_flag,
    no_segment,
    no_user,
    refused_by,
    send,
)
from tests.support.operators import PASSWORD, enlisted, in_s, new_token
from tests.support.servers import Bearer, access_token

TARGETED = "anna"


# --- What there is to change -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of thing that mutations change.

    `field` is what requests and answers call one. `make` makes one under a key, on which every mutation of the kind
    succeeds, and returns its key. `unknown` is how a key is refused that none has. `update` is the RPC after which one
    has another etag; None: they have no etags.
    """

    field: str
    make: Callable[[Installation, str], str]
    unknown: Callable[[str], Refusal]
    update: str | None = None

    def etag(self, installation: Installation, key: str) -> str:
        """Return the current etag of the one with this key: an update that only validates tells it."""
        return str(self.updated(installation, key, validate_only=True).etag)

    def updated(self, installation: Installation, key: str, **fields: Any) -> Any:
        """Update the one with this key, and return it."""
        assert self.update
        return getattr(MUTATIONS[self.update].ask(installation, key, **fields), self.field)


def flag_to_mutate(admin: AdminServiceStub, key: str = "") -> Flag:
    """Create a flag on which every mutation's example succeeds."""
    flag = created(admin, key=key or new_key())
    send(admin, "AddTargets", pb.AddTargetsRequest(flag_key=flag.key, user_ids=[TARGETED], value=True))
    return flag


def _make_segment(installation: Installation, key: str) -> str:
    installation.admin.CreateSegment(pb.CreateSegmentRequest(segment=Segment(key=key)), timeout=TIMEOUT_S)
    send(installation.admin, "AddSegmentMembers", pb.AddSegmentMembersRequest(segment_key=key, user_ids=[TARGETED]))
    return key


def _make_user(installation: Installation, key: str) -> str:
    return installation.admin.CreateUser(pb.CreateUserRequest(user=User(user_id=key)), timeout=TIMEOUT_S).user.user_id


def _make_client_key(installation: Installation, _key: str) -> str:
    admin = installation.admin_as(Role.ADMIN)
    request = pb.CreateClientKeyRequest(
        client_key=ClientKey(name="checkout", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING)
    )
    return admin.CreateClientKey(request, timeout=TIMEOUT_S).client_key.key_id


def _make_api_token(installation: Installation, _key: str) -> str:
    """Make one of the viewer, who is the least to whom it can belong, and has room for the next one."""
    installation.execute("UPDATE api_tokens SET expire_time = now() WHERE revoke_time IS NULL AND name = 'spent'")
    return new_token(installation.admin_as(Role.VIEWER), name="spent", role=ROLE_VIEWER).api_token.token_id


FLAG = Kind(
    field="flag",
    make=lambda installation, key: flag_to_mutate(installation.admin, key).key,
    unknown=no_flag,
    update="UpdateFlag",
)
SEGMENT = Kind(field="segment", make=_make_segment, unknown=no_segment, update="UpdateSegment")
USER = Kind(field="user", make=_make_user, unknown=no_user, update="UpdateUser")
ADMIN_USER = Kind(
    field="admin_user",
    make=lambda installation, key: enlisted(installation, username=key).username,
    unknown=no_admin_user,
    update="UpdateAdminUser",
)
CLIENT_KEY = Kind(field="client_key", make=_make_client_key, unknown=no_client_key)
API_TOKEN = Kind(field="api_token", make=_make_api_token, unknown=no_api_token)
KINDS_WITH_ETAGS = (FLAG, SEGMENT, USER, ADMIN_USER)


# --- What changes it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """An RPC that changes something, with a request that succeeds on what its kind makes.

    `resource` and `change` are what the audit log and the change log call what was changed, and how.
    """

    rpc: str
    kind: Kind
    example: Callable[[str], Any]
    resource: str
    change: str

    @property
    def has_etag(self) -> bool:
        return self.rpc == self.kind.update or "etag" in self.request("a").DESCRIPTOR.fields_by_name

    @property
    def creates(self) -> bool:
        return self.change == "created"

    @property
    def is_for_oneself(self) -> bool:
        """Whether what it changes is the caller."""
        return self.rpc == "ChangePassword"

    @property
    def names_another(self) -> bool:
        """Whether it names something that has to be there."""
        return not self.creates and not self.is_for_oneself

    @property
    def least_role(self) -> Role:
        return LEAST_ROLE[self.rpc]

    def make(self, installation: Installation) -> str:
        """Make one of those that this RPC changes, under a new key, and return that."""
        return self.kind.make(installation, new_key())

    def caller(self, installation: Installation, key: str) -> AdminServiceStub:
        """The AdminService for the least who may change what has this key."""
        if self.is_for_oneself:
            return acting_as(installation, key)
        return installation.admin_as(self.least_role)

    def actor(self, installation: Installation, key: str) -> str:
        """Return what the audit log calls that caller."""
        username = key if self.is_for_oneself else self.least_role.name.lower()
        ((admin_id,),) = installation.query("SELECT admin_id FROM admin_user WHERE username = %s", username)
        return f"admin:{username}#{admin_id}"

    def request(self, key: str, *, etag: str = "", **fields: object) -> Any:
        """Build the example for what has this key, with an etag where this RPC has it and other fields set."""
        request = self.example(key)
        if etag:
            (getattr(request, self.kind.field) if self.rpc == self.kind.update else request).etag = etag
        for name, value in fields.items():
            setattr(request, name, value)
        return request

    def ask(
        self, installation: Installation, key: str, *, caller: AdminServiceStub | None = None, **fields: Any
    ) -> Any:
        """Send the request for what has this key, as the least who may unless a caller is given."""
        return send(caller or self.caller(installation, key), self.rpc, self.request(key, **fields))

    def changed_key(self, key: str, response: Any) -> str:
        """Return the key of what an answered request changed."""
        if self.rpc == "CreateClientKey":
            return str(response.client_key.key_id)
        if self.rpc == "CreateApiToken":
            return str(response.api_token.token_id)
        return f"{key}new" if self.creates else key

    def refused(self, refusal: Refusal) -> Refusal:
        """Return a refusal as this RPC words it."""
        return refused_by(self.rpc, refusal)


def acting_as(installation: Installation, username: str) -> AdminServiceStub:
    """The AdminService for an admin user as it stands now: what it does next to itself ends this session."""
    bearer = Bearer(access_token(installation.dsn, username))
    return AdminServiceStub(grpc.intercept_channel(installation.channels[None], bearer))


def _mutation(
    kind: Kind, resource: str, change: str, request: type[Any], fields: Callable[[str], dict[str, Any]]
) -> Mutation:
    """Describe the RPC that takes this type of request; `fields` are those of its example for a key."""
    return Mutation(
        rpc=request.DESCRIPTOR.name.removesuffix("Request"),
        kind=kind,
        example=lambda key: request(**fields(key)),
        resource=resource,
        change=change,
    )


# One time for all: a retry sends the same body.
_IN_A_DAY = in_s(86_400)
_EXAMPLES = (
    _mutation(
        FLAG, "flag", "created", pb.CreateFlagRequest, lambda key: {"flag": Flag(key=f"{key}new", tags=["a", "b"])}
    ),
    _mutation(
        FLAG,
        "flag",
        "updated",
        pb.UpdateFlagRequest,
        lambda key: {"flag": Flag(key=key, description="changed"), "update_mask": FieldMask(paths=["description"])},
    ),
    _mutation(FLAG, "flag", "deleted", pb.DeleteFlagRequest, lambda key: {"key": key}),
    _mutation(
        FLAG,
        "targets",
        "updated",
        pb.AddTargetsRequest,
        lambda key: {"flag_key": key, "user_ids": ["bob", TARGETED], "value": False},
    ),
    _mutation(
        FLAG,
        "targets",
        "updated",
        pb.RemoveTargetsRequest,
        lambda key: {"flag_key": key, "user_ids": ["bob", TARGETED]},
    ),
    _mutation(
        FLAG,
        "targets",
        "updated",
        pb.ImportTargetsRequest,
        lambda key: {"flag_key": key, "user_ids": ["bob", TARGETED], "value": False},
    ),
    _mutation(
        SEGMENT,
        "segment",
        "created",
        pb.CreateSegmentRequest,
        lambda key: {
            "segment": Segment(
                key=f"{key}new", conditions=[Condition(attribute="a", operator=CONDITION_OPERATOR_EXISTS)]
            )
        },
    ),
    _mutation(
        SEGMENT,
        "segment",
        "updated",
        pb.UpdateSegmentRequest,
        lambda key: {
            "segment": Segment(key=key, description="changed"),
            "update_mask": FieldMask(paths=["description"]),
        },
    ),
    _mutation(SEGMENT, "segment", "deleted", pb.DeleteSegmentRequest, lambda key: {"key": key}),
    _mutation(
        SEGMENT,
        "members",
        "updated",
        pb.AddSegmentMembersRequest,
        lambda key: {"segment_key": key, "user_ids": ["bob", TARGETED]},
    ),
    _mutation(
        SEGMENT,
        "members",
        "updated",
        pb.RemoveSegmentMembersRequest,
        lambda key: {"segment_key": key, "user_ids": ["bob", TARGETED]},
    ),
    _mutation(USER, "user", "created", pb.CreateUserRequest, lambda key: {"user": User(user_id=f"{key}new")}),
    _mutation(
        USER,
        "user",
        "updated",
        pb.UpdateUserRequest,
        lambda key: {
            "user": User(user_id=key, attributes=Struct(fields={"plan": Value(string_value="gold")})),
            "update_mask": FieldMask(paths=["attributes"]),
        },
    ),
    _mutation(USER, "user", "deleted", pb.DeleteUserRequest, lambda key: {"user_id": key}),
    _mutation(USER, "subject", "deleted", pb.EraseUserRequest, lambda key: {"user_id": key}),
    _mutation(
        ADMIN_USER,
        "admin_user",
        "created",
        pb.CreateAdminUserRequest,
        lambda key: {"admin_user": AdminUser(username=f"{key}new", role=ROLE_VIEWER), "password": PASSWORD},
    ),
    _mutation(
        ADMIN_USER,
        "admin_user",
        "updated",
        pb.UpdateAdminUserRequest,
        lambda key: {"admin_user": AdminUser(username=key, role=ROLE_VIEWER), "update_mask": FieldMask(paths=["role"])},
    ),
    _mutation(ADMIN_USER, "admin_user", "deleted", pb.DeleteAdminUserRequest, lambda key: {"username": key}),
    _mutation(
        ADMIN_USER,
        "admin_user",
        "updated",
        pb.ChangePasswordRequest,
        lambda _key: {"current_password": PASSWORD, "new_password": "another password"},
    ),
    _mutation(
        CLIENT_KEY,
        "client_key",
        "created",
        pb.CreateClientKeyRequest,
        lambda _key: {"client_key": ClientKey(name="shop", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING)},
    ),
    _mutation(CLIENT_KEY, "client_key", "updated", pb.RevokeClientKeyRequest, lambda key: {"key_id": key}),
    _mutation(
        API_TOKEN,
        "api_token",
        "created",
        pb.CreateApiTokenRequest,
        lambda _key: {"api_token": ApiToken(name="spent", role=ROLE_VIEWER, expire_time=_IN_A_DAY)},
    ),
    _mutation(API_TOKEN, "api_token", "updated", pb.RevokeApiTokenRequest, lambda key: {"token_id": key}),
    _mutation(
        FLAG,
        "flag",
        "deleted",
        pb.ApplyConfigurationRequest,
        lambda key: {"flag_deletions": [pb.ConfigurationDeletion(key=key)]},
    ),
)
MUTATIONS: Mapping[str, Mutation] = MappingProxyType({mutation.rpc: mutation for mutation in _EXAMPLES})


def each(*mutations: Mutation) -> pytest.MarkDecorator:
    """Run a test for each of these mutations, as its argument `mutation`."""
    return pytest.mark.parametrize("mutation", mutations, ids=[mutation.rpc for mutation in mutations])


EACH_MUTATION = each(*MUTATIONS.values())
EACH_WITH_ETAG = each(*(mutation for mutation in MUTATIONS.values() if mutation.has_etag))
EACH_WITH_KEY = each(*(mutation for mutation in MUTATIONS.values() if mutation.names_another))
