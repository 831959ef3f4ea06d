"""Why a server cannot be reached, and what to do about it, from what gRPC says of the connection."""

from gatekeeper_grpc.config.listen_address import ListenAddress

_TIMEOUT_S = 2.0
# The status is UNAUTHENTICATED then, not UNAVAILABLE.
WRONG_NAME = "does not match SSL server name"
_UNKNOWN_HOST = ("errors resolving", "DNS resolution failed", "Domain name not found")


def why_unreachable(said: str, name: str, target: str, *, is_tls: bool) -> tuple[str, str]:
    """Return what is wrong, and what to do next.

    Args:
        said: The words of the status that gRPC has made.
        name: What the server is called in messages.
        target: What gRPC has connected to.
        is_tls: Whether by TLS.
    """
    if any(words in said for words in _UNKNOWN_HOST):
        return f"no server answers at {name}: its host is not known", "check the name for typing errors"
    if "refused" in said or "No such file" in said:
        return f"no server answers at {name}", _start_it(target)
    if is_tls:
        return _why_no_tls(said, name, target)
    if _speaks_tls(target):
        return f"{name} speaks TLS only", f"name it with --server https://{target}"
    return f"{name} has closed the connection", _start_it(target)


def _why_no_tls(said: str, name: str, target: str) -> tuple[str, str]:
    if "WRONG_VERSION_NUMBER" in said:
        return f"{name} speaks no TLS", f"name it with --server {target}"
    if WRONG_NAME in said:
        return f"the certificate of {name} is of another host", "name the server as its certificate does"
    if "expired" in said:
        return f"the certificate of {name} has expired", "have it renewed, and check the clock of this machine"
    if "issuer" in said or "certificate" in said.lower():
        return f"the certificate of {name} is of an unknown issuer", "name the file of the issuer with --tls-ca"
    if "closed" in said or "reset" in said:
        return f"{name} has closed the connection", "if it asks clients for a certificate, name one with --client-cert"
    return f"no server answers at {name}", _start_it(target)


def _start_it(target: str) -> str:
    start = "start one with `gatekeeper serve --demo`" if ListenAddress.parse(target).is_local else "start it"
    return f"{start}, or name another with --server or --context"


def _speaks_tls(target: str) -> bool:
    """Whether the server takes a TLS handshake: of a call without TLS, gRPC learns only that it was cut off."""
    import socket  # noqa: PLC0415
    import ssl  # noqa: PLC0415

    address = ListenAddress.parse(target)
    if address.is_unix:
        return False
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # Nothing is sent.
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((address.host, address.port), _TIMEOUT_S) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except OSError:  # Those of ssl, too.
        return False
