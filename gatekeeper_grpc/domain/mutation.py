"""What every mutation has in common: its intent, the change that it records, and its result."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar
from uuid import UUID

from gatekeeper_grpc.domain.audit import AuditAnchor
from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.limits import MAX_CHANGE_REASON_CHARS, check_text

Result = TypeVar("Result")


class ChangeType(StrEnum):
    """How a resource changed."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


class ResourceType(StrEnum):
    """The kind of resource that changed.

    TARGETS and MEMBERS are the lists of a flag and of a segment, under its key. A USER has its subject id as key. A
    SUBJECT is an erased person; INSTALLATION is the whole of this Gatekeeper.
    """

    FLAG = "flag"
    TARGETS = "targets"
    SEGMENT = "segment"
    MEMBERS = "members"
    USER = "user"
    SUBJECT = "subject"
    ADMIN_USER = "admin_user"
    CLIENT_KEY = "client_key"
    API_TOKEN = "api_token"  # noqa: S105 - a name
    INSTALLATION = "installation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Who requests a mutation, why, and under which conditions.

    Args:
        caller: The admin user or API token; None when Gatekeeper itself acts.
        action: The name of the RPC for the audit log, such as "UpdateFlag".
        change_reason: Free text for the audit entry, at most 1,024 characters.
        validate_only: Check everything, write and record nothing.
        request_id: Makes a retry safe; None: a retry is a new request.
        request_hash: Fingerprint of the request: tells a retry from another request with the same id.
    """

    caller: Caller | None
    action: str
    change_reason: str = ""
    validate_only: bool = False
    request_id: UUID | None = None
    request_hash: bytes = b""

    def __post_init__(self) -> None:
        check_text("change_reason", self.change_reason, at_most=MAX_CHANGE_REASON_CHARS)

    @property
    def actor(self) -> str:
        """The caller as the audit log names it, see `Caller.name`, or "system".

        A name alone is no identity: after a deletion, another person may be given it.
        """
        return self.caller.name if self.caller else "system"

    @property
    def requester(self) -> str:
        """Whose `request_id` it is, see `Caller.identity`, or "system"."""
        return self.caller.identity if self.caller else "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a mutation did, for its audit entry and its row in the change log.

    Args:
        resource: The kind of resource.
        key: Its key.
        change: How it changed.
        document: The resource before and after as JSON values, for the audit log. People appear only as subject ids.
        subjects: The people whose entries in the resource changed.
        evidence_hash: The hash of what the entry proves apart from its document, see `hash_evidence`; None: nothing.
    """

    resource: ResourceType
    key: str
    change: ChangeType
    document: dict[str, Any]
    subjects: tuple[UUID, ...] = ()
    evidence_hash: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written(Generic[Result]):
    """The result of a mutation, its revision, and the head of the audit log after it.

    With `validate_only`, the revision is the current one and there is no anchor.
    """

    result: Result
    revision: int
    anchor: AuditAnchor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Generic[Result]):
    """A result of reading, and the revision at which it is true."""

    result: Result
    revision: int
