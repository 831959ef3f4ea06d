"""What every mutation carries beside its own content, and what it leaves behind."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar
from uuid import UUID

from gatekeeper_grpc.domain.audit import AuditAnchor
from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.limits import MAX_CHANGE_REASON_CHARS, check_text

Result = TypeVar("Result")


class ChangeType(StrEnum):
    """What happened to a resource."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


class ResourceType(StrEnum):
    """What a change touched.

    TARGETS and MEMBERS are the lists of a flag and of a segment, named by its key. A USER is named by its subject id. A
    SUBJECT is a person who was erased, INSTALLATION all of this Gatekeeper.
    """

    FLAG = "flag"
    TARGETS = "targets"
    SEGMENT = "segment"
    MEMBERS = "members"
    USER = "user"
    SUBJECT = "subject"
    ADMIN_USER = "admin_user"
    CLIENT_KEY = "client_key"
    INSTALLATION = "installation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Who wants a mutation, why, and under which conditions.

    Args:
        caller: The admin user who asks; None when Gatekeeper itself acts.
        action: The RPC's name, such as "UpdateFlag"; what the audit log calls it.
        change_reason: Free text for the audit entry, at most 1,024 characters.
        validate_only: Check everything, write and record nothing.
        request_id: Makes a retry safe; None: no such promise is asked for.
        request_hash: Fingerprint of the request's body, to tell a retry from another request under the same id.
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
        """The caller as the audit log names it: "admin:<username>", or "system"."""
        return f"admin:{self.caller.username}" if self.caller else "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a mutation did: the subject matter of its audit entry and of its row in the change log.

    Args:
        resource: What kind of thing changed.
        key: Which one.
        change: What happened to it.
        document: JSON values that say what was and what is, for the audit log. People appear in it only as subject ids.
        subjects: The people whose entries in the resource changed.
    """

    resource: ResourceType
    key: str
    change: ChangeType
    document: dict[str, Any]
    subjects: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Written(Generic[Result]):
    """The result of a mutation, the revision it produced, and where the audit log stands after it.

    With `validate_only`, the revision is the current one and there is no anchor.
    """

    result: Result
    revision: int
    anchor: AuditAnchor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Generic[Result]):
    """Something read, and the revision at which it is true."""

    result: Result
    revision: int
