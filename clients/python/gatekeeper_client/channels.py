"""Channels with the settings that clients of Gatekeeper need: load balancing, retries, a client key."""

import json
from typing import Any, Final

import grpc

from gatekeeper_client.signing import ClientKey, SignedChannel

_ADMIN_READS: Final = (
    "GetFlag",
    "ListFlags",
    "GetFlagUsage",
    "ListUnknownFlagKeys",
    "ListTargets",
    "GetSegment",
    "ListSegments",
    "ListSegmentMembers",
    "GetUser",
    "ListUsers",
    "ListAdminUsers",
    "ListSessions",
    "ListApiTokens",
    "ListAuthEvents",
    "ListClientKeys",
    "ListAuditEntries",
    "GetAuditCheckpoint",
)

SERVICE_CONFIG: Final = json.dumps(
    {
        # By default a client stays with one instance, however many a name has.
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [
                    {"service": "gatekeeper.v1.EvaluationService"},
                    *({"service": "gatekeeper.v1.AdminService", "method": method} for method in _ADMIN_READS),
                ],
                "waitForReady": True,
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)
"""gRPC's service config: calls go to all instances in turn, and evaluations and reads are repeated if one leaves.

A mutation that fails with UNAVAILABLE is for the caller to repeat, with the same `request_id`.
"""


def connect(
    target: str, *, credentials: grpc.ChannelCredentials | None = None, key: ClientKey | None = None
) -> grpc.Channel:
    """Open a channel; give its calls a deadline of 5 s or more.

    Args:
        target: host:port, or dns:///host:port, whose addresses are all used.
        credentials: For TLS, such as `grpc.ssl_channel_credentials()`. None: none; for a trusted network.
        key: The client key. None: anonymous calls.
    """
    options: list[tuple[str, Any]] = [("grpc.service_config", SERVICE_CONFIG), ("grpc.enable_retries", 1)]
    if credentials is None:
        channel = grpc.insecure_channel(target, options)
    else:
        channel = grpc.secure_channel(target, credentials, options)
    return channel if key is None else SignedChannel(channel, key, authority=_authority(target))


def _authority(target: str) -> str:
    """Return what gRPC calls the server of a target: without a scheme, in lower case."""
    return target.rpartition("/")[2].lower()
