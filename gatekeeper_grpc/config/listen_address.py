"""The address that a server listens on: host:port, or the path of a Unix socket."""

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

_UNIX = "unix:"
# What the kernel takes (sun_path), without its NUL.
_LONGEST_PATH_BYTES = 107
_LAST_PORT = 65_535
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_FORMS = "must be host:port, such as 127.0.0.1:50051"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    """A valid address: either `path` is set, or `host` and `port` are. Its text form is what gRPC takes."""

    host: str = ""
    """A name or an IP address, without brackets."""
    port: int = 0
    """0 to 65535; 0 is any free port."""
    path: str = ""
    """The path of a Unix socket."""

    @classmethod
    def parse(cls, text: str) -> "ListenAddress":
        """Read host:port, [IPv6]:port, or unix:path. No name is looked up.

        Raises:
            ValueError: It is none of these. The message says what would be right, as "must be ...".
        """
        if text.startswith(_UNIX):
            return cls(path=_path(text.removeprefix(_UNIX)))
        host, colon, port = text.rpartition(":")
        if "://" in text or "/" in text:
            raise ValueError(f"{_FORMS}, or unix:/path, and no URL")
        if not colon:
            raise ValueError(_advice_without_colon(text))
        return cls(host=_host(host, port), port=_port(port))

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket, which has no port."""
        return bool(self.path)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it: a Unix socket, or loopback."""
        try:
            return self.is_unix or ip_address(self.host).is_loopback
        except ValueError:  # A name.
            return self.host == "localhost"

    def with_port(self, port: int) -> "ListenAddress":
        """Return the same host with another port."""
        return replace(self, port=port)

    def overlaps(self, other: "ListenAddress") -> bool:
        """Return whether two servers cannot have both addresses, as far as their texts tell."""
        if self.is_unix or other.is_unix:
            return self.path == other.path
        hosts = {self.host, other.host}
        is_shared = len(hosts) == 1 or bool(hosts & {"0.0.0.0", "::"})  # noqa: S104 # nosec B104
        return 0 < self.port == other.port and is_shared

    def __str__(self) -> str:
        if self.is_unix:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _path(text: str) -> str:
    path = text.removeprefix("//") if text.startswith("///") else text
    if not path or path.startswith("//") or len(path.encode()) > _LONGEST_PATH_BYTES:
        raise ValueError(f"must be unix:/path, with a path of 1 to {_LONGEST_PATH_BYTES} bytes")
    return path


def _advice_without_colon(text: str) -> str:
    if text.isascii() and text.isdigit():
        return f"must name a host before the port: {_with_hosts(text)}"
    return f"{_FORMS}: the port is missing"


def _with_hosts(port: str) -> str:
    return f"127.0.0.1:{port} for this machine alone, 0.0.0.0:{port} for all its IPv4 addresses, [::]:{port} for all"


def _host(host: str, port: str) -> str:
    if host in {"", "*"}:
        raise ValueError(f"must name a host: {_with_hosts(port)}")
    if host.startswith("[") and host.endswith("]"):
        return _ip(IPv6Address, host[1:-1], "IPv6")
    if ":" in host:
        raise ValueError(f"{_FORMS}, with an IPv6 address in brackets, such as [::1]:50051")
    if re.fullmatch(r"[\d.]+", host):
        return _ip(IPv4Address, host, "IPv4")
    if not _NAME.fullmatch(host):
        raise ValueError(f"{_FORMS}: this host has characters that no host has")
    return host


def _ip(kind: type[IPv4Address | IPv6Address], text: str, name: str) -> str:
    try:
        return str(kind(text))
    except ValueError:
        raise ValueError(f"{_FORMS}: this host is no {name} address") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(_LAST_PORT)) or int(text) > _LAST_PORT:
        raise ValueError(f"{_FORMS}, with a port from 0 (any free one) to {_LAST_PORT}")
    return int(text)
