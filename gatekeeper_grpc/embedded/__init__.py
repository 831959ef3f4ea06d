"""The embedded PostgreSQL: Gatekeeper's own database if DATABASE_URL is not set.

`EmbeddedPostgres` starts postgres as a child that cannot outlive this process, restarts it after a crash, and leaves
its data ready for the next start. `running_dsn` lets another process join a database that runs already.

One thread owns the child (`supervisor`, `postmaster`). File locks prove which processes live (`locks`, `home`).
Postgres inherits open directories instead of paths (`programs`), so it runs for root and below private parents.
"""

from gatekeeper_grpc.embedded.errors import EmbeddedDatabaseError
from gatekeeper_grpc.embedded.supervisor import EmbeddedPostgres, is_disk_full, running_dsn

__all__ = ["EmbeddedDatabaseError", "EmbeddedPostgres", "is_disk_full", "running_dsn"]
