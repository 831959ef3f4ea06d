"""Becomes a PostgreSQL program that ends with its parent: `exec_stub.py PARENT_PID UID GID PROGRAM ARGUMENT...`.

Run with `python -I -S`, standard library only. Only a separate program can do this safely between fork and exec:
`preexec_fn` would run Python in a copy of a process whose other threads hold locks.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Drop privileges, ask for SIGINT (postgres' fast shutdown) at the death of the parent, and exec."""
    parent_pid, uid, gid = (int(argument) for argument in sys.argv[1:4])
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    # After the change of user, which clears the request.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:  # The parent ended before the request.
        sys.exit("the supervisor is gone")
    # A program inherits ignored signals (SIGPIPE, by Python) and the signals that the parent's thread had blocked.
    for number in signal.SIGINT, signal.SIGPIPE:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(sys.argv[4], sys.argv[4:])  # noqa: S606 - the very purpose


if __name__ == "__main__":
    main()
