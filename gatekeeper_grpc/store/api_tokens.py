"""API tokens in PostgreSQL: create, list, revoke, load to authenticate calls."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg.rows import kwargs_row
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.api_token import (
    MAX_API_TOKEN_AGE,
    MAX_API_TOKENS,
    ApiToken,
    ApiTokenConfig,
    CreatedApiToken,
    LiveApiToken,
    api_token_document,
)
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.commands import CredentialFilter
from gatekeeper_grpc.domain.errors import InvalidArgument, NotFound, ResourceExhausted
from gatekeeper_grpc.domain.mutation import Change, Intent, Read, ResourceType, Written
from gatekeeper_grpc.store.mutations import Effect, Head, MutationRunner, change_of, unchanged
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision, one
from gatekeeper_grpc.store.postgres.retries import retry_conflicts, retry_lost_read

LAST_USED_ACCURACY = timedelta(minutes=10)

_CODEC = TypeAdapter(ApiToken)
_CREATED_CODEC = TypeAdapter(CreatedApiToken)

SELECT_API_TOKENS: LiteralString = """
    SELECT token_id, name, role, admin_id, username, create_time, expire_time, revoke_time, last_used_time, revision
    FROM api_tokens
"""


def api_token_from_row(*, name: str, role: str, expire_time: datetime, **columns: Any) -> ApiToken:
    """Build the API token of a row of `SELECT_API_TOKENS`."""
    config = ApiTokenConfig(name=name, role=Role[role.upper()], expire_time=expire_time)
    return ApiToken(config=config, **columns)


def _live_from_row(*, role: str, maker_role: str, **columns: Any) -> LiveApiToken:
    return LiveApiToken(role=Role[role.upper()], maker_role=Role[maker_role.upper()], **columns)


class ApiTokenStore:
    """API tokens, read and changed. Writes go through `MutationRunner`; reads say at which revision they are true."""

    def __init__(self, database: Database, mutations: MutationRunner) -> None:
        self._database = database
        self._mutations = mutations

    def create(
        self, config: ApiTokenConfig, maker: Caller, *, token_id: str, secret: str, secret_hash: bytes, intent: Intent
    ) -> Written[CreatedApiToken]:
        """Create a token. A retry gets the token and secret of the first call, not its own.

        Args:
            config: What the maker decided.
            maker: Who makes it.
            token_id: The id of the new token.
            secret: What its holder is shown.
            secret_hash: What calls are authenticated with.
            intent: Why.

        Raises:
            InvalidArgument: The expiry time is not in the future, or too far ahead.
            ResourceExhausted: The maker has `MAX_API_TOKENS`.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[CreatedApiToken]:
            _check_expiry(config, head.create_time)
            _check_quota(conn, maker)
            token = ApiToken(
                token_id=token_id,
                config=config,
                admin_id=maker.admin_id,
                username=maker.username,
                create_time=head.create_time,
                revision=head.revision,
            )
            _insert(conn, token, secret_hash)
            return Effect(
                result=CreatedApiToken(token=token, secret=secret),
                preview=CreatedApiToken(token=replace(token, token_id="", revision=0), secret=""),
                change=_change(None, token),
            )

        return self._mutations.mutate(intent, act, codec=_CREATED_CODEC)

    @retry_lost_read
    def list(self, wanted: CredentialFilter) -> Read[list[ApiToken]]:
        """Read a page of tokens in order of their ids, the expired and revoked ones too."""
        filters = {"admin_id": wanted.admin_id, "username": wanted.username or None, "limit": wanted.limit}
        with self._database.read() as conn, conn.cursor(row_factory=kwargs_row(api_token_from_row)) as cursor:
            tokens = cursor.execute(LIST_API_TOKENS, {**filters, "after": wanted.after}).fetchall()
            return Read(result=tokens, revision=current_revision(conn))

    def revoke(self, token_id: str, *, owner_id: int | None, intent: Intent) -> Written[ApiToken]:
        """Revoke a token; one that was revoked before stays as it is.

        Args:
            token_id: The token.
            owner_id: Only a token of this admin user; None: of any.
            intent: Who revokes it, and why.

        Raises:
            NotFound: There is no such token.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[ApiToken]:
            before = _find(conn, token_id, owner_id=owner_id)
            if before.revoke_time is not None:
                return unchanged(before)
            after = replace(before, revoke_time=head.create_time, revision=head.revision)
            revoked = {"token_id": token_id, "revoke_time": after.revoke_time, "revision": after.revision}
            conn.execute(_REVOKE, revoked)
            return Effect(result=after, preview=replace(after, revision=before.revision), change=_change(before, after))

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def load_live(self) -> Sequence[LiveApiToken]:
        """Read every token that is neither revoked nor expired, and whose maker may call."""
        with self._database.read() as conn, conn.cursor(row_factory=kwargs_row(_live_from_row)) as cursor:
            return cursor.execute(LIVE_API_TOKENS).fetchall()

    @retry_conflicts
    def record_uses(self, last_used: Mapping[str, datetime]) -> None:
        """Store when tokens were last used, by token id, where what is stored is older by `LAST_USED_ACCURACY`.

        Not a mutation: no revision, no audit entry.
        """
        uses = {"token_ids": list(last_used), "times": list(last_used.values()), "accuracy": LAST_USED_ACCURACY}
        with self._database.write() as conn:
            conn.execute(_RECORD_USES, uses)


LIST_API_TOKENS = (
    SELECT_API_TOKENS
    + """
    WHERE token_id > %(after)s AND (%(admin_id)s::bigint IS NULL OR admin_id = %(admin_id)s)
      AND (%(username)s::text IS NULL OR username = %(username)s)
    ORDER BY token_id LIMIT %(limit)s
"""
)

FIND_API_TOKEN = (
    SELECT_API_TOKENS
    + """
    WHERE token_id = %(token_id)s AND (%(admin_id)s::bigint IS NULL OR admin_id = %(admin_id)s)
"""
)

LIVE_API_TOKENS = """
    SELECT t.token_id, t.secret_hash, t.name, t.role, a.role AS maker_role, admin_id, username, t.expire_time
    FROM api_tokens t JOIN admin_user a USING (admin_id, username)
    WHERE t.revoke_time IS NULL AND t.expire_time > clock_timestamp() AND a.enabled AND NOT a.must_change_password
"""

_COUNT_LIVE = """
    SELECT count(*) FROM api_tokens
    WHERE admin_id = %(admin_id)s AND revoke_time IS NULL AND expire_time > clock_timestamp()
"""


def _check_expiry(config: ApiTokenConfig, now: datetime) -> None:
    if not now < config.expire_time <= now + MAX_API_TOKEN_AGE:
        raise InvalidArgument.of(
            "api_token.expire_time", f"must be in the future and at most {MAX_API_TOKEN_AGE.days} days ahead"
        )


def _check_quota(conn: Connection, maker: Caller) -> None:
    (live,) = one(conn.execute(_COUNT_LIVE, {"admin_id": maker.admin_id}))
    if live >= MAX_API_TOKENS:
        raise ResourceExhausted(
            f"an admin user may have {MAX_API_TOKENS} API tokens, and you have them: revoke some",
            reason="QUOTA_EXCEEDED",
            metadata={"quota": "api_tokens", "limit": str(MAX_API_TOKENS)},
        )


def _find(conn: Connection, token_id: str, *, owner_id: int | None) -> ApiToken:
    with conn.cursor(row_factory=kwargs_row(api_token_from_row)) as cursor:
        token = cursor.execute(FIND_API_TOKEN, {"token_id": token_id, "admin_id": owner_id}).fetchone()
    if token is None:
        raise NotFound.api_token(token_id)
    return token


_INSERT = """
    INSERT INTO api_tokens (token_id, secret_hash, name, role, admin_id, username, create_time, expire_time, revision)
    VALUES (%(token_id)s, %(secret_hash)s, %(name)s, %(role)s, %(admin_id)s, %(username)s, %(create_time)s,
            %(expire_time)s, %(revision)s)
"""


def _insert(conn: Connection, token: ApiToken, secret_hash: bytes) -> None:
    row = {
        "token_id": token.token_id,
        "secret_hash": secret_hash,
        "name": token.config.name,
        "role": token.config.role.name.lower(),
        "admin_id": token.admin_id,
        "username": token.username,
        "create_time": token.create_time,
        "expire_time": token.config.expire_time,
        "revision": token.revision,
    }
    conn.execute(_INSERT, row)


_REVOKE = """
    UPDATE api_tokens SET revoke_time = %(revoke_time)s, revision = %(revision)s WHERE token_id = %(token_id)s
"""

# Instances store uses independently, and the latest wins. The order by id prevents deadlocks between two of them.
_RECORD_USES = """
    WITH used AS (
        SELECT t.token_id, u.time FROM api_tokens t
        JOIN unnest(%(token_ids)s::text[], %(times)s::timestamptz[]) AS u (token_id, time) USING (token_id)
        WHERE t.last_used_time IS NULL OR t.last_used_time < u.time - %(accuracy)s
        ORDER BY t.token_id FOR UPDATE OF t
    )
    UPDATE api_tokens t SET last_used_time = used.time FROM used WHERE used.token_id = t.token_id
"""


def _change(before: ApiToken | None, after: ApiToken) -> Change:
    return change_of(
        ResourceType.API_TOKEN, before, after, key=lambda token: token.token_id, document=api_token_document
    )
