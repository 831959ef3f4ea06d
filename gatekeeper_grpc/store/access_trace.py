"""The trace of reads of personal data: who read what is stored about whom, when, and from where.

A read records itself in the transaction that reads, so nobody is shown what is not recorded. It takes no lock that
another call waits for. See docs/decisions/0028-reads-of-people-are-recorded.md.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final, TypeVar
from uuid import UUID

from gatekeeper_grpc.domain.caller import caller_if_any
from gatekeeper_grpc.domain.current_call import current_peer
from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.store.postgres.database import Connection

MAX_TRACE_BYTES_PER_DAY: Final = 256 << 20
"""How much the reads of one admin user may add to the trace in a day, in one process: a million reads of one person."""
_EVENT_BYTES = 250
_SUBJECT_BYTES = 16
_DAY_S = 86_400.0


Item = TypeVar("Item")
Page = TypeVar("Page", bound=tuple[Sequence[object], object])


class AccessEvent(StrEnum):
    """The kinds of rows in `auth_events` that record a read of personal data."""

    USER_READ = "user_read"
    """`GetUser`, or an `UpdateUser` that shows the user and changes nothing."""
    USERS_LISTED = "users_listed"
    """A page of `ListUsers`."""
    USERS_COMPARED = "users_compared"
    """An `ApplyConfiguration` with users; those stored, whose attributes it compares with what they should be."""
    TARGETS_LISTED = "targets_listed"
    """A page of `ListTargets`."""
    MEMBERS_LISTED = "members_listed"
    """A page of `ListSegmentMembers`."""
    AUDIT_ENTRIES_LISTED = "audit_entries_listed"
    """A page of `ListAuditEntries`; the people whom its entries name."""
    FLAG_PREVIEWED = "flag_previewed"
    """A message of `PreviewFlagChange`; the people who would be targeted, and are not already."""
    USER_EXPORTED = "user_exported"
    """`ExportUserData`; recorded before anything is read."""


class _Budget:
    """What each admin user has added to the trace today. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._day = 0
        self._spent: Counter[int] = Counter()

    def spend(self, admin_id: int, amount: int) -> None:
        """Spend bytes.

        Raises:
            ResourceExhausted: There are not so many left.
        """
        with self._lock:
            day = int(time.monotonic() / _DAY_S)
            if day != self._day:
                self._day, self._spent = day, Counter()
            if self._spent[admin_id] + amount > MAX_TRACE_BYTES_PER_DAY:
                raise _over_budget()
            self._spent[admin_id] += amount


_BUDGET = _Budget()

# A plain commit would wait for the disk and for synchronous standbys: only to be sure of an export is that worth it.
# PostgreSQL writes the others within 0.6 s. The subject id of a single person is stored for the previous release, too.
_RECORD = """
    WITH waiting AS (
        SELECT set_config('synchronous_commit', CASE WHEN %(is_durable)s THEN current_setting('synchronous_commit')
                          ELSE 'off' END, true) AS commit
    )
    INSERT INTO auth_events (event, username, actor, peer, subject_id, subject_ids)
    SELECT %(event)s, %(username)s, %(actor)s, %(peer)s, %(subject)s::uuid, %(subjects)s::uuid[]
    FROM waiting WHERE commit <> ''
"""


def record_access(
    conn: Connection, event: AccessEvent, subjects: Collection[UUID], *, is_durable: bool = False
) -> None:
    """Record that the caller of the current call reads about people; does nothing outside a call.

    Args:
        conn: A transaction that may write: of `Database.read_and_record`, or `Database.write`.
        event: What the caller reads.
        subjects: About whom.
        is_durable: Whether the commit waits for the disk. If not, a crash of PostgreSQL may lose the last 0.6 s.

    Raises:
        ResourceExhausted: The caller has read too much today.
    """
    caller = caller_if_any()
    if caller is None:
        return
    _BUDGET.spend(caller.admin_id, _EVENT_BYTES + _SUBJECT_BYTES * len(subjects))
    row = {
        "event": event,
        "username": caller.username,
        "actor": caller.name,
        "peer": current_peer(),
        "subjects": list(subjects),
        "subject": next(iter(subjects)) if len(subjects) == 1 else None,
        "is_durable": is_durable,
    }
    conn.execute(_RECORD, row)


def recorded_page(
    conn: Connection,
    event: AccessEvent,
    items: Iterable[Item],
    paged: Callable[[Iterable[Item]], Page],
    *,
    subjects: Callable[[Item], Iterable[UUID]],
) -> Page:
    """Return the page that `paged` makes of items, and record whom those are about that are on it.

    Args:
        conn: As for `record_access`.
        event: What the caller reads.
        items: In order; only those are taken that `paged` takes.
        paged: Returns the first of the items, and what else belongs to the page.
        subjects: Returns whom an item is about.

    Raises:
        ResourceExhausted: As for `record_access`.
    """
    taken: list[Item] = []

    def noted() -> Iterator[Item]:
        for item in items:
            taken.append(item)
            yield item

    page = paged(noted())
    shown = taken[: len(page[0])]
    record_access(conn, event, dict.fromkeys(subject for item in shown for subject in subjects(item)))
    return page


def _over_budget() -> ResourceExhausted:
    return ResourceExhausted(
        f"reads of personal data are recorded, and yours have filled {MAX_TRACE_BYTES_PER_DAY >> 20} MiB today: read"
        " fewer people, in larger pages, or go on tomorrow",
        reason="QUOTA_EXCEEDED",
        metadata={"quota": "access_trace", "limit": str(MAX_TRACE_BYTES_PER_DAY)},
    )
