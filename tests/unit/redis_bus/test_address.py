"""REDIS_URL: every way to write it, and a clear error for a wrong one that shows no password."""

from typing import Any

import pytest
from redis.sentinel import SentinelConnectionPool

from gatekeeper_grpc.config.settings import SettingsError
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.redis_bus.address import RedisAddress
from tests.support.servers import KEYS, settings_for_tests

CANARY = "c4nary"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache", {"host": "cache", "port": 6379, "db": 0, "password": None}),
        ("redis://10.0.0.1:7000/3", {"host": "10.0.0.1", "port": 7000, "db": 3}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000}),
        # pragma: allowlist nextline secret
        ("redis://me:p%40ss%2Fw@cache", {"host": "cache", "username": "me", "password": "p@ss/w"}),
        ("redis://:secret@cache", {"host": "cache", "password": "secret"}),
        ("unix:///run/redis.sock?db=2", {"path": "/run/redis.sock", "db": 2}),
        # pragma: allowlist nextline secret
        ("unix://me:pw@/run/redis.sock", {"path": "/run/redis.sock", "username": "me", "password": "pw"}),
        ("rediss://cache?ssl_check_hostname=false", {"host": "cache", "check_hostname": False}),
    ],
)
def test_every_form_of_one_server_is_read(url: str, expected: dict[str, Any]) -> None:
    connection = RedisAddress(url).connect(timeout_s=0.1).connection_pool.make_connection()

    assert {name: getattr(connection, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "hosts", "login", "tls"),
    [
        ("redis+sentinel://one,two:7000/primary", [("one", 26379), ("two", 7000)], (None, None), False),
        ("redis+sentinel://:pw@one/primary/1?sentinel_password=spw", [("one", 26379)], ("pw", "spw"), False),
        ("rediss+sentinel://one/primary", [("one", 26379)], (None, None), True),
    ],
)
def test_sentinels_are_read(
    url: str, hosts: list[tuple[str, int]], login: tuple[str | None, str | None], tls: bool
) -> None:
    pool = RedisAddress(url).connect(timeout_s=0.1).connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    sentinels = [sentinel.get_connection_kwargs() for sentinel in pool.sentinel_manager.sentinels]

    assert [(sentinel["host"], sentinel["port"]) for sentinel in sentinels] == hosts
    assert (pool.connection_kwargs.get("password"), sentinels[0].get("password")) == login
    assert pool.service_name == "primary"
    assert ("SSL" in pool.connection_class.__name__) is tls


@pytest.mark.parametrize("url", ["redis://cache?socket_timeout=60", "redis+sentinel://one/primary?socket_timeout=60"])
def test_no_option_of_the_url_makes_calls_wait(url: str) -> None:
    assert RedisAddress(url).connect(timeout_s=0.1).get_connection_kwargs()["socket_timeout"] == 0.1


@pytest.mark.parametrize(
    "url",
    [
        CANARY,
        f"http://{CANARY}@cache",
        f"redis+ring://:{CANARY}@cache",
        f"redis://:{CANARY}@cache:port",
        f"redis://:{CANARY}@cache:99999",
        f"redis://:{CANARY}@",
        f"redis://:{CANARY}@one,two",
        f"redis://:{CANARY}@cache/primary",
        f"redis://:{CANARY}@cache/1/2",
        f"redis://:{CANARY}@cache?db={CANARY}",
        f"rediss://:{CANARY}@cache?ssl_ca={CANARY}",
        f"redis+sentinel://:{CANARY}@one,two",
        f"redis+sentinel://:{CANARY}@one,:7000/primary",
        f"redis+sentinel://:{CANARY}@one/primary?ssl_ca={CANARY}",
        f"unix://:{CANARY}@host/run/redis.sock",
        f"unix://:{CANARY}@",
        f"redis://:pa/{CANARY}@cache",
    ],
)
def test_a_wrong_url_is_refused_with_the_right_forms_and_no_password(url: str) -> None:
    refusal = refused(url)

    assert refusal.startswith("REDIS_URL must be redis://host")
    assert CANARY not in refusal


def test_a_cluster_is_refused_with_that_reason() -> None:
    refusal = refused(f"redis+cluster://:{CANARY}@one,two")

    assert "names a Redis Cluster, which is not supported" in refusal
    assert CANARY not in refusal


def refused(url: str) -> str:
    with pytest.raises(SettingsError) as refusal:
        GatekeeperServer(settings_for_tests(REDIS_URL=url), dsn="postgresql://127.0.0.1:1/nowhere", keys=KEYS)
    return str(refusal.value)


def test_no_text_form_shows_a_password() -> None:
    url = f"redis+sentinel://:{CANARY}@one/primary?sentinel_password={CANARY}"

    assert CANARY not in repr(RedisAddress(url))
    assert CANARY not in repr(settings_for_tests(REDIS_URL=url))
