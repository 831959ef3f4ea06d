"""What changes leave of the head row and other rows: `python -m bench.head_bloat [changes]`.

Each change updates `revision_head`, one row that all lock. An update leaves a dead version of the row behind. It costs
nothing as long as PostgreSQL can remove it from the page without VACUUM, which it can if no index has to be changed
(HOT), and no transaction is open that may still see it. So the second figure is with a transaction that stays open.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
from google.protobuf.field_mask_pb2 import FieldMask

from bench.processes import log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.embedded import running_dsn

TABLES = ("revision_head", "feature_flags")
_READ = """
    SELECT n_tup_upd, n_tup_hot_upd, n_dead_tup, pg_relation_size(relid) FROM pg_stat_user_tables WHERE relname = %s
"""


@contextmanager
def open_transaction(dsn: str) -> Iterator[None]:
    """Keep a transaction open that may see all that was there before."""
    with psycopg.connect(dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT FROM revision_head")
        yield


def counts(dsn: str) -> dict[str, Any]:
    """Read what PostgreSQL has counted of each table."""
    time.sleep(2)  # A session reports what it has counted once a second.
    with psycopg.connect(dsn) as conn:
        return {table: conn.execute(_READ, [table]).fetchone() for table in TABLES}


def main(changes: int = 2_000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as instance, instance.channel() as channel:
        metadata, flags, dsn = log_in(instance), AdminServiceStub(channel), running_dsn(Path(folder))
        flags.CreateFlag(admin.CreateFlagRequest(flag=Flag(key="checkout")), metadata=metadata)
        for name, other in (("", nullcontext()), (" while a transaction is open", open_transaction(dsn))):
            before = counts(dsn)
            began = time.perf_counter()
            with other:
                for number in range(changes):
                    flag = Flag(key="checkout", description=str(number))
                    request = admin.UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["description"]))
                    flags.UpdateFlag(request, metadata=metadata)
                took_ms = (time.perf_counter() - began) / changes * 1e3
                after = counts(dsn)
            print(f"  {changes} changes{name}: {took_ms:.1f} ms each")
            for table in TABLES:
                updated, hot, dead, size = after[table]
                share = (hot - before[table][1]) / (updated - before[table][0])
                print(f"    {table}: {share:.0%} of the updates HOT, {dead} dead rows, {size >> 10} KiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
