"""The server that a client command talks to: its address, a channel to it, and what its refusals mean."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gatekeeper_grpc.cli.client.certificate import CERT_VARIABLE, KEY_VARIABLE, ClientCertificate
from gatekeeper_grpc.cli.client.failures import LOG_IN, failure_of
from gatekeeper_grpc.config.listen_address import ListenAddress

if TYPE_CHECKING:
    import grpc

Function = TypeVar("Function", bound=Callable[..., Any])

TIMEOUT_S = 10.0
"""How long a command waits for an answer."""
_DEFAULT = "127.0.0.1:50051"
_TLS, _PLAIN = "https://", "http://"
_TLS_PORT = 443
_CERT, _KEY = "--client-cert", "--client-key"
_VERBOSE = "--verbose"
_FORMS = "must be host:port, unix:/path, or https://host[:port] for TLS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A Gatekeeper server."""

    target: str
    """What gRPC connects to; also the name under which its login is kept."""
    is_tls: bool = False
    certificate: ClientCertificate | None = None
    """What the server is shown if it asks for a certificate."""
    is_verbose: bool = False
    """Whether a failure says all that is known of it."""

    @classmethod
    def parse(cls, text: str) -> "Server":
        """Read host:port, unix:path, http://host:port or https://host[:port].

        Raises:
            ValueError: It is none of these.
        """
        is_tls = text.startswith(_TLS)
        address = text.removeprefix(_TLS).removeprefix(_PLAIN).removesuffix("/")
        if is_tls and not address.rpartition(":")[2].isdigit():
            address = f"{address}:{_TLS_PORT}"
        return cls(target=str(ListenAddress.parse(address)), is_tls=is_tls)

    @contextmanager
    def channel(self, *, log_in: str = LOG_IN) -> "Iterator[grpc.Channel]":
        """Open a channel for the length of a block; an error of a call in it becomes a failure of the command.

        Args:
            log_in: What to do if the server refuses the credentials.
        """
        # Otherwise gRPC's core writes lines of its own to standard error.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc  # noqa: PLC0415

        # A proxy of the environment is for web pages: it would be asked for 127.0.0.1, too.
        options = [("grpc.enable_http_proxy", 0)]
        if self.is_tls:
            own = (self.certificate.key, self.certificate.chain) if self.certificate else (None, None)
            channel = grpc.secure_channel(self.target, grpc.ssl_channel_credentials(None, *own), options)
        else:
            channel = grpc.insecure_channel(self.target, options)
        with channel:
            try:
                yield channel
            except grpc.RpcError as exc:
                raise failure_of(
                    exc, self.target, timeout_s=TIMEOUT_S, log_in=log_in, verbose=self.is_verbose
                ) from None


def _server(context: click.Context, _parameter: click.Parameter, value: str) -> Server:
    try:
        server = Server.parse(value.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} {_FORMS}") from None
    return replace(server, certificate=_certificate(context.meta, server), is_verbose=_VERBOSE in context.meta)


def _certificate(files: Mapping[str, str], server: Server) -> ClientCertificate | None:
    cert, key = files.get(_CERT), files.get(_KEY)
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing = f"{_CERT} ({CERT_VARIABLE})" if cert is None else f"{_KEY} ({KEY_VARIABLE})"
        raise click.UsageError(f"{missing} is missing: a certificate of a client takes both files")
    if not server.is_tls:
        raise click.UsageError(f"{_CERT} ({CERT_VARIABLE}) needs a server with TLS: --server https://{server.target}")
    try:
        return ClientCertificate.read(cert, key)
    except ValueError as exc:
        raise click.UsageError(f"{_CERT}, {_KEY}: {exc}") from None


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a value for `_server`, which runs later: the option is eager."""
    if value:
        context.meta[parameter.opts[0]] = value


def _file_option(name: str, variable: str, meaning: str) -> Callable[[Function], Function]:
    return click.option(
        name,
        envvar=variable,
        show_envvar=True,
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_keep,
        help=meaning,
    )


def server_option(function: Function) -> Function:
    """Give a command the options --server and --verbose, and those of the certificate that it shows."""
    function = click.option(
        _VERBOSE, is_flag=True, is_eager=True, expose_value=False, callback=_keep, help="Say all about a failed call."
    )(function)
    function = _file_option(_KEY, KEY_VARIABLE, "Private key of --client-cert in PEM.")(function)
    function = _file_option(_CERT, CERT_VARIABLE, "Certificate to show to a server that asks for one, in PEM.")(
        function
    )
    return click.option(
        "--server",
        envvar="GATEKEEPER_SERVER",
        default=_DEFAULT,
        show_default=True,
        show_envvar=True,
        metavar="ADDRESS",
        callback=_server,
        help="host:port, unix:/path, or https://host[:port].",
    )(function)
