"""Privileges of the serving role in PostgreSQL: the least that serving needs, and a check for more than that.

Triggers refuse changes of the audit log for all roles, but the owner of a table can drop its triggers. So the serving
role is a separate one that owns nothing. A superuser can bypass both; the hash chain shows what it changed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import LiteralString

from psycopg import sql

from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.retries import retry_lost_read

_ALL = "SELECT, INSERT, UPDATE, DELETE"

# Every table has a row; a test checks that. Documents of the audit log change by `redact_audit_documents` alone.
TABLE_PRIVILEGES: Mapping[str, str] = MappingProxyType(
    {
        "revision_head": "SELECT, UPDATE",
        "subjects": _ALL,
        "users": _ALL,
        "user_attribute_counts": _ALL,
        "segments": _ALL,
        "segment_members": _ALL,
        "feature_flags": _ALL,
        "flag_segments": _ALL,
        "targeted_users": _ALL,
        "change_log": _ALL,
        "audit_log": "SELECT, INSERT",
        "audit_documents": "SELECT, INSERT",
        "audit_redactions": "SELECT",
        "subject_commitments": "SELECT, INSERT",
        "audit_archives": "SELECT",
        "auth_events": _ALL,
        "admin_user": _ALL,
        "refresh_tokens": _ALL,
        "client_keys": _ALL,
        "api_tokens": "SELECT, INSERT, UPDATE",
        "idempotency_keys": _ALL,
        "usage_coverage": "SELECT, UPDATE",
        "flag_last_named": _ALL,
        "flag_usage": _ALL,
        "unknown_flag_keys": _ALL,
        "schema_migrations": "SELECT",
    }
)

FUNCTIONS = (
    "ensure_audit_partitions()",
    "redact_audit_documents(bigint, bigint[], bytea[], bytea[])",
)
"""What the serving role may do to the audit log with the rights of its owner."""


# The schema is the one in which the session finds the tables.
_ON_SCHEMA = """\
DO $gatekeeper$
DECLARE
    ours text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'revision_head'::regclass);
BEGIN
    EXECUTE 'REVOKE CREATE ON SCHEMA ' || ours || ' FROM PUBLIC';
    EXECUTE format('REVOKE ALL ON SCHEMA %s FROM %I', ours, {literal});
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %s FROM %I', ours, {literal});
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %I', ours, {literal});
    IF ours <> 'public' THEN
        RAISE NOTICE 'the URL of % must name the schema: options=-csearch_path%%3D%', {literal}, ours;
    END IF;
END $gatekeeper$;"""


def grants(role: str) -> str:
    """Return the SQL that grants a role what serving needs, and revokes everything else.

    The owner of the schema runs it after every `gatekeeper migrate up`, in a session that finds our tables. The role
    must exist and own nothing.
    """
    name = sql.Identifier(role).as_string(None)
    lines = [
        "BEGIN;",
        _ON_SCHEMA.format(literal=sql.Literal(role).as_string(None)),
        *(f"GRANT {privileges} ON {table} TO {name};" for table, privileges in TABLE_PRIVILEGES.items()),
        *(f"GRANT EXECUTE ON FUNCTION {function} TO {name};" for function in FUNCTIONS),
        "COMMIT;",
    ]
    return "\n".join(lines) + "\n"


# Of the session and of the current role, because a session can always reset its role. A superuser has all powers,
# so the others are not listed for it.
_REWRITING_POWERS: LiteralString = """
    WITH me AS (
        SELECT DISTINCT r.rolname, r.rolsuper, r.rolcreaterole FROM pg_roles r
        WHERE r.rolname IN (session_user, current_user)
    ), guarded AS (
        SELECT oid, relname, relowner FROM pg_class
        WHERE oid IN ('audit_log'::regclass, 'audit_documents'::regclass, 'audit_archives'::regclass,
                      'audit_redactions'::regclass, 'subject_commitments'::regclass)
           OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'audit_log'::regclass)
    ), power AS (
        SELECT 1 AS rank, 'it is a superuser' AS words FROM me WHERE rolsuper
        UNION
        SELECT 2, 'it is the owner of ' || relname || ', or can act as the owner' FROM me, guarded
        WHERE NOT rolsuper AND pg_has_role(rolname, relowner, 'MEMBER')
        UNION
        SELECT 3, 'it may ' || privilege || ' ' || relname
        FROM me, guarded, unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS privilege
        WHERE NOT rolsuper
          AND (has_table_privilege(rolname, oid, privilege)
               OR privilege = 'UPDATE' AND has_any_column_privilege(rolname, oid, 'UPDATE'))
        UNION
        SELECT 4, 'it can replace the function ' || proname FROM me, pg_proc
        WHERE NOT rolsuper AND pg_has_role(rolname, proowner, 'MEMBER')
          AND pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'audit_log'::regclass)
          AND proname IN ('refuse_audit_change', 'guard_audit_table', 'make_audit_partitions',
                          'ensure_audit_partitions', 'redact_audit_documents', 'hash_of_redactions',
                          'require_erasure')
        UNION
        SELECT 5, 'it owns, or may create in, the schema ' || nspname FROM me, pg_namespace
        WHERE NOT rolsuper AND oid = (SELECT relnamespace FROM pg_class WHERE oid = 'audit_log'::regclass)
          AND (pg_has_role(rolname, nspowner, 'MEMBER') OR has_schema_privilege(rolname, oid, 'CREATE'))
        UNION
        SELECT 6, 'it owns the database' FROM me, pg_database
        WHERE NOT rolsuper AND datname = current_database() AND pg_has_role(rolname, datdba, 'MEMBER')
        UNION
        SELECT 7, 'it may create roles' FROM me WHERE NOT rolsuper AND rolcreaterole
        UNION
        SELECT 8, 'it is a member of ' || r.rolname FROM me, pg_roles r
        WHERE NOT me.rolsuper AND pg_has_role(me.rolname, r.oid, 'MEMBER')
          AND r.rolname IN ('pg_execute_server_program', 'pg_write_server_files')
        UNION
        SELECT 9, 'it may set session_replication_role' FROM me
        WHERE NOT rolsuper AND has_parameter_privilege(rolname, 'session_replication_role', 'SET')
    )
    SELECT words FROM power ORDER BY rank, words
"""


@retry_lost_read
def rewriting_powers(database: Database) -> tuple[str, ...]:
    """Return the powers by which the role that connects could rewrite the audit log, such as "it is a superuser".

    Raises:
        Unavailable: The database cannot be reached.
    """
    with database.read() as conn:
        return tuple(words for (words,) in conn.execute(_REWRITING_POWERS))
