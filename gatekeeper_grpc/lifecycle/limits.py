"""What a process may have open and hold: read from the system and the settings, and stated in the log."""

import ctypes
import gc
import resource
from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog

from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.interceptors.policy import POLICIES
from gatekeeper_grpc.operations import health_server
from gatekeeper_grpc.operations.http_server import MAX_CONNECTIONS
from gatekeeper_grpc.transport.admission import DEFAULT_SIZES, PoolName
from gatekeeper_grpc.transport.connections import ConnectionLimits
from gatekeeper_grpc.transport.listener import LOOKAHEAD_BYTES, NEW_CALLS
from gatekeeper_grpc.transport.pending_calls import PendingLimits
from gatekeeper_grpc.transport.shares import PoolSize

_log = structlog.get_logger(__name__)

# Fewer are usual for a login shell and too few for a server.
_ENOUGH_FILES = 4_096
# Outside the pool: to listen, for the hang watch, to prepare, for a replica, for Redis.
_OTHER_DATABASE_CONNECTIONS = 16
# The snapshot, the erasure ledger, the log, the listening sockets, what grpcio and Python have for themselves.
_OTHER_FILES = 64
_LEAST_CONNECTIONS = 16
# Of the connections, if AdminService has a listener of its own: tools are few, and no crowd of one keeps the other out.
_ADMIN_PART = 8
_LEAST_ADMIN_CONNECTIONS = 8
_M_ARENA_MAX = -8  # malloc.h
_MAX_ARENAS = 4
_M_MMAP_THRESHOLD = -3
# Large messages go back to the system as soon as they are freed. Below, allocating would become slower.
_RETURNED_BYTES = 1 << 20
# Measured: an idle connection that has made a call, by `python -m bench.connections`.
_CONNECTION_BYTES = 20 << 10
_TLS_CONNECTION_BYTES = 50 << 10
# Measured: an open WatchFlags with all its keys, and what its client may send unasked.
_WATCHER_BYTES = (22 << 10) + LOOKAHEAD_BYTES
# Measured: a call that waits for its turn, without its message.
_WAITING_CALL_BYTES = 15 << 10
# A worker has a message, the objects that it is parsed to, and, of a stream, the next message.
_MESSAGES_OF_A_WORKER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one process."""

    open_files: int
    """What the system lets it have open."""
    connections: ConnectionLimits
    """Those of GATEKEEPER_LISTEN."""
    admin_connections: ConnectionLimits | None
    """Those of GATEKEEPER_ADMIN_LISTEN; None without it."""
    connections_bytes: int
    watchers_bytes: int
    admitted_bytes: int
    """Messages that workers have."""
    strangers_bytes: int
    """Messages that are not admitted yet, of strangers: on all listeners, health included."""
    known_bytes: int
    """The same of those with credentials."""
    waiting_bytes: int
    """Calls that grpcio has not dealt with, without their messages."""

    @classmethod
    def of(cls, settings: Settings, *, open_files: int | None = None) -> "Limits":
        """Divide what there is: the database, health and files come first, and connections get the rest.

        Args:
            settings: What the operator decided.
            open_files: What the process may have open; None: what the system says now.
        """
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if open_files is None else open_files
        databases, health = settings.db_pool_size + _OTHER_DATABASE_CONNECTIONS, health_server.MAX_HEALTH_CONNECTIONS
        reserved = databases + health + MAX_CONNECTIONS
        rest = max(_LEAST_CONNECTIONS, open_files - reserved - _OTHER_FILES)
        most = min(settings.max_connections, rest)
        of_admin = 0 if settings.admin_listen is None else max(_LEAST_ADMIN_CONNECTIONS, most // _ADMIN_PART)
        return cls(
            open_files=open_files,
            connections=ConnectionLimits(most=most - of_admin),
            admin_connections=ConnectionLimits(most=of_admin) if of_admin else None,
            connections_bytes=most * (_TLS_CONNECTION_BYTES if settings.has_tls else _CONNECTION_BYTES),
            watchers_bytes=settings.max_watchers * _WATCHER_BYTES,
            admitted_bytes=sum(size.workers * _largest_message(pool) for pool, size in pool_sizes(settings).items())
            * _MESSAGES_OF_A_WORKER,
            strangers_bytes=PendingLimits().max_bytes + NEW_CALLS.max_bytes + health_server.STRANGERS_BYTES,
            known_bytes=PendingLimits().max_bytes,
            waiting_bytes=(NEW_CALLS.waiting + NEW_CALLS.backlog) * _WAITING_CALL_BYTES,
        )

    @property
    def max_connections(self) -> int:
        """How many connections clients may have in all."""
        return self.connections.most + (self.admin_connections.most if self.admin_connections else 0)

    @property
    def clients_mib(self) -> int:
        """What clients can make the process hold at most, in addition to the snapshot."""
        messages = self.admitted_bytes + self.strangers_bytes + self.known_bytes
        return _mib(self.connections_bytes + self.watchers_bytes + messages + self.waiting_bytes)


def pool_sizes(settings: Settings) -> Mapping[PoolName, PoolSize]:
    """Return the size of each pool of a server."""
    workers = {
        PoolName.EVALUATION: settings.evaluation_threads,
        PoolName.ADMIN_READ: settings.admin_threads,
        PoolName.ADMIN_WRITE: (settings.admin_threads + 1) // 2,
        PoolName.BULK: settings.stream_threads,
    }
    return {name: replace(size, workers=workers.get(name, size.workers)) for name, size in DEFAULT_SIZES.items()}


def _largest_message(pool: PoolName) -> int:
    return max(policy.max_request_bytes for policy in POLICIES.values() if policy.pool is pool)


def raise_open_file_limit() -> None:
    """Raise the limit of open files to the highest that the process may set; log both, and a warning if it is low."""
    before, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before < highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
    _log.info("open_files", before=before, limit=highest)
    if highest < _ENOUGH_FILES:
        _log.warning("few_open_files", limit=highest, remedy=f"raise `ulimit -n` to {_ENOUGH_FILES} or more")


def limit_kept_memory() -> None:
    """Have glibc keep less of what was freed; call it before threads start. Without effect on another C library.

    By default it has eight arenas for each core, and each keeps what its threads once had: with 300 unfinished messages
    of 4 MiB a server grew by 114 MiB instead of 66.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _MAX_ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES)


def freeze_what_is_kept() -> None:
    """Have the garbage collector leave out all that exists now; call it once, before calls are served.

    All threads stand still while it works: with 10,000 flags for 23 ms each time it looks at everything. What is frozen
    is freed when nothing refers to it any more, but never if it is in a cycle; a snapshot is in none.
    """
    gc.collect()
    gc.freeze()


def log_limits(limits: Limits) -> None:
    """State the limits, in MiB and connections."""
    admin = limits.admin_connections
    _log.info(
        "limits",
        max_connections=limits.max_connections,
        max_connections_of_address=limits.connections.of_address,
        **({"max_admin_connections": admin.most} if admin else {}),
        connections_mib=_mib(limits.connections_bytes),
        watchers_mib=_mib(limits.watchers_bytes),
        admitted_mib=_mib(limits.admitted_bytes),
        pending_of_strangers_mib=_mib(limits.strangers_bytes),
        pending_of_others_mib=_mib(limits.known_bytes),
        waiting_mib=_mib(limits.waiting_bytes),
        clients_mib=limits.clients_mib,
    )


def _mib(size: int) -> int:
    return -(-size >> 20)
