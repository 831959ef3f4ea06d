"""The audit log, between domain types and messages."""

from typing import Final

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import audit_pb2
from gatekeeper_grpc.domain.audit import AuditAnchor, AuditCheckpoint, AuditHead, DocumentedEntry
from gatekeeper_grpc.domain.audit_verifier import Verification
from gatekeeper_grpc.domain.commands import AuditFilter
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import check_text
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.wire.timestamps import time_from_proto, time_to_proto

_HASH_BYTES: Final = 32
_MAX_FILTER_CHARS: Final = 256


def anchor_to_proto(anchor: AuditAnchor | None) -> audit_pb2.AuditAnchor | None:
    """Convert a position in the chain; None stays None, which leaves the field absent."""
    return None if anchor is None else audit_pb2.AuditAnchor(seq=anchor.seq, hash=anchor.hash)


def anchor_from_proto(request: admin.VerifyAuditLogRequest) -> AuditAnchor | None:
    """Convert the anchor of a request; None when it has none.

    Raises:
        InvalidArgument: It is malformed.
    """
    if not request.HasField("anchor"):
        return None
    anchor = request.anchor
    if anchor.seq < 0:
        raise InvalidArgument.of("anchor.seq", "must be 0 or more")
    if len(anchor.hash) != _HASH_BYTES:
        raise InvalidArgument.of("anchor.hash", f"must be {_HASH_BYTES} bytes")
    return AuditAnchor(seq=anchor.seq, hash=anchor.hash)


def audit_filter_from_proto(request: admin.ListAuditEntriesRequest, *, cursor: str, limit: int) -> AuditFilter:
    """Convert the filters of a list, which continues before the entry that `cursor` names.

    Raises:
        InvalidArgument: A filter is invalid.
    """
    for field in ("actor", "action", "resource_key"):
        check_text(field, getattr(request, field), at_most=_MAX_FILTER_CHARS)
    return AuditFilter(
        limit=limit,
        before=int(cursor) if cursor else None,
        actor=request.actor,
        action=request.action,
        resource_type=_resource_type(request),
        resource_key=request.resource_key,
        start_time=time_from_proto("start_time", request.start_time) if request.HasField("start_time") else None,
        end_time=time_from_proto("end_time", request.end_time) if request.HasField("end_time") else None,
        start_revision=_revision("start_revision", request.start_revision),
        end_revision=_revision("end_revision", request.end_revision),
    )


# A stored type without a name here stays unspecified: somebody altered the entry, or a later release wrote it.
_RESOURCE_TYPES: Final = {
    resource.value: audit_pb2.ResourceType.Value(f"RESOURCE_TYPE_{resource.name}") for resource in ResourceType
}
_RESOURCES: Final = {number: resource for resource, number in _RESOURCE_TYPES.items()}


def _resource_type(request: admin.ListAuditEntriesRequest) -> str:
    if request.resource_key and not request.resource_type:
        raise InvalidArgument.of("resource_type", "must be given with resource_key")
    if not request.resource_type:
        return ""
    if request.resource_type not in _RESOURCES:
        names = ", ".join(audit_pb2.ResourceType.Name(number) for number in _RESOURCES)
        raise InvalidArgument.of("resource_type", f"must be one of {names}")
    return _RESOURCES[request.resource_type]


def _revision(field: str, revision: int) -> int | None:
    if revision < 0:
        raise InvalidArgument.of(field, "must be 1 or more, or 0 for any")
    return revision or None


def entry_to_proto(documented: DocumentedEntry) -> audit_pb2.AuditEntry:
    """Convert an entry with its document."""
    entry = documented.entry
    return audit_pb2.AuditEntry(
        seq=entry.seq,
        format=entry.format,
        revision=entry.revision,
        create_time=time_to_proto(entry.create_time),
        actor=entry.actor,
        action=entry.action,
        environment=entry.environment,
        resource_type=_RESOURCE_TYPES.get(entry.resource_type, audit_pb2.RESOURCE_TYPE_UNSPECIFIED),
        resource_key=entry.resource_key,
        document=(documented.document or b"").decode(errors="replace"),
        redacted=documented.document is None or bool(documented.redactions),
        users=documented.users,
        salt=documented.salt,
        document_hash=entry.document_hash,
        prev_hash=entry.prev_hash,
        hash=documented.hash,
        evidence_hash=entry.evidence_hash or b"",
        redactions=[
            audit_pb2.AuditRedaction(erasure_seq=erasure_seq, old_hash=old_hash, new_hash=new_hash)
            for erasure_seq, old_hash, new_hash in documented.redactions
        ],
    )


def verification_to_proto(report: Verification) -> admin.VerifyAuditLogResponse:
    """Convert the progress of a verification."""
    response = admin.VerifyAuditLogResponse(
        verified_entries=report.verified_entries,
        redacted_documents=report.redacted_documents,
        verified=anchor_to_proto(report.verified),
        complete=report.complete,
        verified_subjects=report.verified_subjects,
        incomparable_subjects=report.incomparable_subjects,
    )
    if report.faulty is not None:
        response.faulty_seq = report.faulty.seq
        response.fault = audit_pb2.AuditFault.Value(f"AUDIT_FAULT_{report.faulty.fault.name}")
        response.message = report.faulty.message
    return response


def checkpoint_to_proto(checkpoint: AuditCheckpoint) -> audit_pb2.AuditCheckpoint:
    """Convert a signed checkpoint."""
    return audit_pb2.AuditCheckpoint(
        anchor=anchor_to_proto(checkpoint.head.anchor),
        revision=checkpoint.head.revision,
        create_time=time_to_proto(checkpoint.create_time),
        signature=checkpoint.signature,
        public_key=checkpoint.public_key,
    )


def checkpoint_from_proto(message: audit_pb2.AuditCheckpoint) -> AuditCheckpoint:
    """Convert a checkpoint that was kept, valid or not.

    Raises:
        InvalidArgument: Its time is invalid.
    """
    return AuditCheckpoint(
        head=AuditHead(anchor=AuditAnchor(seq=message.anchor.seq, hash=message.anchor.hash), revision=message.revision),
        create_time=time_from_proto("create_time", message.create_time),
        signature=message.signature,
        public_key=message.public_key,
    )
