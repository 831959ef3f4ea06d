"""The short, private directory of the database's socket.

It lies in /tmp because a socket's path has 107 bytes and a data directory can be deeper, and because XDG_RUNTIME_DIR
is wiped when its user logs out. Whoever can enter it is let into the database: the outer directory, mode 0700, is
ours; postgres gets the inner one, opened, so that even its own account's other processes stay out.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from gatekeeper_grpc.embedded.account import Account
from gatekeeper_grpc.embedded.cluster import DATABASE, ROLE

PORT = 5432  # Part of the socket's name only.

_PARENT = Path("/tmp")  # noqa: S108 - used through mkdtemp
_PREFIX = "gatekeeper-"


@contextmanager
def socket_directory(link: Path, account: Account) -> Iterator[Path]:
    """Make the directory that `account` may put its socket into, and remove it afterwards.

    Args:
        link: Where to note it down: other processes look it up, and the next start cleans up after a kill.
        account: Who runs postgres.
    """
    remove_socket_directory(link)
    outer = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PARENT))
    inner = outer / "socket"
    link.symlink_to(inner)
    try:
        inner.mkdir(mode=0o700)
        os.chown(inner, account.uid, account.gid)
        yield inner
    finally:
        remove_socket_directory(link)


def remove_socket_directory(link: Path) -> None:
    """Remove the directory noted down in `link`, if it is one of ours, and the link."""
    if not link.is_symlink():
        return
    outer = link.readlink().parent
    if outer.parent == _PARENT and outer.name.startswith(_PREFIX) and _is_our_directory(outer):
        shutil.rmtree(outer)
    link.unlink()


def dsn(socket_dir: Path) -> str:
    """Give the libpq URI of the database behind the socket in `socket_dir`."""
    # Without a port the client's PGPORT would count.
    return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(socket_dir), safe='')}&port={PORT}"


def _is_our_directory(path: Path) -> bool:
    # After a reboot somebody else may have made that name in /tmp.
    return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.geteuid()
