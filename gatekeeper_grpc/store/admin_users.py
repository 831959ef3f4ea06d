"""Admin users in PostgreSQL: create, list, update, delete.

A change of an admin user ends its sessions in the same transaction: its token epoch rises, which invalidates its access
tokens at the next mutation, and its refresh tokens are deleted. Callers hash passwords before: hashing takes a fifth of
a second, which is too long under the head lock.
"""

from dataclasses import replace
from typing import Any

from psycopg.rows import kwargs_row
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.admin_user import AdminUser, admin_user_document
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.commands import AdminUserUpdate, NewAdminUser, PasswordChange
from gatekeeper_grpc.domain.errors import AlreadyExists, FailedPrecondition, NotFound, Unauthenticated
from gatekeeper_grpc.domain.etag import check_etag
from gatekeeper_grpc.domain.mutation import Change, Intent, Read, ResourceType, Written
from gatekeeper_grpc.store.logins import revoke_logins
from gatekeeper_grpc.store.mutations import NOTHING, Effect, Head, MutationRunner, change_of, unchanged
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read

_CODEC = TypeAdapter(AdminUser)

SELECT_ADMIN_USERS = """
    SELECT admin_id, username, role, enabled, create_time, update_time, revision, must_change_password FROM admin_user
"""


def admin_user_from_row(*, role: str, **columns: Any) -> AdminUser:
    """Build the admin user of a row of `SELECT_ADMIN_USERS`."""
    return AdminUser(role=Role[role.upper()], **columns)


class AdminUserStore:
    """Admin users, read and changed. Writes go through `MutationRunner`; reads say at which revision they are true."""

    def __init__(self, database: Database, mutations: MutationRunner) -> None:
        self._database = database
        self._mutations = mutations

    def create(self, new: NewAdminUser, *, password_hash: str, intent: Intent) -> Written[AdminUser]:
        """Create an admin user, who may log in at once.

        Raises:
            AlreadyExists: The name is taken.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[AdminUser]:
            user = _insert(conn, head, new, password_hash)
            return Effect(result=user, preview=replace(user, admin_id=0, revision=0), change=_change(None, user))

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def list(self, *, after: str, limit: int) -> Read[list[AdminUser]]:
        """Read a page of admin users in order of their names."""
        wanted = {"after": after, "limit": limit}
        with self._database.read() as conn, conn.cursor(row_factory=kwargs_row(admin_user_from_row)) as cursor:
            users = cursor.execute(LIST_ADMIN_USERS, wanted).fetchall()
            return Read(result=users, revision=current_revision(conn))

    def update(self, update: AdminUserUpdate, *, password_hash: str | None, intent: Intent) -> Written[AdminUser]:
        """Change an admin user, and its password if a hash is given, and end its sessions if that changes anything.

        Raises:
            NotFound: There is no such admin user.
            Changed: It has another etag than the update names.
            FailedPrecondition: No other admin user could manage admin users.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[AdminUser]:
            before = _checked(conn, update.username, update.etag)
            if password_hash is None and replace(before, **update.changes) == before:
                return unchanged(before)
            after = replace(before, **update.changes, update_time=head.create_time, revision=head.revision)
            _check_manager_remains(conn, before, after)
            _replace(conn, after, password_hash=password_hash)
            return Effect(
                result=after,
                preview=replace(after, revision=before.revision, update_time=before.update_time),
                change=_change(before, after, password_changed=password_hash is not None),
            )

        return self._mutations.mutate(intent, act, codec=_CODEC)

    def delete(self, username: str, etag: str, intent: Intent) -> Written[None]:
        """Delete an admin user with its refresh tokens; its access tokens become invalid.

        Raises:
            NotFound: There is no such admin user.
            Changed: It has another etag; an empty etag accepts any state.
            FailedPrecondition: No other admin user could manage admin users.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, _head: Head) -> Effect[None]:
            before = _checked(conn, username, etag)
            _check_manager_remains(conn, before, None)
            conn.execute("DELETE FROM admin_user WHERE admin_id = %(admin_id)s", {"admin_id": before.admin_id})
            return Effect(result=None, preview=None, change=_change(before, None))

        return self._mutations.mutate(intent, act, codec=NOTHING)

    @retry_lost_read
    def own_password_hash(self, admin_id: int) -> str | None:
        """Return the password hash of an enabled admin user; None if there is none with this id."""
        with self._database.read() as conn:
            row = conn.execute(_OWN_HASH, {"admin_id": admin_id}).fetchone()
        return row[0] if row else None

    def change_password(self, change: PasswordChange, intent: Intent) -> Written[None]:
        """Change the caller's own password and end its sessions.

        The stored hash is compared here, not before, so that a retry gets the response of its first request.

        Raises:
            Unauthenticated: The hash that the current password was checked against is no longer stored.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[None]:
            before, current_hash = _owner(conn, change.admin_id)
            if change.verified_hash is None or change.verified_hash != current_hash:
                raise Unauthenticated.credentials()
            after = replace(before, update_time=head.create_time, revision=head.revision, must_change_password=False)
            _replace(conn, after, password_hash=change.new_hash)
            return Effect(result=None, preview=None, change=_change(before, after, password_changed=True))

        return self._mutations.mutate(intent, act, codec=NOTHING)


LIST_ADMIN_USERS = SELECT_ADMIN_USERS + "WHERE username > %(after)s ORDER BY username LIMIT %(limit)s"

FIND_ADMIN_USER = SELECT_ADMIN_USERS + "WHERE username = %(username)s"


def _checked(conn: Connection, username: str, etag: str) -> AdminUser:
    """Read an admin user that a mutation is about to change.

    Raises:
        NotFound: There is none of that name.
        Changed: `etag` is not empty and not the admin user's.
    """
    with conn.cursor(row_factory=kwargs_row(admin_user_from_row)) as cursor:
        user = cursor.execute(FIND_ADMIN_USER, {"username": username}).fetchone()
    if user is None:
        raise NotFound.admin_user(username)
    check_etag(f"admin user {username!r}", etag, current=user.etag)
    return user


_OWN_HASH = """
    SELECT password_hash FROM admin_user WHERE admin_id = %(admin_id)s AND enabled
"""

_FIND_OWNER = SELECT_ADMIN_USERS + "WHERE admin_id = %(admin_id)s"


def _owner(conn: Connection, admin_id: int) -> tuple[AdminUser, str]:
    """Read the caller and its password hash; `MutationRunner` has checked that it exists and is enabled."""
    with conn.cursor(row_factory=kwargs_row(admin_user_from_row)) as cursor:
        (user,) = cursor.execute(_FIND_OWNER, {"admin_id": admin_id})
    (password_hash,) = one(conn.execute(_OWN_HASH, {"admin_id": admin_id}))
    return user, password_hash


_ANOTHER_MANAGES = """
    SELECT EXISTS (SELECT FROM admin_user WHERE enabled AND role = 'admin' AND admin_id <> %(admin_id)s)
"""


def _check_manager_remains(conn: Connection, before: AdminUser, after: AdminUser | None) -> None:
    """Refuse to remove the last manager of admin users; the head lock excludes concurrent calls."""
    if not before.can_manage or (after and after.can_manage):
        return
    (another,) = one(conn.execute(_ANOTHER_MANAGES, {"admin_id": before.admin_id}))
    if not another:
        raise FailedPrecondition.last_admin(before.username)


_INSERT = """
    INSERT INTO admin_user (username, password_hash, role, create_time, update_time, revision, must_change_password)
    VALUES (%(username)s, %(password_hash)s, %(role)s, %(create_time)s, %(create_time)s, %(revision)s, %(must_change)s)
    ON CONFLICT ON CONSTRAINT admin_user_username_key DO NOTHING
    RETURNING admin_id, username, role, enabled, create_time, update_time, revision, must_change_password
"""


def _insert(conn: Connection, head: Head, new: NewAdminUser, password_hash: str) -> AdminUser:
    row = {
        "username": new.username,
        "password_hash": password_hash,
        "role": new.role.name.lower(),
        "create_time": head.create_time,
        "revision": head.revision,
        "must_change": new.must_change_password,
    }
    with conn.cursor(row_factory=kwargs_row(admin_user_from_row)) as cursor:
        inserted = cursor.execute(_INSERT, row).fetchone()
    if inserted is None:
        raise AlreadyExists(f"admin user {new.username!r} exists already", metadata={"username": new.username})
    return inserted


_UPDATE = """
    UPDATE admin_user
    SET role = %(role)s, enabled = %(enabled)s, password_hash = COALESCE(%(password_hash)s, password_hash),
        must_change_password = %(must_change)s, token_epoch = token_epoch + 1, update_time = %(update_time)s,
        revision = %(revision)s
    WHERE admin_id = %(admin_id)s
"""


def _replace(conn: Connection, after: AdminUser, *, password_hash: str | None) -> None:
    """Write an admin user and end its sessions; without a new hash it keeps the one it has."""
    row = {
        "admin_id": after.admin_id,
        "role": after.role.name.lower(),
        "enabled": after.enabled,
        "password_hash": password_hash,
        "update_time": after.update_time,
        "revision": after.revision,
        "must_change": after.must_change_password,
    }
    conn.execute(_UPDATE, row)
    revoke_logins(conn, after.admin_id)


def _change(before: AdminUser | None, after: AdminUser | None, *, password_changed: bool = False) -> Change:
    return change_of(
        ResourceType.ADMIN_USER,
        before,
        after,
        key=lambda user: user.username,
        document=admin_user_document,
        password_changed=password_changed,
    )
