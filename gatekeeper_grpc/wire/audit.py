"""The audit log, between domain types and messages."""

from gatekeeper.v1 import audit_pb2
from gatekeeper_grpc.domain.audit import AuditAnchor


def anchor_to_proto(anchor: AuditAnchor | None) -> audit_pb2.AuditAnchor | None:
    """Convert where the chain stands; None stays None, which leaves the field absent."""
    return None if anchor is None else audit_pb2.AuditAnchor(seq=anchor.seq, hash=anchor.hash)
