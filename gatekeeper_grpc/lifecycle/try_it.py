"""What `make run` prints once it serves: where, who may log in, and four lines to paste into a shell."""

import shlex
from pathlib import Path

from gatekeeper_grpc.config import Settings, variable_of
from gatekeeper_grpc.domain.admin_user import FIRST_ADMIN
from gatekeeper_grpc.lifecycle.secrets_file import ADMIN_PASSWORD
from gatekeeper_grpc.listen_address import ListenAddress
from gatekeeper_grpc.program import program

_README = Path(__file__).parents[2] / "README.md"
# Of a server that listens on all addresses.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not to listen on


def try_it(settings: Settings, *, port: int) -> str:
    """Return the block: at most 14 lines of 80 columns, more only if a path is long. Prose is a comment to a shell.

    Args:
        settings: What the server serves with.
        port: The port that it serves on; 0 with a Unix socket.
    """
    address = _reachable(settings.listen, port)
    file = settings.data_dir.absolute() / ADMIN_PASSWORD
    kept = f"kept in {file}" if file.exists() else f"that of {variable_of('admin_password')}"
    lines = [
        f"# Gatekeeper serves on {address}. Ctrl-C stops it.",
        f"# Admin user: {FIRST_ADMIN}",
        f"# Password: {kept}",
        "# Try it in another shell:",
        *_commands(file, server=_server_option(address)),
        f"# More: {program()} --help",
        f"# Docs: {_README if _README.exists() else 'README.md and docs/ of the source distribution'}",
    ]
    return "\n".join(["", *lines])


def _commands(password_file: Path, *, server: str) -> list[str]:
    gatekeeper = program()
    login = f"{gatekeeper} login{server} --password-stdin"
    if password_file.exists():
        login = f"{login} < {shlex.quote(str(password_file))}"
    else:
        login = f'printf %s "${variable_of("admin_password")}" | {login}'
    return [
        f"{gatekeeper} evaluate alice{server}",
        login,
        f"{gatekeeper} flags set-rollout new_checkout 50{server}",
        f"{gatekeeper} evaluate alice --explain{server}",
    ]


def _reachable(listen: ListenAddress, port: int) -> ListenAddress:
    """Return the address for a client on this machine, whose shell may stand in another directory."""
    if listen.is_unix:
        return ListenAddress(path=str(Path(listen.path).absolute()))
    return ListenAddress(host=_LOOPBACK.get(listen.host, listen.host), port=port)


def _server_option(address: ListenAddress) -> str:
    """Return what commands need to find the server; nothing if it is where they expect it."""
    is_default = address == Settings.model_fields["listen"].default
    return "" if is_default else f" --server {shlex.quote(str(address))}"
