#!/bin/sh
# The image of PostgreSQL runs this once, when the data folder is new: a role that serves, and one that replicates.
set -eu
psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
\set server `cat /run/secrets/server_password`
\set replica `cat /run/secrets/replica_password`
CREATE ROLE gatekeeper_server LOGIN PASSWORD :'server';
CREATE ROLE gatekeeper_replica LOGIN REPLICATION PASSWORD :'replica';
SQL
echo 'host replication gatekeeper_replica all scram-sha-256' >> "$PGDATA/pg_hba.conf"
