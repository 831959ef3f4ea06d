"""Reads REDIS_URL, and makes clients for it: of one server, or of the primary that Sentinels name."""

import re
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

_SENTINEL_PORT = 26379
# redis-py ignores what it does not understand, such as a database that is no number.
_DIRECT = re.compile(
    r"rediss?://([^@/]*@)?(\[[0-9A-Fa-f:.]+\]|[^:,/?@\[\]]+)(:\d+)?(/\d*)?(\?.*)?|unix://([^@/]*@)?/[^?]+(\?.*)?"
)
_SENTINEL = re.compile(
    r"(?P<scheme>rediss?)\+sentinel://(?P<login>[^@/]*@)?(?P<hosts>[^@/?]+)/(?P<service>[^/?]+)(?P<rest>(/\d+)?(\?.*)?)"
)
_FORMS = (
    "must be redis://host[:port][/db], rediss://host, unix:///path or redis+sentinel://host,host/service[/db], each"
    " with user:password@ before the host where it is needed, special characters percent-encoded, and options of"
    " redis-py after a '?'"
)
_NO_CLUSTER = "names a Redis Cluster, which is not supported: name one server, or Sentinels with redis+sentinel://"


class RedisAddress:
    """A valid REDIS_URL, which may hold passwords: no text form shows any part of it.

    redis://[user:password@]host[:6379][/db], or rediss:// for TLS
    unix://[user:password@]/path/to/socket[?db=0]
    redis+sentinel://[user:password@]host[:26379],host.../service[/db][?sentinel_password=...]
    """

    def __init__(self, url: str) -> None:
        """Check a URL, without connecting.

        Raises:
            ValueError: the URL is wrong. The message says how to write it, and repeats no part of it.
        """
        if re.match(r"rediss?\+cluster:", url):
            raise ValueError(_NO_CLUSTER)
        if not (_DIRECT.fullmatch(url) or _SENTINEL.fullmatch(url)):
            raise ValueError(_FORMS)
        self._url = url
        try:
            self.connect(timeout_s=1.0).connection_pool.make_connection()  # Refuses options that it does not know.
        except (LookupError, TypeError, ValueError, redis.RedisError):
            raise ValueError(_FORMS) from None

    def connect(self, *, timeout_s: float) -> redis.Redis:
        """Make a client, unconnected, that waits so long for each answer, and tries nothing twice."""
        sentinels = _SENTINEL.fullmatch(self._url)
        if sentinels:
            return _primary(sentinels, **_fail_fast(timeout_s))
        client = redis.Redis.from_url(self._url, **_fail_fast(timeout_s))
        client.connection_pool.connection_kwargs.update(_fail_fast(timeout_s))  # They win over options of the URL.
        return client


# Any: redis-py takes its many options by keyword.
def _primary(url: re.Match[str], **fail_fast: Any) -> redis.Redis:
    """Make a client of the primary that Sentinels name."""
    hosts = [_options(f"redis://{host}") for host in url["hosts"].split(",")]
    options = _options(f"{url['scheme']}://{url['login'] or ''}ignored{url['rest']}") | fail_fast
    del options["host"]
    options["ssl"] = options.pop("connection_class", None) is not None
    login = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    shared = {name: value for name, value in options.items() if name.startswith("ssl")}
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        [(host["host"], host.get("port", _SENTINEL_PORT)) for host in hosts],
        sentinel_kwargs={**fail_fast, **shared, **login},
        **options,
    )
    # The published types say less than the class, which is redis.Redis unless another one is given.
    return cast(redis.Redis, sentinels.master_for(url["service"]))  # type: ignore[no-untyped-call]


def _options(url: str) -> dict[str, Any]:
    return dict(parse_url(url))  # type: ignore[no-untyped-call]


def _fail_fast(timeout_s: float) -> dict[str, Any]:
    """Return options with which no call waits long: the defaults of redis-py cost seconds a call during an outage."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        # Replies as every Redis since 2.0 gives them, and no second round trip to find out what the server can do.
        "protocol": 2,
        "driver_info": None,
    }
