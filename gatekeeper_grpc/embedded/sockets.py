"""The short, private directory of the database's socket.

It lies in /tmp because a socket's path has at most 107 bytes, which a data directory may exceed, and because
XDG_RUNTIME_DIR is wiped when its user logs out. A process that can enter it can use the database. So the outer
directory, mode 0700, belongs to this process's user, and postgres inherits the inner one, open: other processes of
postgres's account stay out.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from gatekeeper_grpc.embedded.account import Account
from gatekeeper_grpc.embedded.cluster import DATABASE, DB_USER

PORT = 5432  # Part of the socket's name only.

_PARENT = Path("/tmp")  # Used through mkdtemp.  # noqa: S108 # nosec B108
_PREFIX = "gatekeeper-"


@contextmanager
def socket_directory(link: Path, account: Account) -> Iterator[Path]:
    """Make the directory for the socket, and remove it after the block.

    Args:
        link: Where `link_socket_directory` may link to it.
        account: The account that runs postgres.
    """
    outer = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PARENT))
    inner = outer / "socket"
    try:
        inner.mkdir(mode=0o700)
        os.chown(inner, account.uid, account.gid)
        yield inner
    finally:
        if _leads_to(link, inner):
            link.unlink()
        shutil.rmtree(outer)


def link_socket_directory(link: Path, socket_dir: Path) -> None:
    """Link to the directory: other processes follow the link, and the next start cleans up after a kill.

    The directory that it led to before is removed: call this when the server of that one has ended.
    """
    if not _leads_to(link, socket_dir):
        remove_socket_directory(link)
        link.symlink_to(socket_dir)


def remove_socket_directory(link: Path) -> None:
    """Remove the link, and the directory that it names if Gatekeeper made it."""
    if not link.is_symlink():
        return
    outer = link.readlink().parent
    if outer.parent == _PARENT and outer.name.startswith(_PREFIX) and _is_our_directory(outer):
        shutil.rmtree(outer)
    link.unlink()


def dsn(socket_dir: Path) -> str:
    """Return the libpq URI of the database behind the socket in `socket_dir`."""
    # Without a port the client's PGPORT would count.
    return f"postgresql://{DB_USER}@/{DATABASE}?host={quote(str(socket_dir), safe='')}&port={PORT}"


def _leads_to(link: Path, socket_dir: Path) -> bool:
    return link.is_symlink() and link.readlink() == socket_dir


def _is_our_directory(path: Path) -> bool:
    # After a reboot another user may have made that name in /tmp.
    return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.geteuid()
