"""Whether the caller may still do what it could when it was authenticated: compared inside each transaction of a call.

`Database.read` compares before it hands out a transaction, and `MutationRunner` after it has locked the head. So no RPC
can read or write for an admin user who was demoted, disabled, deleted, logged out or given another password, nor for an
API token that was revoked, or whose maker may not do that any more.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, LiteralString

import psycopg

from gatekeeper_grpc.domain.caller import Caller, Role, caller_if_any, note_caller_checked
from gatekeeper_grpc.domain.errors import Unauthenticated

CALLER_IS_CURRENT: LiteralString = """
    CASE WHEN %(token_id)s::text IS NULL THEN EXISTS (
        SELECT FROM admin_user a
        WHERE a.admin_id = %(admin_id)s AND a.enabled AND a.role = %(role)s AND a.token_epoch = %(token_epoch)s
          AND EXISTS (SELECT FROM refresh_tokens WHERE family_id = %(session_id)s AND admin_id = a.admin_id)
    ) ELSE EXISTS (
        SELECT FROM api_tokens t JOIN admin_user a USING (admin_id, username)
        WHERE t.token_id = %(token_id)s AND t.revoke_time IS NULL AND t.expire_time > clock_timestamp()
          AND a.enabled AND NOT a.must_change_password AND a.role = ANY(%(roles_above)s::text[])
    ) END
"""

_IS_CURRENT: LiteralString = "SELECT " + CALLER_IS_CURRENT


NO_CLAIMS: Mapping[str, object] = MappingProxyType(
    dict.fromkeys(("admin_id", "role", "token_epoch", "session_id", "token_id", "roles_above"))
)
"""The parameters of `CALLER_IS_CURRENT` without a caller."""


def claims(caller: Caller) -> Mapping[str, object]:
    """Return the parameters of `CALLER_IS_CURRENT`."""
    return {
        "admin_id": caller.admin_id,
        "role": caller.role.name.lower(),
        "token_epoch": caller.token_epoch,
        "session_id": caller.session_id,
        "token_id": caller.api_token.token_id if caller.api_token else None,
        "roles_above": [role.name.lower() for role in Role if role >= caller.role],
    }


def require_current_caller(conn: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Compare the caller of the current call, if there is one, with the admin user that this transaction sees.

    Raises:
        Unauthenticated: The caller was demoted, disabled, deleted, logged out or given another password; the API token
            was revoked, has expired, or its maker may less.
    """
    caller = caller_if_any()
    if caller is None:
        return
    if conn.execute(_IS_CURRENT, claims(caller)).fetchone() != (True,):
        raise Unauthenticated.access_token()
    note_caller_checked()
