"""The server that a client command talks to: which one, a channel to it, and what its refusals mean."""

import functools
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from gatekeeper_grpc.cli.client.certificate import (
    CA_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    ClientCertificate,
    read_roots,
)
from gatekeeper_grpc.cli.client.connections import why_unreachable
from gatekeeper_grpc.cli.client.contexts import Contexts
from gatekeeper_grpc.cli.client.failures import LOG_IN, Failure, failure_of
from gatekeeper_grpc.cli.client.options import CONTEXT, context_option, kept_option, typed
from gatekeeper_grpc.config.listen_address import ListenAddress

if TYPE_CHECKING:
    import grpc

Function = TypeVar("Function", bound=Callable[..., Any])

TIMEOUT_S = 10.0
"""How long a command waits for an answer."""
_DEFAULT = "127.0.0.1:50051"
_SERVER_VARIABLE, _CONTEXT_VARIABLE = "GATEKEEPER_SERVER", "GATEKEEPER_CONTEXT"
_TLS, _PLAIN = "https://", "http://"
_TLS_PORT = 443
_SERVER, _CA, _CERT, _KEY, _VERBOSE = "--server", "--tls-ca", "--client-cert", "--client-key", "--verbose"
_FILES = {_CA: CA_VARIABLE, _CERT: CERT_VARIABLE, _KEY: KEY_VARIABLE}
TLS_FILES = {_CA: "tls_ca", _CERT: "client_cert", _KEY: "client_key"}
"""Fields of a context, by the options that have them."""
_FORMS = "must be host:port, unix:/path, or https://host[:port] for TLS"
# Those that call a server.
_COMMAND = re.compile(r"`(gatekeeper (?!context |serve )[^`]+)(?<!--help)(?<!--version)`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A Gatekeeper server."""

    target: str
    """What gRPC connects to."""
    is_tls: bool = False
    context: str = ""
    """The name of its context; empty: it was named by its address."""
    named: str = ""
    """The options that name it, for a command that follows; empty: that finds it by itself."""
    roots: bytes | None = None
    """Certificates, of which one must have issued the server's; None: those that gRPC brings."""
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

    @property
    def kept_as(self) -> str:
        """The name under which its login is kept."""
        return self.context or self.target

    def __str__(self) -> str:
        return f"{self.context} ({self.target})" if self.context else self.target

    def announce(self) -> None:
        """Say where a change is going to be made, if a context has chosen the server."""
        if self.context:
            click.echo(f"on {self}", err=True)

    @contextmanager
    def channel(self, *, log_in: str = LOG_IN) -> "Iterator[grpc.Channel]":
        """Open a channel for the length of a block; an error of a call in it becomes a failure of the command.

        Args:
            log_in: What to do if the server refuses the credentials.
        """
        import grpc  # noqa: PLC0415

        # A proxy of the environment is for web pages: it would be asked for 127.0.0.1, too.
        options = [("grpc.enable_http_proxy", 0)]
        if self.is_tls:
            own = (self.certificate.key, self.certificate.chain) if self.certificate else (None, None)
            channel = grpc.secure_channel(self.target, grpc.ssl_channel_credentials(self.roots, *own), options)
        else:
            channel = grpc.insecure_channel(self.target, options)
        with channel:
            try:
                yield channel
            except grpc.RpcError as exc:
                raise failure_of(
                    exc,
                    str(self),
                    why_unreachable=self._why_unreachable,
                    timeout_s=TIMEOUT_S,
                    log_in=log_in,
                    verbose=self.is_verbose,
                ) from None

    def _why_unreachable(self, said: str) -> tuple[str, str]:
        return why_unreachable(said, str(self), self.target, is_tls=self.is_tls)


def server_of(files: Mapping[str, str], address: str, **more: Any) -> Server:
    """Return the server of an address, and of the files of certificates by the names of their options.

    Raises:
        click.UsageError: The address or a file cannot be used.
    """
    try:
        server = Server.parse(address.strip())
    except ValueError:
        raise click.BadParameter(f"{address!r} {_FORMS}", param_hint=f"'{_SERVER}'") from None
    if files and not server.is_tls:
        option = min(files)
        raise click.UsageError(f"{option} ({_FILES[option]}) needs a server with TLS: --server https://{server.target}")
    try:
        roots = read_roots(files[_CA]) if _CA in files else None
    except ValueError as exc:
        raise click.UsageError(f"{_CA}: {exc}") from None
    return replace(server, roots=roots, certificate=_certificate(files), **more)


def _certificate(files: Mapping[str, str]) -> ClientCertificate | None:
    cert, key = files.get(_CERT), files.get(_KEY)
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing = f"{_CERT} ({CERT_VARIABLE})" if cert is None else f"{_KEY} ({KEY_VARIABLE})"
        raise click.UsageError(f"{missing} is missing: a certificate of a client takes both files")
    try:
        return ClientCertificate.read(cert, key)
    except ValueError as exc:
        raise click.UsageError(f"{_CERT}, {_KEY}: {exc}") from None


def _server(context: click.Context, parameter: click.Parameter, address: str | None) -> Server:
    """Find the server: what was typed comes before variables, and these before the context in use."""
    is_typed = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    if address and is_typed:
        typed(context)[_SERVER] = address
    name = _context_of(context, address)
    given = {option: context.meta[option] for option in _FILES if option in context.meta}
    more = {"named": _words(typed(context)), "is_verbose": _VERBOSE in context.meta}
    if not name:
        return server_of(given, address or _DEFAULT, **more)
    kept = Contexts.of_user().find(name)
    files = {option: file for option, field in TLS_FILES.items() if (file := getattr(kept, field))}
    return server_of(files | given, kept.server, context=name, **more)


def _context_of(context: click.Context, address: str | None) -> str:
    """Return the name of the context that counts; empty: the address does, or the default."""
    names, name = typed(context), str(context.meta.get(CONTEXT, ""))
    if _SERVER in names and CONTEXT in names:
        raise click.UsageError(f"{_SERVER} or {CONTEXT}, not both")
    if _SERVER in names:
        return ""
    if address and name and CONTEXT not in names:
        raise click.UsageError(f"{_SERVER_VARIABLE} and {_CONTEXT_VARIABLE} are both set: unset one")
    return name or ("" if address else Contexts.of_user().in_use)


def _words(options: Mapping[str, str]) -> str:
    named = {option: value for option, value in options.items() if option != _VERBOSE}
    return "".join(f" {option} {shlex.quote(value)}" for option, value in named.items())


def _file_option(name: str, meaning: str) -> Callable[[Function], Function]:
    return kept_option(name, envvar=_FILES[name], show_envvar=True, metavar="FILE", help=meaning)


def tls_options(function: Function) -> Function:
    """Give a command the options that are files of certificates; they are kept."""
    function = _file_option(_KEY, "Private key of --client-cert in PEM.")(function)
    function = _file_option(_CERT, "Certificate to show to a server that asks for one, in PEM.")(function)
    return _file_option(_CA, "Certificates in PEM, of which one has issued the server's.  [default: public ones]")(
        function
    )


def server_option(function: Function) -> Function:
    """Give a command the options that say which server is called, and how; it gets `server`."""

    @functools.wraps(function)
    def with_server(*args: Any, server: Server, **values: Any) -> None:
        # Before grpc is imported. Otherwise its core writes lines of its own to standard error.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            function(*args, server=server, **values)
        except Failure as failure:  # What it tells to run must find the same server.
            failure.hint = _COMMAND.sub(lambda found: f"`{found[1]}{server.named}`", failure.hint)
            raise

    command: Any = kept_option(_VERBOSE, is_flag=True, help="Say all about a failed call.")(with_server)
    command = context_option(envvar=_CONTEXT_VARIABLE, show_envvar=True)(tls_options(command))
    name_it = click.option(
        _SERVER,
        envvar=_SERVER_VARIABLE,
        show_envvar=True,
        metavar="ADDRESS",
        callback=_server,
        help=f"host:port, unix:/path, or https://host[:port].  [default: the context in use, else {_DEFAULT}]",
    )
    return name_it(command)  # type: ignore[no-any-return]
