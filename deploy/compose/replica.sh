#!/bin/sh
# Starts the replica: a new data folder begins as a copy of the primary, and follows it.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  PGPASSWORD="$(cat /run/secrets/replica_password)" pg_basebackup --pgdata="$PGDATA" --host=postgres --username=gatekeeper_replica \
    --wal-method=stream --checkpoint=fast --write-recovery-conf
fi
exec postgres "$@"
