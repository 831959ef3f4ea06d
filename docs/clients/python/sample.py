"""A Python client of Gatekeeper, whole: evaluation, errors, signed calls, tokens, a watch. `make test-clients` runs it.

Needs `pip install gatekeeper-grpc-client grpcio-status`. Variables: ADDRESS (host:port), KEY_ID and KEY_SECRET of a
signing key, ADMIN_PASSWORD.
"""

import os
import random
import time

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from gatekeeper_client.channels import connect
from gatekeeper_client.signing import ClientKey
from gatekeeper_client.v1.admin_service_pb2 import GetFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest, RefreshTokenRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext, Reason
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, WatchFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

ADDRESS = os.environ["ADDRESS"]
DEADLINE_S = 5.0
FLAG = "sample"


def request(**fields: object) -> EvaluateFlagsRequest:
    """The flags of alice, who has eight attributes."""
    alice = EvaluationContext(user_id="alice")
    alice.attributes.update({"plan": "pro", **{f"number_{n}": n for n in range(7)}})
    return EvaluateFlagsRequest(context=alice, **fields)


def evaluate(stub: EvaluationServiceStub) -> None:
    """A value, and why."""
    answer = stub.EvaluateFlags(request(flag_keys=[FLAG], include_details=True), timeout=DEADLINE_S)
    detail = answer.details[FLAG]
    print("value", str(answer.flags[FLAG]).lower(), detail.variant, Reason.Name(detail.reason))


def refused(stub: EvaluationServiceStub) -> None:
    """What a program can read of an error: the reason and its variables, never the text."""
    try:
        stub.EvaluateFlags(request(flag_keys=["?"]), timeout=DEADLINE_S)
    except grpc.RpcError as error:
        info = ErrorInfo()
        for detail in rpc_status.from_call(error).details:
            detail.Unpack(info)
        print("error", error.code().name, info.reason, info.metadata["field"])


def signed() -> None:
    """The channel hashes the bytes that it sends. `dns:///` and round_robin are in `connect`."""
    key = ClientKey(os.environ["KEY_ID"], os.environ["KEY_SECRET"])
    with connect(ADDRESS, key=key) as channel:
        stub = EvaluationServiceStub(channel)
        answers = [stub.EvaluateFlags(request(), timeout=DEADLINE_S) for _ in range(20)]
    print("signed", len(answers))


def tokens(channel: grpc.Channel) -> None:
    """Refresh near `access_token_expire_time` or after UNAUTHENTICATED, in one process alone.

    A refresh token works once: using a spent one again ends the login.
    """
    auth = AuthServiceStub(channel)
    login = auth.Login(LoginRequest(username="admin", password=os.environ["ADMIN_PASSWORD"]), timeout=DEADLINE_S)
    fresh = auth.RefreshToken(RefreshTokenRequest(refresh_token=login.refresh_token), timeout=DEADLINE_S)
    metadata = (("authorization", f"Bearer {fresh.access_token}"),)
    flag = AdminServiceStub(channel).GetFlag(GetFlagRequest(key=FLAG), metadata=metadata, timeout=DEADLINE_S).flag
    print("token", flag.key)


def watch(stub: EvaluationServiceStub) -> None:
    """Hear of changes until the sample flag changes. `CachedFlags` does all this, and keeps answers."""
    revision, cache = 0, {FLAG: True}
    while True:
        try:
            # No deadline: the stream stays open, and something comes at least every 20 s.
            for message in stub.WatchFlags(WatchFlagsRequest(from_revision=revision)):
                if message.reset:  # The changes are unknown: forget everything.
                    cache.clear()
                for change in message.changes:
                    cache.pop(change.flag_key, None)
                if revision == 0:
                    print("watching", flush=True)
                revision = message.revision
                if FLAG not in cache:
                    print("changed", FLAG)
                    return
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                raise
            time.sleep(random.uniform(0, 1))  # Jitter: all clients of an instance lose it together.


def main() -> None:
    """Do everything once."""
    with connect(ADDRESS) as channel:
        stub = EvaluationServiceStub(channel)
        evaluate(stub)
        refused(stub)
        signed()
        tokens(channel)
        watch(stub)


if __name__ == "__main__":
    main()
