"""Which calls share workers: callers of one kind of trust do not take the workers of another."""

import pytest

from gatekeeper_grpc.interceptors.policy import POLICIES, Access
from gatekeeper_grpc.transport.admission import PoolName

pytestmark = pytest.mark.promise("C1")


def pools_of(*, public: bool) -> set[PoolName]:
    return {row.pool for row in POLICIES.values() if (row.access is Access.PUBLIC) is public}


def test_calls_with_a_token_share_no_workers_with_public_ones() -> None:
    assert pools_of(public=True) & pools_of(public=False) == set()


@pytest.mark.parametrize(
    "method",
    [
        "/gatekeeper.v1.AuthService/Login",
        "/gatekeeper.v1.AuthService/RefreshToken",
        "/gatekeeper.v1.AuthService/Logout",
        "/gatekeeper.v1.AdminService/ChangePassword",
        "/gatekeeper.v1.EvaluationService/BulkEvaluateFlags",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_a_method_that_can_be_flooded_has_its_workers_to_itself(method: str) -> None:
    assert [name for name, row in POLICIES.items() if row.pool is POLICIES[method].pool] == [method]
