"""Start-up: connect to the database; serve the last-known-good snapshot if the database is not available in time."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import structlog

from gatekeeper_grpc.cache.last_known_good import StoredSnapshot, newest_revision, newest_stored
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.snapshot_storage import SnapshotStorage
from gatekeeper_grpc.domain.errors import GatekeeperError, Unavailable
from gatekeeper_grpc.domain.sealer import Sealer
from gatekeeper_grpc.domain.snapshot import Snapshot

_log = structlog.get_logger(__name__)

_RETRY_S = 0.25
# Without a stored snapshot, the only choice is to wait for the database's first one.
_FIRST_SNAPSHOT_TIMEOUT_S = 10.0
# Entries of users. That many are loaded from the database in about a second: within what a start may wait.
_LARGE = 100_000
# The main thread waits in steps: a signal that the kernel delivers to another thread does not wake it.
_SIGNAL_CHECK_S = 0.2
# An attempt on a hung database can take longer; its result is dropped.
_CLOSE_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupTimeouts:
    """How many seconds a start waits for the database before it serves the last-known-good snapshot."""

    unreachable_s: float
    """While the database refuses connections."""
    silent_s: float
    """While the first attempt has no result."""
    loading_s: float
    """While the first snapshot is being loaded."""


# A start without its database serves within two seconds; half of that is spent before this wait.
DEFAULT_TIMEOUTS = StartupTimeouts(unreachable_s=0.4, silent_s=0.8, loading_s=2.0)
# The embedded database runs as long as the process does: it can be slow, but not away.
EMBEDDED_TIMEOUTS = StartupTimeouts(unreachable_s=2.0, silent_s=2.0, loading_s=2.0)
# Of a server that replaces another one, which serves until then: there is nothing to hurry for.
REPLACEMENT_TIMEOUTS = StartupTimeouts(unreachable_s=2.0, silent_s=15.0, loading_s=15.0)
# With a large stored snapshot: to load everything takes so long that there is nothing to wait for.
LARGE_TIMEOUTS = StartupTimeouts(unreachable_s=0.4, silent_s=0.8, loading_s=0.8)


class State(Enum):
    """What the last attempt to connect to the database found."""

    CONNECTING = "connecting"
    """No attempt has ended yet."""
    UNREACHABLE = "unreachable"
    """The database does not answer."""
    REFUSED = "refused"
    """The database answers and is unfit, for example because its schema is another one."""
    OPEN = "open"
    """The database is fit; snapshots are loaded from it."""
    CLOSED = "closed"
    """The start was given up, or the server has stopped."""


class Startup:
    """Prepares and opens the database in a thread of its own, and decides what is served until then.

    ::

                        prepare() raises Unavailable
        CONNECTING ------------------------------------> UNREACHABLE <---+
          |    |                                          |   |    |     | every 0.25 s
          |    |   prepare() raises another error         |   |    +-----+ prepare() again
          |    +--------------------> REFUSED <-----------+   |
          |                           |  ^  |                 |
          | prepare()                 |  +--+ every 0.25 s    |
          | returns                   |                       |
          +---------> OPEN <----------+-----------------------+   close() in any state -> CLOSED

    `wait` returns, or raises, by the state and by what storage holds:

    ============ ============================================ =====================================
    state        a last-known-good snapshot is stored         none is stored
    ============ ============================================ =====================================
    CONNECTING   serves it after `silent_s`                   waits for the end of the first attempt
    UNREACHABLE  serves it after `unreachable_s`              raises `Unavailable`
    REFUSED      raises why the database is unfit             raises why the database is unfit
    OPEN         serves it if loading takes over `loading_s`  waits up to 10 s for the first snapshot
    ============ ============================================ =====================================

    Attempts continue after `wait` has returned: the database is opened once, as soon as it is fit. A server that
    refuses the account is asked once a second: `prepare` waits for that, see `Servers`.

    Storage is read while the first attempt is made. A large stored snapshot is put into the cache before the database
    is opened, so that the first refresh loads what changed since. If the change log is not sufficient, everything is
    loaded. For a large one, other timeouts hold.

    Args:
        cache: What is served. Its condition is what `wait` waits on.
        storages: Where a last-known-good snapshot may be stored.
        sealer: Opens stored snapshots.
        prepare: Makes the database fit to serve from, or raises why it is not; `Unavailable` when it does not answer.
        open_database: Starts to load snapshots from the database and to write to it.
        timeouts: How long to wait before the last-known-good snapshot is served.
        expect: Called with a stored revision that is newer than the database's, before anything is served or written:
            it finds out whether the database has lost that revision.
    """

    def __init__(
        self,
        cache: SnapshotCache,
        storages: Sequence[SnapshotStorage],
        *,
        sealer: Sealer,
        prepare: Callable[[], object],
        open_database: Callable[[], object],
        timeouts: StartupTimeouts,
        expect: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._cache = cache
        self._storages = storages
        self._sealer = sealer
        self._prepare = prepare
        self._open_database = open_database
        self._timeouts = timeouts
        self._expect = expect
        # Written by the connecting thread before `_state`, which tells `wait` to read it.
        self._failure: Exception | None = None
        self._state = State.CONNECTING
        self._recalled: StoredSnapshot | None = None
        # What the first refresh starts from. Written by `wait` before it sets `_storage_read`.
        self._base: StoredSnapshot | None = None
        self._storage_read = threading.Event()
        self._closing = threading.Event()
        self._connecting = threading.Thread(target=self._connect, name="gatekeeper-startup", daemon=True)

    @property
    def state(self) -> State:
        """What the last attempt found."""
        return self._state

    @property
    def last_known_good(self) -> StoredSnapshot | None:
        """The stored snapshot that is served; None as soon as the database has confirmed it or delivered another."""
        recalled = self._recalled
        is_served = recalled is not None and self._cache.peek() is recalled.snapshot
        return recalled if is_served and math.isinf(self._cache.unconfirmed_s()) else None

    def start(self) -> None:
        """Start to connect."""
        self._connecting.start()

    def wait(self) -> None:
        """Wait until there is something to serve.

        Raises:
            Exception: Why the database cannot be opened: it is unfit, or does not answer and no snapshot is stored.
        """
        began = time.monotonic()
        stored = self._read_storage()
        if stored is None:
            self._wait_for_database()
        else:
            is_in_a_hurry = self._base and self._timeouts is not REPLACEMENT_TIMEOUTS
            timeouts = LARGE_TIMEOUTS if is_in_a_hurry else self._timeouts
            self._wait_until(self._is_loaded, lambda: began + self._timeout_s(timeouts))
            self._raise_if_refused()
            self._serve_last_known_good(stored)
        if self._recalled is None:
            self._check_nothing_lost()

    def reasons(self) -> Iterator[str]:
        """Yield, in sentences for operators, what has been wrong since the start."""
        stored, failure = self.last_known_good, self._failure
        if stored:
            confirmed = stored.header.confirmed_time.isoformat(timespec="seconds")
            yield (
                f"serving the last-known-good snapshot ({stored.storage}), confirmed at {confirmed}:"
                " it is replaced as soon as the database is read"
            )
        if failure:
            text = str(failure) if isinstance(failure, GatekeeperError) else "internal error, see the log"
            yield f"the database is not open: {text}; {_remedy_of(failure)}"

    def close(self) -> None:
        """Stop connecting. A database that becomes available after this is not opened."""
        self._closing.set()
        self._storage_read.set()
        if self._connecting.ident is not None:
            self._connecting.join(_CLOSE_TIMEOUT_S)
        self._move_to(State.CLOSED)

    def _read_storage(self) -> StoredSnapshot | None:
        try:
            stored = newest_stored(self._storages, self._sealer)
            self._base = stored if stored and _entries(stored.snapshot) > _LARGE else None
        finally:
            self._storage_read.set()
        return stored

    def _connect(self) -> None:
        while not self._closing.is_set():
            try:
                self._prepare()
                self._storage_read.wait()
                if self._closing.is_set():
                    return
                if self._base:
                    self._cache.recall(self._base.snapshot)
                self._open_database()
            except Exception as exc:  # noqa: BLE001 - raised by `wait`, or logged: this thread must not die silently
                self._failed(exc)
            else:
                self._opened()
                return
            self._closing.wait(_RETRY_S)

    def _opened(self) -> None:
        self._failure = None
        self._move_to(State.OPEN)
        if self._recalled:
            _log.info("database_opened")

    def _failed(self, exc: Exception) -> None:
        before, self._failure = self._failure, exc
        self._move_to(State.UNREACHABLE if isinstance(exc, Unavailable) else State.REFUSED)
        if self._recalled and _news(before) != _news(exc):
            _log_failure(exc)

    def _move_to(self, state: State) -> None:
        self._state = state
        self._cache.wake_waiters()

    def _wait_until(self, condition: Callable[[], bool], deadline: Callable[[], float]) -> None:
        """Wait until a condition holds or the database is refused; the deadline may move with the state."""
        while not (condition() or self._state is State.REFUSED) and (left_s := deadline() - time.monotonic()) > 0:
            self._wait_for_change(condition, timeout_s=min(left_s, _SIGNAL_CHECK_S))

    def _wait_for_change(self, condition: Callable[[], bool], *, timeout_s: float) -> None:
        state = self._state
        self._cache.wait_for(lambda: condition() or self._state is not state, timeout_s=timeout_s)

    def _wait_for_database(self) -> None:
        self._wait_until(lambda: self._state is not State.CONNECTING, lambda: math.inf)
        if self._failure:
            raise self._failure
        deadline = time.monotonic() + _FIRST_SNAPSHOT_TIMEOUT_S
        self._wait_until(self._is_loaded, lambda: deadline)

    def _raise_if_refused(self) -> None:
        if self._state is State.REFUSED and self._failure:
            raise self._failure

    def _timeout_s(self, timeouts: StartupTimeouts) -> float:
        match self._state:
            case State.OPEN:
                return timeouts.loading_s
            case State.UNREACHABLE:
                return timeouts.unreachable_s
            case _:
                return timeouts.silent_s

    def _is_loaded(self) -> bool:
        """Whether the database, or its replica, has delivered what the cache holds, or has confirmed it."""
        snapshot = self._cache.peek()
        is_base = self._base is not None and snapshot is self._base.snapshot
        return snapshot is not None and not (is_base and math.isinf(self._cache.unconfirmed_s()))

    def _check_nothing_lost(self) -> None:
        snapshot = self._cache.peek()
        if snapshot is None:
            return
        stored = newest_revision(self._storages, self._sealer, installation_id=snapshot.installation_id)
        try:
            if stored > snapshot.revision:
                self._expect(stored)
        except GatekeeperError as exc:  # The snapshot writers check it again.
            _log.warning("stored_revision_not_checked", revision=stored, error=str(exc))

    def _serve_last_known_good(self, stored: StoredSnapshot) -> None:
        if self._is_loaded() or not (self._cache.recall(stored.snapshot) or self._cache.peek() is stored.snapshot):
            return
        self._recalled = stored
        _log.warning(
            "serving_last_known_good",
            storage=stored.storage,
            revision=stored.header.revision,
            confirmed_time=stored.header.confirmed_time.isoformat(timespec="seconds"),
            flags=len(stored.snapshot.flags),
        )
        if failure := self._failure:
            _log_failure(failure)


def _entries(snapshot: Snapshot) -> int:
    return len(snapshot.targets) + len(snapshot.members) + len(snapshot.attributes)


def _news(exc: Exception | None) -> str:
    """Return what is worth another log line when it changes: of an unavailable database, the kind of cause."""
    return "" if exc is None else exc.reason if isinstance(exc, Unavailable) else str(exc)


def _remedy_of(exc: Exception) -> str:
    if isinstance(exc, Unavailable):
        return "Gatekeeper retries until it succeeds; docs/operations/database-errors.md says what each reason needs"
    return "remove the cause; Gatekeeper tries again all the time"


def _log_failure(exc: Exception) -> None:
    if isinstance(exc, Unavailable):
        _log.warning("database_unreachable", error=str(exc), reason=exc.reason, remedy=_remedy_of(exc))
    else:
        _log.error("database_refused", error=str(exc), kind=type(exc).__name__, remedy=_remedy_of(exc))
