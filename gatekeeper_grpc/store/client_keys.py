"""Client keys in PostgreSQL: create, list, revoke, load to verify calls.

What is kept of a secret is sealed: a stolen dump does not reveal it, and the server can still verify calls with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from psycopg.rows import class_row, kwargs_row
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.client_key import (
    ClientKey,
    ClientKeyConfig,
    ClientKeyType,
    CreatedClientKey,
    RateTier,
    SealedClientKey,
    client_key_document,
)
from gatekeeper_grpc.domain.errors import InvalidArgument, NotFound
from gatekeeper_grpc.domain.mutation import Change, Intent, Read, ResourceType, Written
from gatekeeper_grpc.domain.sealer import Sealer
from gatekeeper_grpc.store.mutations import Effect, Head, MutationRunner, change_of, unchanged
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision
from gatekeeper_grpc.store.postgres.retries import retry_conflicts, retry_lost_read

_CODEC = TypeAdapter(ClientKey)
_CREATED_CODEC = TypeAdapter(CreatedClientKey)

SELECT_CLIENT_KEYS = """
    SELECT key_id, name, tier, create_time, expire_time, revoke_time, last_used_time, revision FROM client_keys
"""


def client_key_from_row(*, name: str, tier: str, expire_time: datetime | None, **columns: Any) -> ClientKey:
    """Build the client key of a row of `SELECT_CLIENT_KEYS`."""
    config = ClientKeyConfig(
        name=name, tier=RateTier[tier.upper()], type=ClientKeyType.of(columns["key_id"]), expire_time=expire_time
    )
    return ClientKey(config=config, **columns)


class ClientKeyStore:
    """Client keys, read and changed. Writes go through `MutationRunner`; reads say at which revision they are true."""

    def __init__(self, database: Database, mutations: MutationRunner, sealer: Sealer) -> None:
        self._database = database
        self._mutations = mutations
        self._sealer = sealer

    def create(
        self, config: ClientKeyConfig, *, key_id: str, secret: str, kept: bytes, intent: Intent
    ) -> Written[CreatedClientKey]:
        """Create a key. A retry gets the key and secret of the first call, not its own.

        Args:
            config: What the admin decided.
            key_id: The id of the new key.
            secret: What its holder is shown.
            kept: What calls are verified with.
            intent: Who creates it, and why.

        Raises:
            InvalidArgument: The expiry time is not in the future.
            GatekeeperError: See `MutationRunner.mutate`.
        """
        sealed = self._sealer.seal(kept)

        def act(conn: Connection, head: Head) -> Effect[CreatedClientKey]:
            if config.expire_time is not None and config.expire_time <= head.create_time:
                raise InvalidArgument.of(
                    "client_key.expire_time", "must be in the future, or absent for a key without expiry"
                )
            key = ClientKey(key_id=key_id, config=config, create_time=head.create_time, revision=head.revision)
            _insert(conn, key, sealed)
            return Effect(
                result=CreatedClientKey(key=key, secret=secret),
                preview=CreatedClientKey(key=replace(key, key_id="", revision=0), secret=""),
                change=_change(None, key),
            )

        return self._mutations.mutate(intent, act, codec=_CREATED_CODEC)

    @retry_lost_read
    def list(self, *, after: str, limit: int) -> Read[list[ClientKey]]:
        """Read a page of keys in order of their ids, the expired and revoked ones too."""
        wanted = {"after": after, "limit": limit}
        with self._database.read() as conn, conn.cursor(row_factory=kwargs_row(client_key_from_row)) as cursor:
            keys = cursor.execute(LIST_CLIENT_KEYS, wanted).fetchall()
            return Read(result=keys, revision=current_revision(conn))

    def revoke(self, key_id: str, intent: Intent) -> Written[ClientKey]:
        """Revoke a key; one that was revoked before stays as it is.

        Raises:
            NotFound: There is no such key.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[ClientKey]:
            before = _find(conn, key_id)
            if before.revoke_time is not None:
                return unchanged(before)
            after = replace(before, revoke_time=head.create_time, revision=head.revision)
            revoked = {"key_id": key_id, "revoke_time": after.revoke_time, "revision": after.revision}
            conn.execute(_REVOKE, revoked)
            return Effect(
                result=after,
                preview=replace(after, revision=before.revision),
                change=_change(before, after),
            )

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def load_live(self) -> Sequence[SealedClientKey]:
        """Read every key that is neither revoked nor expired, with sealed secrets."""
        with self._database.read() as conn, conn.cursor(row_factory=class_row(SealedClientKey)) as cursor:
            return cursor.execute(LIVE_CLIENT_KEYS).fetchall()

    @retry_conflicts
    def record_uses(self, last_used: Mapping[str, datetime]) -> None:
        """Store when keys were last used, by key id. Not a mutation: no revision, no audit entry, same etag."""
        uses = {"key_ids": list(last_used), "times": list(last_used.values())}
        with self._database.write() as conn:
            conn.execute(_RECORD_USES, uses)


LIST_CLIENT_KEYS = SELECT_CLIENT_KEYS + "WHERE key_id > %(after)s ORDER BY key_id LIMIT %(limit)s"

FIND_CLIENT_KEY = SELECT_CLIENT_KEYS + "WHERE key_id = %(key_id)s"

LIVE_CLIENT_KEYS = """
    SELECT key_id, secret, tier, expire_time FROM client_keys
    WHERE revoke_time IS NULL AND (expire_time IS NULL OR expire_time > clock_timestamp())
"""


def _find(conn: Connection, key_id: str) -> ClientKey:
    with conn.cursor(row_factory=kwargs_row(client_key_from_row)) as cursor:
        key = cursor.execute(FIND_CLIENT_KEY, {"key_id": key_id}).fetchone()
    if key is None:
        raise NotFound.client_key(key_id)
    return key


_INSERT = """
    INSERT INTO client_keys (key_id, name, secret, tier, create_time, expire_time, revision)
    VALUES (%(key_id)s, %(name)s, %(secret)s, %(tier)s, %(create_time)s, %(expire_time)s, %(revision)s)
"""


def _insert(conn: Connection, key: ClientKey, sealed: bytes) -> None:
    row = {
        "key_id": key.key_id,
        "name": key.config.name,
        "secret": sealed,
        "tier": key.config.tier.name.lower(),
        "create_time": key.create_time,
        "expire_time": key.config.expire_time,
        "revision": key.revision,
    }
    conn.execute(_INSERT, row)


_REVOKE = """
    UPDATE client_keys SET revoke_time = %(revoke_time)s, revision = %(revision)s WHERE key_id = %(key_id)s
"""

# Instances store uses independently, and the latest wins. The order by key prevents deadlocks between two of them.
_RECORD_USES = """
    WITH used AS (
        SELECT k.key_id, u.time FROM client_keys k
        JOIN unnest(%(key_ids)s::text[], %(times)s::timestamptz[]) AS u (key_id, time) USING (key_id)
        ORDER BY k.key_id FOR UPDATE OF k
    )
    UPDATE client_keys k SET last_used_time = GREATEST(k.last_used_time, used.time) FROM used
    WHERE used.key_id = k.key_id
"""


def _change(before: ClientKey | None, after: ClientKey) -> Change:
    return change_of(ResourceType.CLIENT_KEY, before, after, key=lambda key: key.key_id, document=client_key_document)
