"""Where Redis is: one server, a primary that Sentinels know, or a cluster. Reads REDIS_URL and makes clients for it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeAlias, cast
from urllib.parse import parse_qsl, unquote

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

Client: TypeAlias = "redis.Redis | redis.RedisCluster"

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
# The options of a URL: the certificates of TLS, and who logs in to the Sentinels.
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})

_URL = re.compile(r"(?P<scheme>[a-z+]+)://(?:(?P<login>[^/]*)@)?(?P<hosts>[^/?]*)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?")


class _Kind(Enum):
    SERVER = ""
    SENTINEL = "+sentinel"
    CLUSTER = "+cluster"
    SOCKET = "unix"


_Endpoint: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """What REDIS_URL says. Its text form shows no password.

    redis://[user:password@]host[:6379][/db], or rediss:// for TLS
    unix://[user:password@]/path/to/socket[?db=0]
    redis+sentinel://[user:password@]host[:26379],host.../service[/db]
    redis+cluster://[user:password@]host[:6379],host...
    """

    kind: _Kind
    endpoints: tuple[_Endpoint, ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> "RedisAddress":
        """Read a URL; `ValueError` says what is wrong and what would be right, and repeats nothing that was given."""
        parts = _URL.fullmatch(url)
        if parts is None:
            raise ValueError(_FORMS)
        kind, tls = _kind(parts["scheme"])
        endpoints = _endpoints(kind, parts["hosts"])
        username, password = _login(parts["login"] or "")
        options = dict(parse_qsl(parts["query"] or "", keep_blank_values=True))
        address = _Path.of(kind, parts["path"] or "", options.pop("db", ""))
        _check_options(options, kind=kind, tls=tls)
        return cls(
            kind=kind,
            endpoints=endpoints,
            path=address.socket,
            service=address.service,
            db=address.db,
            tls=tls,
            username=username,
            password=password,
            options=options,
        )

    def connect(self, *, timeout_s: float) -> Client:
        """Make a client that waits so long for each answer, and tries nothing twice. Errors: those of redis-py."""
        common = {"username": self.username, "password": self.password, **_hasty(timeout_s), **self._tls()}
        makers: Mapping[_Kind, Callable[[dict[str, Any]], Client]] = {
            _Kind.SERVER: self._server,
            _Kind.SOCKET: lambda common: redis.Redis(unix_socket_path=self.path, db=self.db, **common),
            _Kind.SENTINEL: self._watched,
            _Kind.CLUSTER: self._cluster,
        }
        return makers[self.kind](common)

    # Any: redis-py takes its many options by keyword.
    def _server(self, common: dict[str, Any]) -> Client:
        ((host, port),) = self.endpoints
        return redis.Redis(host=host, port=port, db=self.db, **common)

    def _watched(self, common: dict[str, Any]) -> Client:
        login = {name.removeprefix("sentinel_"): self.options[name] for name in _SENTINEL_OPTIONS & self.options.keys()}
        sentinels = Sentinel(  # type: ignore[no-untyped-call]
            self.endpoints,
            sentinel_kwargs={**_hasty(common["socket_timeout"]), **self._tls(), **login},
            db=self.db,
            **common,
        )
        # Any: the published types say less than the class, which is redis.Redis unless another one is given.
        return cast(redis.Redis, sentinels.master_for(self.service))  # type: ignore[no-untyped-call]

    def _cluster(self, common: dict[str, Any]) -> Client:
        nodes = [ClusterNode(host, port) for host, port in self.endpoints]  # type: ignore[no-untyped-call]
        retry = common.pop("retry")
        return redis.RedisCluster(startup_nodes=nodes, retry=retry, dynamic_startup_nodes=False, **common)

    def _tls(self) -> dict[str, Any]:
        if not self.tls:
            return {}
        options: dict[str, Any] = {name: self.options[name] for name in _TLS_OPTIONS & self.options.keys()}
        if "ssl_check_hostname" in options:
            options["ssl_check_hostname"] = options["ssl_check_hostname"] == "true"
        return {"ssl": True, **options}


_FORMS = (
    "must be redis://host, rediss://host, unix:///path, redis+sentinel://host,host/service or"
    " redis+cluster://host,host, each with user:password@ before the host where it is needed,"
    " special characters percent-encoded"
)


def _hasty(timeout_s: float) -> dict[str, Any]:
    """Say that nobody waits: the defaults of redis-py cost seconds a call while Redis is down."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        # Replies as every Redis since 2.0 gives them, and no second round trip to find out what the server can do.
        "protocol": 2,
        "driver_info": None,
    }


def _kind(scheme: str) -> tuple[_Kind, bool]:
    if scheme == "unix":
        return _Kind.SOCKET, False
    for name, tls in (("rediss", True), ("redis", False)):
        if scheme.startswith(name) and scheme.removeprefix(name) in {kind.value for kind in _Kind}:
            return _Kind(scheme.removeprefix(name)), tls
    raise ValueError(_FORMS)


def _login(text: str) -> tuple[str | None, str | None]:
    username, colon, password = text.partition(":")
    return unquote(username) or None, unquote(password) if colon else None


def _endpoints(kind: _Kind, text: str) -> tuple[_Endpoint, ...]:
    if kind is _Kind.SOCKET:
        if text:
            raise ValueError("unix:// takes a path and no host: unix:///path/to/socket")
        return ()
    hosts = [_HOST.fullmatch(host) for host in text.split(",")]
    found = [host for host in hosts if host]
    if len(found) < len(hosts):
        raise ValueError(
            "a host must be written host or host:port, with a comma between two, and special characters of a password"
            " percent-encoded"
        )
    if kind is _Kind.SERVER and len(found) > 1:
        raise ValueError("redis:// takes one host; several are redis+sentinel:// or redis+cluster://")
    default = _SENTINEL_PORT if kind is _Kind.SENTINEL else _PORT
    return tuple((host["name"].strip("[]"), _port(host["port"], default)) for host in found)


def _port(text: str | None, default: int) -> int:
    port = int(text) if text else default
    if not 0 < port < 1 << 16:
        raise ValueError("a port must be 1 to 65535")
    return port


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """What the path of a URL says."""

    socket: str = ""
    service: str = ""
    db: int = 0

    @classmethod
    def of(cls, kind: _Kind, path: str, db_option: str) -> "_Path":
        if kind is _Kind.SOCKET:
            if not path.strip("/"):
                raise ValueError("unix:// needs the path of a socket: unix:///path/to/socket")
            return cls(socket=unquote(path), db=_db(db_option))
        words = [unquote(word) for word in path.split("/") if word]
        if kind is _Kind.SENTINEL:
            if not words:
                raise ValueError("redis+sentinel:// needs the name of the service: redis+sentinel://host,host/service")
            return cls(service=words[0], db=_db(*words[1:], db_option))
        found = _db(*words, db_option)
        if kind is _Kind.CLUSTER and found:
            raise ValueError("a Redis cluster has no database but 0")
        return cls(db=found)


def _db(*words: str) -> int:
    given = [word for word in words if word]
    if len(given) > 1 or any(not (word.isascii() and word.isdigit()) for word in given):
        raise ValueError("the database must be one number, such as /0")
    return int(given[0]) if given else 0


def _check_options(options: Mapping[str, str], *, kind: _Kind, tls: bool) -> None:
    known = (_TLS_OPTIONS if tls else frozenset()) | (_SENTINEL_OPTIONS if kind is _Kind.SENTINEL else frozenset())
    if not options.keys() <= known:
        allowed = ", ".join(sorted(known)) or "none here"
        raise ValueError(f"has an option that is not known; there are: {allowed}")
