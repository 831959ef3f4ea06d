"""Whether the claims of the caller's access token are still true: compared inside each transaction of a call.

`Database.read` compares before it hands out a transaction, and `MutationRunner` after it has locked the head. So no RPC
can read or write for an admin user who was demoted, disabled, deleted, logged out or given another password.
"""

from typing import Any, LiteralString

import psycopg

from gatekeeper_grpc.domain.caller import Caller, caller_if_any, note_caller_checked
from gatekeeper_grpc.domain.errors import Unauthenticated

CALLER_IS_CURRENT: LiteralString = """
    EXISTS (
        SELECT FROM admin_user a
        WHERE a.admin_id = %(admin_id)s AND a.enabled AND a.role = %(role)s AND a.token_epoch = %(token_epoch)s
          AND EXISTS (SELECT FROM refresh_tokens WHERE family_id = %(session_id)s AND admin_id = a.admin_id)
    )
"""

_IS_CURRENT: LiteralString = "SELECT " + CALLER_IS_CURRENT


def claims(caller: Caller) -> dict[str, object]:
    """Return the parameters of `CALLER_IS_CURRENT`."""
    return {
        "admin_id": caller.admin_id,
        "role": caller.role.name.lower(),
        "token_epoch": caller.token_epoch,
        "session_id": caller.session_id,
    }


def require_current_caller(conn: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Compare the caller of the current call, if there is one, with the admin user that this transaction sees.

    Raises:
        Unauthenticated: The caller was demoted, disabled, deleted, logged out or given another password.
    """
    caller = caller_if_any()
    if caller is None:
        return
    if conn.execute(_IS_CURRENT, claims(caller)).fetchone() != (True,):
        raise Unauthenticated.access_token()
    note_caller_checked()
