"""The account that runs postgres. Postgres refuses to run as root, so root runs it as an account without rights."""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from gatekeeper_grpc.embedded.errors import EmbeddedDatabaseError

_ROOT = 0
# `postgres` first: other daemons of the machine may run as `nobody`.
_UNPRIVILEGED = ("postgres", "nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user and its one group; supplementary groups are dropped."""

    uid: int
    gid: int

    @property
    def is_ours(self) -> bool:
        """Whether this process runs under the account already."""
        return self.uid == os.geteuid()

    def can_execute(self, path: Path) -> bool:
        """Say whether the account may enter every directory on the way to `path`, and read and execute it.

        Decided by mode bits: root's own access proves nothing about another account's.
        """
        real = path.resolve()
        return self._may(real, stat.S_IROTH | stat.S_IXOTH) and all(self._may(p, stat.S_IXOTH) for p in real.parents)

    def _may(self, path: Path, wanted: int) -> bool:
        status = path.stat()
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid == self.gid else 0
        return (status.st_mode >> shift) & wanted == wanted


def account_for(cluster: Path) -> Account:
    """Choose the account that runs the cluster.

    It is the account of this process; for root the cluster's owner, or `postgres` or else `nobody` for a new cluster.

    Raises:
        EmbeddedDatabaseError: The cluster belongs to an account that this process cannot use.
    """
    us = Account(uid=os.geteuid(), gid=os.getegid())
    owner = _owner(cluster)
    if us.uid == _ROOT:
        return _account_for_root(cluster, owner)
    if owner is not None and owner.uid != us.uid:
        msg = f"the database in {cluster} belongs to {_name(owner.uid)}: run as that user or as root, not as "
        raise EmbeddedDatabaseError(msg + _name(us.uid))
    return us


def _account_for_root(cluster: Path, owner: Account | None) -> Account:
    if owner is None:
        return _unprivileged_account()
    if owner.uid == _ROOT:
        raise EmbeddedDatabaseError(
            f"the database in {cluster} belongs to root, as which postgres refuses to run: "
            f"give it to another user, e.g. chown -R nobody {cluster}"
        )
    return owner


def _unprivileged_account() -> Account:
    for name in _UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(uid=entry.pw_uid, gid=entry.pw_gid)
    raise EmbeddedDatabaseError(
        f"postgres refuses to run as root and there is no user {' or '.join(_UNPRIVILEGED)} to run it: "
        "add one, run Gatekeeper as an ordinary user, or set DATABASE_URL"
    )


def _owner(path: Path) -> Account | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Account(uid=status.st_uid, gid=status.st_gid)


def _name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
