"""Tells from the change log whether credentials have changed: far less to read than all of them."""

from collections.abc import Iterable
from typing import Final

from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.snapshot import Commit
from gatekeeper_grpc.store.postgres.database import Database, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read

# Who made an API token may do less than before, or be gone; and another history has other credentials.
_OF_CREDENTIALS: Final = frozenset(
    {ResourceType.CLIENT_KEY, ResourceType.API_TOKEN, ResourceType.ADMIN_USER, ResourceType.INSTALLATION}
)

# Every revision leaves exactly one row: fewer rows than revisions means that some are pruned, or of another epoch.
CREDENTIALS_CHANGED = """
    SELECT head.revision, count(log.revision) <> head.revision - %(since)s
                          OR coalesce(bool_or(log.resource_type = ANY(%(types)s)), false)
    FROM revision_head head LEFT JOIN change_log log ON log.revision > %(since)s
    GROUP BY head.revision
"""


@retry_lost_read
def credentials_changed(database: Database, since: int) -> tuple[int, bool]:
    """Return the current revision, and whether a credential may have changed since an earlier one.

    Raises:
        Unavailable: The database cannot be reached.
    """
    with database.read() as conn:
        asked = {"since": since, "types": [*_OF_CREDENTIALS]}
        revision, has_changed = one(conn.execute(CREDENTIALS_CHANGED, asked))
    return int(revision), bool(has_changed)


def may_change_credentials(commits: Iterable[Commit]) -> bool:
    """Return whether commits may change a credential; nothing is known if there are none."""
    resources = {commit.resource_type for commit in commits}
    return not resources or not resources.isdisjoint(_OF_CREDENTIALS)
