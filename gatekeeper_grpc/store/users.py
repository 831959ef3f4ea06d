"""Known users in PostgreSQL: create, read, list, update, delete."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from psycopg.rows import kwargs_row
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.commands import UserFilter, UserUpdate
from gatekeeper_grpc.domain.errors import AlreadyExists, NotFound
from gatekeeper_grpc.domain.etag import check_etag
from gatekeeper_grpc.domain.limits import MAX_STORED_VALUES
from gatekeeper_grpc.domain.mutation import Change, Intent, Read, ResourceType, Written
from gatekeeper_grpc.domain.user import (
    User,
    UserProfile,
    changed_attributes,
    check_new_attribute_names,
    user_document,
)
from gatekeeper_grpc.store.access_trace import AccessEvent, Page, record_access, recorded_page
from gatekeeper_grpc.store.attribute_cap import check_attribute_cap, count_stored_values
from gatekeeper_grpc.store.mutations import NOTHING, Effect, Head, MutationRunner, change_of, unchanged
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision
from gatekeeper_grpc.store.postgres.retries import retry_lost_read
from gatekeeper_grpc.store.quotas import DEFAULT_QUOTAS, Quotas
from gatekeeper_grpc.store.subjects import ensure_subjects

_CODEC = TypeAdapter(User)

# Every query for users starts with this.
SELECT_USERS = """
    SELECT u.subject_id, s.user_id, u.attributes, u.create_time, u.update_time, u.revision
    FROM users u JOIN subjects s USING (subject_id)
"""


def user_from_row(*, user_id: str, attributes: dict[str, JsonValue], **columns: Any) -> User:
    """Build the user of a row of `SELECT_USERS`."""
    return User(profile=UserProfile(user_id=user_id, attributes=attributes), **columns)


class UserStore:
    """Known users, read and changed. Writes go through `MutationRunner`; reads say at which revision they are true.

    Args:
        database: The database.
        mutations: Carries out the mutations.
        attribute_cap: How many stored attribute values segments may name.
        quotas: How many users there may be.
    """

    def __init__(
        self,
        database: Database,
        mutations: MutationRunner,
        *,
        attribute_cap: int = MAX_STORED_VALUES,
        quotas: Quotas = DEFAULT_QUOTAS,
    ) -> None:
        self._database = database
        self._mutations = mutations
        self._attribute_cap = attribute_cap
        self._quotas = quotas

    def create(self, profile: UserProfile, intent: Intent) -> Written[User]:
        """Create a user.

        Raises:
            AlreadyExists: The user is known.
            ResourceExhausted: The cap or the quota is reached.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[User]:
            evidence_hash = ensure_subjects(conn, head, [profile.user_id])
            user = _insert(conn, head, profile)
            self._quotas.check(conn, "users")
            self._check_cap(conn, before={}, after=user.attributes)
            change = replace(user_change(None, user), evidence_hash=evidence_hash())
            return Effect(result=user, preview=replace(user, revision=0), change=change)

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def get(self, user_id: str) -> Read[User]:
        """Read a user.

        Raises:
            NotFound: The user is not known.
        """
        with self._database.read_and_record() as conn:
            user = find_user(conn, user_id)
            record_access(conn, AccessEvent.USER_READ, [user.subject_id])
            return Read(result=user, revision=current_revision(conn))

    @retry_lost_read
    def list(self, wanted: UserFilter, paged: Callable[[Iterable[User]], Page]) -> Read[Page]:
        """Read users in user-id order, and return what `paged` makes of those that it takes."""
        with self._database.read_and_record() as conn, conn.cursor(row_factory=kwargs_row(user_from_row)) as cursor:
            users = cursor.execute(LIST_USERS, _list_parameters(wanted)).fetchall()
            page = recorded_page(conn, AccessEvent.USERS_LISTED, users, paged, subjects=lambda user: [user.subject_id])
            return Read(result=page, revision=current_revision(conn))

    def update(self, update: UserUpdate, intent: Intent) -> Written[User]:
        """Change attributes of a user.

        Raises:
            NotFound: The user is not known.
            Changed: The user has another etag than the update names.
            InvalidArgument: The attributes together are too large.
            ResourceExhausted: The cap is reached.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[User]:
            before = find_user(conn, update.user_id, etag=update.etag)
            attributes = update.applied_to(before.attributes)
            if not changed_attributes(before.attributes, attributes):
                return unchanged(before, subjects=(before.subject_id,))
            check_new_attribute_names(attributes.keys() - before.attributes.keys())
            after = _replace(conn, head, before, attributes)
            self._check_cap(conn, before=before.attributes, after=after.attributes)
            return Effect(
                result=after,
                preview=replace(after, revision=before.revision, update_time=before.update_time),
                change=user_change(before, after),
            )

        written = self._mutations.mutate(intent, act, codec=_CODEC)
        if written.anchor is None:
            self._record_shown(written.result)
        return written

    @retry_lost_read
    def _record_shown(self, user: User) -> None:
        """Record that an update without an audit entry shows what is stored: a preview, or one that changes nothing."""
        with self._database.read_and_record() as conn:
            record_access(conn, AccessEvent.USER_READ, [user.subject_id])

    def delete(self, user_id: str, etag: str, intent: Intent) -> Written[None]:
        """Delete a user's attributes; targets and memberships stay, because they refer to its subject.

        Raises:
            NotFound: The user is not known.
            Changed: The user has another etag; an empty etag accepts any state.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, _head: Head) -> Effect[None]:
            before = find_user(conn, user_id, etag=etag)
            forget_user(conn, before.subject_id)
            return Effect(result=None, preview=None, change=user_change(before, None))

        return self._mutations.mutate(intent, act, codec=NOTHING)

    def _check_cap(self, conn: Connection, *, before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]) -> None:
        # A change that adds no attribute is not refused because others added some.
        if after.keys() - before.keys():
            check_attribute_cap(count_stored_values(conn), cap=self._attribute_cap)


FIND_USER = SELECT_USERS + "WHERE s.user_id = %(user_id)s"


def find_user(conn: Connection, user_id: str, *, etag: str = "") -> User:
    """Read a user within a transaction.

    Raises:
        NotFound: The user is not known.
        Changed: `etag` is not empty and not the user's.
    """
    with conn.cursor(row_factory=kwargs_row(user_from_row)) as cursor:
        user = cursor.execute(FIND_USER, {"user_id": user_id}).fetchone()
    if user is None:
        raise NotFound.user(user_id)
    check_etag(f"user {user_id!r}", etag, current=user.etag)
    return user


def forget_user(conn: Connection, subject_id: UUID) -> None:
    """Delete the stored attributes of a person, if there are any."""
    conn.execute("DELETE FROM users WHERE subject_id = %(subject_id)s", {"subject_id": subject_id})


# Filters that are not given are NULL; the planner folds them away. Containment finds users by the index, but takes a
# part of a list or an object for the whole.
LIST_USERS = (
    SELECT_USERS
    + """
    WHERE s.user_id > %(after)s
      AND (%(prefix)s::text IS NULL OR starts_with(s.user_id, %(prefix)s) AND s.user_id >= %(prefix)s)
      AND (%(attributes)s::jsonb IS NULL OR u.attributes @> %(attributes)s AND NOT EXISTS (
          SELECT FROM jsonb_each(%(attributes)s) AS wanted WHERE u.attributes -> wanted.key <> wanted.value))
    ORDER BY s.user_id LIMIT %(limit)s
"""
)


def _list_parameters(wanted: UserFilter) -> dict[str, object]:
    return {
        "after": wanted.after,
        "prefix": wanted.user_id_prefix or None,
        "attributes": Jsonb(wanted.attributes) if wanted.attributes else None,
        "limit": wanted.limit,
    }


_INSERT = """
    INSERT INTO users (subject_id, attributes, create_time, update_time, revision)
    SELECT subject_id, %(attributes)s, %(update_time)s, %(update_time)s, %(revision)s
    FROM subjects WHERE user_id = %(user_id)s
    ON CONFLICT ON CONSTRAINT users_pkey DO NOTHING
    RETURNING subject_id
"""


def _insert(conn: Connection, head: Head, profile: UserProfile) -> User:
    row = conn.execute(_INSERT, {**_columns(profile, head), "user_id": profile.user_id}).fetchone()
    if row is None:
        raise AlreadyExists(f"user {profile.user_id!r} is known already", metadata={"user_id": profile.user_id})
    return User(
        subject_id=row[0],
        profile=profile,
        create_time=head.create_time,
        update_time=head.create_time,
        revision=head.revision,
    )


_UPDATE = """
    UPDATE users SET attributes = %(attributes)s, update_time = %(update_time)s, revision = %(revision)s
    WHERE subject_id = %(subject_id)s
"""


def _replace(conn: Connection, head: Head, before: User, attributes: Mapping[str, JsonValue]) -> User:
    profile = replace(before.profile, attributes=attributes)
    conn.execute(_UPDATE, {**_columns(profile, head), "subject_id": before.subject_id})
    return replace(before, profile=profile, update_time=head.create_time, revision=head.revision)


def _columns(profile: UserProfile, head: Head) -> dict[str, object]:
    return {"attributes": Jsonb(profile.attributes), "update_time": head.create_time, "revision": head.revision}


def user_change(before: User | None, after: User | None, **more: object) -> Change:
    """Return the change of a user from one state to another; see `change_of`."""
    change = change_of(
        ResourceType.USER, before, after, key=lambda user: str(user.subject_id), document=user_document, **more
    )
    return replace(change, subjects=(UUID(change.key),))
