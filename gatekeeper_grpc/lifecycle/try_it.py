"""What `make run` prints once it serves: where, who may log in, and four lines to paste into a shell."""

import shlex
from pathlib import Path

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.config.program import program
from gatekeeper_grpc.config.settings import Settings, variable_of
from gatekeeper_grpc.domain.admin_user import FIRST_ADMIN
from gatekeeper_grpc.lifecycle.demo import DEMO_FLAG, Demo
from gatekeeper_grpc.lifecycle.secrets_file import ADMIN_PASSWORD

_README = Path(__file__).parents[2] / "README.md"
# Of a server that listens on all addresses.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # Not to listen on.  # noqa: S104 # nosec B104


def try_it(settings: Settings, demo: Demo, *, port: int, admin_port: int = 0) -> str:
    """Return the block: few lines, because long paths take several rows of a terminal. Prose is a comment to a shell.

    Args:
        settings: What the server serves with.
        demo: What its database holds.
        port: The port that it serves on; 0 with a Unix socket.
        admin_port: That of GATEKEEPER_ADMIN_LISTEN; 0 without it, and with a Unix socket.
    """
    address = _reachable(settings.listen, port)
    admin = address if settings.admin_listen is None else _reachable(settings.admin_listen, admin_port)
    lines = [
        "",
        f"# Gatekeeper serves on {address}. Ctrl-C stops it.",
        f"# Admin user: {FIRST_ADMIN}. Password: {_password(settings, demo)}",
        "# Try it in another shell:",
        *_commands(
            settings,
            demo,
            server=_server_option(address, has_tls=settings.has_tls),
            admin=_server_option(admin, has_tls=settings.has_tls),
        ),
        f"# Docs: {_README if _README.exists() else 'README.md and docs/ of the source distribution'}",
    ]
    return "\n".join(lines)


def _password(settings: Settings, demo: Demo) -> str:
    if demo.accepts_kept_password:
        return f"kept in {_kept(settings)}"
    return f"that of {variable_of('admin_password')}" if demo.accepts_set_password else "the one that was set since"


def _kept(settings: Settings) -> Path:
    return settings.data_dir.absolute() / ADMIN_PASSWORD


def _commands(settings: Settings, demo: Demo, *, server: str, admin: str) -> list[str]:
    gatekeeper, flag = program(), DEMO_FLAG.key
    login = f"{gatekeeper} login{admin}"
    if demo.accepts_kept_password:
        login = f"{login} --password-stdin < {shlex.quote(str(_kept(settings)))}"
    elif demo.accepts_set_password:
        login = f'printf %s "${variable_of("admin_password")}" | {login} --password-stdin'
    change = f"set-rollout {flag} 50" if demo.has_flag else f"create {flag} --enabled --rollout 50"
    return [
        f"{gatekeeper} evaluate alice{server}",
        login,
        f"{gatekeeper} flags {change}{admin}",
        f"{gatekeeper} evaluate alice --explain{server}",
    ]


def _reachable(listen: ListenAddress, port: int) -> ListenAddress:
    """Return the address for a client on this machine, whose shell may stand in another directory."""
    if listen.is_unix:
        return ListenAddress(path=str(Path(listen.path).absolute()))
    return ListenAddress(host=_LOOPBACK.get(listen.host, listen.host), port=port)


def _server_option(address: ListenAddress, *, has_tls: bool) -> str:
    """Return what commands need to find the server; nothing if it is where they expect it."""
    if has_tls:
        return f" --server {shlex.quote(f'https://{address}')}"
    is_default = address == Settings.model_fields["listen"].default
    return "" if is_default else f" --server {shlex.quote(str(address))}"
