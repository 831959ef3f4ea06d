"""Every reading RPC of AdminService, with a request that is answered."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.clients import Installation, new_key
from tests.support.mutations import FLAG, SEGMENT, USER

READS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "GetFlag": ("key",),
        "GetFlagUsage": ("key",),
        "ListTargets": ("flag_key",),
        "GetSegment": ("key",),
        "ListSegmentMembers": ("segment_key",),
        "GetUser": ("user_id",),
        "ExportUserData": ("user_id",),
    }
    | dict.fromkeys(
        (
            *("ListFlags", "ListSegments", "ListUsers", "ListAdminUsers", "ListAuthEvents", "ListClientKeys"),
            *("ListAuditEntries", "VerifyAuditLog", "GetAuditCheckpoint", "ListSessions", "ListApiTokens"),
            *("ListUnknownFlagKeys", "PreviewFlagChange"),
        ),
        (),
    )
)
"""By RPC: the field of its request that names what it reads, if it reads one thing, and nothing more is required."""

_KINDS = MappingProxyType(
    {"Flag": FLAG, "FlagUsage": FLAG, "Targets": FLAG, "Segment": SEGMENT, "SegmentMembers": SEGMENT}
)


def reading_requests(installation: Installation) -> dict[str, Any]:
    """Make what the RPCs read, and return a request of each."""
    keys: dict[str, str] = {}
    for rpc, fields in READS.items():
        if fields:
            kind = _KINDS.get(rpc.removeprefix("Get").removeprefix("List"), USER)
            keys[rpc] = kind.make(installation, new_key())
    change = pb.PreviewFlagChangeRequest(
        flag=Flag(key=FLAG.make(installation, new_key())), update_mask=FieldMask(paths=["enabled"])
    )
    requests = {
        rpc: getattr(pb, f"{rpc}Request")(**dict.fromkeys(fields, keys.get(rpc))) for rpc, fields in READS.items()
    }
    return requests | {"PreviewFlagChange": change}
