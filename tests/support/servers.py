"""A server of this process for a test: its settings and keys, a channel to it, tokens of its admin users."""

import atexit
import secrets
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg

from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.auth.tokens import AccessTokens
from gatekeeper_grpc.config.settings import Settings, load_settings
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.lifecycle.keys import Keys
from gatekeeper_grpc.lifecycle.server import GatekeeperServer

KEYS = Keys(
    tokens=KeyRing.parse("test:0123456789abcdef0123456789abcdef"),
    data=DataKeys(KeyRing.parse("data:fedcba9876543210fedcba9876543210")),
    erasure=KeyRing.parse("erasure:0f1e2d3c4b5a69780f1e2d3c4b5a6978"),
)


_numbers = count()


StartServer = Callable[..., GatekeeperServer]


def settings_for_tests(**settings: object) -> Settings:
    """Settings with free ports, and without waits that serve no test."""
    quick = {
        "data_dir": scratch(),
        # Not to be shared: what one test leaves there says nothing about another test's database.
        "snapshot_file": scratch() / f"snapshot-{next(_numbers)}",
        "listen": "127.0.0.1:0",
        "health_listen": "127.0.0.1:0",
        "ops_listen": "127.0.0.1:0",
        "drain_s": 0,
        "grace_s": 1,
        "bcrypt_cost": 10,
        # Tests call as fast as they can, all from one address; those of the limits set them.
        "login_rate": "off",
        "mutation_rate": "off",
        "token_mutation_rate": "off",
        "admin_read_rate": "off",
    }
    return load_settings(**{**quick, **settings})


@cache
def scratch() -> Path:
    """Where servers of this process keep what is not in the database."""
    directory = tempfile.TemporaryDirectory(prefix="gatekeeper-test-", ignore_cleanup_errors=True)
    atexit.register(directory.cleanup)  # Its own finalizer would print a warning.
    return Path(directory.name)


def connect(server: GatekeeperServer, *, token: str = "") -> grpc.Channel:
    """Open a channel of its own to a server; with a token, every call carries it."""
    channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.use_local_subchannel_pool", 1)])
    return grpc.intercept_channel(channel, Bearer(token)) if token else channel


def token_for(dsn: str, role: Role) -> str:
    """Make an admin user with this role, named after it, and an access token for it."""
    name = role.name.lower()
    insert = """
        INSERT INTO admin_user (username, password_hash, role, create_time, update_time)
        VALUES (%s, 'x', %s, now(), now())
    """
    with psycopg.connect(dsn) as conn:
        conn.execute(insert, (name, name))
    return access_token(dsn, name)


def access_token(dsn: str, username: str, *, age: timedelta = timedelta()) -> str:
    """Make an access token for an admin user as it stands now, issued so long ago."""
    find = "SELECT admin_id, upper(role), token_epoch FROM admin_user WHERE username = %s"
    with psycopg.connect(dsn) as conn:
        ((admin_id, role, token_epoch),) = conn.execute(find, (username,))
        session_id = begin_session(conn, admin_id)
    caller = Caller(
        admin_id=admin_id, username=username, role=Role[role], token_epoch=token_epoch, session_id=session_id
    )
    return AccessTokens(KEYS.tokens, clock=lambda: datetime.now(UTC) - age).issue(caller).text


def begin_session(conn: psycopg.Connection[Any], admin_id: int) -> UUID:
    """Begin a session of an admin user, whose refresh token nobody knows, and return its id."""
    session_id = uuid4()
    insert = """
        INSERT INTO refresh_tokens (token_hash, family_id, admin_id, create_time, expire_time)
        VALUES (%s, %s, %s, now(), now() + interval '30 days')
    """
    conn.execute(insert, (secrets.token_bytes(32), session_id, admin_id))
    return session_id


class Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Puts an access token on every call."""

    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    def _authorized(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=(*(details.metadata or ()), *self._metadata)), request)

    intercept_unary_unary = _authorized  # type: ignore[assignment]
    intercept_stream_unary = _authorized  # type: ignore[assignment]
    intercept_unary_stream = _authorized  # type: ignore[assignment]
    intercept_stream_stream = _authorized  # type: ignore[assignment]
