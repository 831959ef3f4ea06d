"""The embedded PostgreSQL: a database of our own for whoever sets no DATABASE_URL.

`EmbeddedPostgres` starts PostgreSQL's programs as a child that cannot outlive us, restarts it when it dies, and leaves
its data ready for the next start. `running_dsn` lets another process join a database that runs already.

One thread owns the child (`supervisor`, `postmaster`), locks prove who is alive (`locks`, `home`), and postgres meets
the file system only through directories it is lent open (`programs`), so it works as root and below private parents.
"""

from gatekeeper_grpc.embedded.errors import EmbeddedDatabaseError
from gatekeeper_grpc.embedded.supervisor import EmbeddedPostgres, running_dsn

__all__ = ["EmbeddedDatabaseError", "EmbeddedPostgres", "running_dsn"]
