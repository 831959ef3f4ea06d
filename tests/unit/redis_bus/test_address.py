"""REDIS_URL: every way to write where Redis is, and a clear word about a wrong one that never tells the password."""

from typing import Any

import pytest

from gatekeeper_grpc.config import SettingsError
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.redis_bus.address import RedisAddress, _Kind
from tests.support.servers import KEYS, settings_for_tests

SERVER, SENTINEL, CLUSTER, SOCKET = _Kind.SERVER, _Kind.SENTINEL, _Kind.CLUSTER, _Kind.SOCKET
CANARY = "c4nary"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache", {"kind": SERVER, "endpoints": (("cache", 6379),)}),
        ("redis://10.0.0.1:7000/3", {"kind": SERVER, "endpoints": (("10.0.0.1", 7000),), "db": 3}),
        ("redis://[::1]:7000", {"kind": SERVER, "endpoints": (("::1", 7000),)}),
        (
            "redis://me:p%40ss%2Fw@cache",
            {"kind": SERVER, "endpoints": (("cache", 6379),), "username": "me", "password": "p@ss/w"},
        ),
        ("redis://:secret@cache", {"kind": SERVER, "endpoints": (("cache", 6379),), "password": "secret"}),
        (
            "rediss://cache?ssl_ca_certs=/ca.pem",
            {"kind": SERVER, "endpoints": (("cache", 6379),), "tls": True, "options": {"ssl_ca_certs": "/ca.pem"}},
        ),
        ("unix:///run/redis.sock?db=2", {"kind": SOCKET, "path": "/run/redis.sock", "db": 2}),
        (
            "unix://me:pw@/run/redis.sock",
            {"kind": SOCKET, "path": "/run/redis.sock", "username": "me", "password": "pw"},
        ),
        (
            "redis+sentinel://:pw@one,two:7000/primary/1?sentinel_password=spw",
            {
                "kind": SENTINEL,
                "endpoints": (("one", 26379), ("two", 7000)),
                "service": "primary",
                "db": 1,
                "password": "pw",
                "options": {"sentinel_password": "spw"},
            },
        ),
        (
            "rediss+sentinel://one/primary",
            {"kind": SENTINEL, "endpoints": (("one", 26379),), "service": "primary", "tls": True},
        ),
        ("redis+cluster://one,two:7000", {"kind": CLUSTER, "endpoints": (("one", 6379), ("two", 7000))}),
        ("rediss+cluster://one/0", {"kind": CLUSTER, "endpoints": (("one", 6379),), "tls": True}),
    ],
)
def test_every_form_is_read(url: str, expected: dict[str, Any]) -> None:
    assert RedisAddress.parse(url) == RedisAddress(**expected)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (CANARY, "must be redis://host"),
        (f"http://{CANARY}@cache", "must be redis://host"),
        (f"redis+ring://:{CANARY}@cache", "must be redis://host"),
        (f"redis://:{CANARY}@cache:port", "a host must be written"),
        (f"redis://:{CANARY}@cache:99999", "a port must be"),
        (f"redis://:{CANARY}@", "a host must be written"),
        (f"redis://:{CANARY}@one,two", "several are redis+sentinel://"),
        (f"redis://:{CANARY}@cache/primary", "the database must be one number"),
        (f"redis://:{CANARY}@cache/1/2", "the database must be one number"),
        (f"redis://:{CANARY}@cache?password={CANARY}", "an option that is not known; there are: none here"),
        (f"rediss://:{CANARY}@cache?ssl_ca={CANARY}", "there are: ssl_ca_certs"),
        (f"redis+sentinel://:{CANARY}@one,two", "needs the name of the service"),
        (f"redis+cluster://:{CANARY}@one/1", "no database but 0"),
        (f"unix://:{CANARY}@host/run/redis.sock", "takes a path and no host"),
        (f"unix://:{CANARY}@", "needs the path"),
        (f"redis://:pa/{CANARY}@cache", "a host must be written"),
    ],
)
def test_a_wrong_url_is_refused_with_the_variable_and_what_would_be_right_and_nothing_that_was_given(
    url: str, words: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        GatekeeperServer(settings_for_tests(REDIS_URL=url), dsn="", keys=KEYS)

    assert str(refused.value).startswith("REDIS_URL ")
    assert words in str(refused.value)
    assert CANARY not in str(refused.value)


def test_no_text_form_shows_a_password() -> None:
    url = f"redis+sentinel://:{CANARY}@one/primary?sentinel_password={CANARY}"

    assert CANARY not in repr(RedisAddress.parse(url))
    assert CANARY not in repr(settings_for_tests(REDIS_URL=url))
