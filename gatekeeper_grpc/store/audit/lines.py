"""The line of an audit entry: what goes to the log after its commit, and what an export prints.

A log cannot be erased. So a line has nothing of a document, and neither an id of a user nor the name of a person.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import structlog
from psycopg.rows import class_row

from gatekeeper_grpc.domain.audit import AuditAnchor, AuditEntry, hash_entry
from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.store.audit.log import read_start
from gatekeeper_grpc.store.postgres.database import Connection

_log = structlog.get_logger(__name__)

EVENT = "audit_entry"
"""The name of the log event."""
# The key of any other resource is, or leads to, a person, or is the name of an account.
_WITH_KEY = frozenset({ResourceType.FLAG, ResourceType.TARGETS, ResourceType.SEGMENT, ResourceType.MEMBERS})
_ADMIN_ID = re.compile(r"#([0-9]+)$")
_FETCH_ROWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLine:
    """What the line of an entry is made of."""

    seq: int
    hash: bytes
    revision: int
    create_time: datetime
    action: str
    actor: str
    resource_type: str
    resource_key: str

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        """Return the line of an entry."""
        return cls(
            seq=entry.seq,
            hash=hash_entry(entry),
            revision=entry.revision,
            create_time=entry.create_time,
            action=entry.action,
            actor=entry.actor,
            resource_type=entry.resource_type,
            resource_key=entry.resource_key,
        )

    @property
    def anchor(self) -> AuditAnchor:
        """The position of the entry in the chain."""
        return AuditAnchor(seq=self.seq, hash=self.hash)

    def log(self) -> None:
        """Write the line to the log."""
        _log.info(EVENT, **self.fields())

    def fields(self) -> dict[str, object]:
        """Return the fields of the line, which JSON can have.

        `actor_id` is the id of the admin user; without one, Gatekeeper itself acted. `key` is of a flag or segment.
        """
        admin = _ADMIN_ID.search(self.actor)
        return {
            "seq": self.seq,
            "hash": self.hash.hex(),
            "revision": self.revision,
            "create_time": self.create_time.astimezone(UTC).isoformat(timespec="microseconds"),
            "action": self.action,
            **({"actor_id": int(admin[1])} if admin else {}),
            "resource_type": str(self.resource_type),
            **({"key": self.resource_key} if self.resource_type in _WITH_KEY else {}),
        }


_LINES = """
    SELECT seq, hash, revision, create_time, action, actor, resource_type, resource_key
    FROM audit_log WHERE seq >= %(first)s ORDER BY seq
"""


def read_lines(conn: Connection, *, first: int) -> Iterator[AuditLine]:
    """Stream the lines of the entries from number `first` on, within a transaction.

    Raises:
        FailedPrecondition: Entry `first` is archived.
    """
    archived = read_start(conn).seq
    if first <= archived:
        raise FailedPrecondition(f"entries up to {archived} are archived; the first one here is {archived + 1}")
    with conn.cursor("audit_lines", row_factory=class_row(AuditLine)) as cursor:
        cursor.itersize = _FETCH_ROWS
        yield from cursor.execute(_LINES, {"first": first})
