"""A thread that does one task again and again, and outlives the task's failures."""

import threading
import time
from collections.abc import Callable

import structlog

from gatekeeper_grpc.domain.errors import GatekeeperError

_log = structlog.get_logger(__name__)

_JOIN_TIMEOUT_S = 5.0
_WENT_WELL_S = 5.0


class Periodic:
    """Does a task at once and then every `interval_s`, from `start` to `close`.

    A failing run is logged, and so is the first that succeeds again; failing on in the same way is not.

    Args:
        name: Names the thread and the task in the log, such as "refresh".
        task: What to do.
        interval_s: How long to wait between runs.
        wait: Waits at most that many seconds, or until there is something to do; by default, until `close`.
    """

    def __init__(
        self,
        name: str,
        task: Callable[[], object],
        *,
        interval_s: float,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._name = name
        self._task = task
        self._interval_s = interval_s
        # How the last run failed, if it did.
        self._failure: tuple[str, str] | None = None
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._thread = threading.Thread(target=self._run, name=f"gatekeeper-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the current run be the last; does not wait for it."""
        self._stopping.set()

    def close(self, *, timeout_s: float = _JOIN_TIMEOUT_S) -> None:
        """Stop, and wait for the current run to end, at most `timeout_s`."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def is_stopping(self) -> bool:
        """Whether a long run should end."""
        return self._stopping.is_set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._attempt()
            self._wait(self._interval_s)

    def _attempt(self) -> None:
        began_at = time.monotonic()
        try:
            self._task()
        except GatekeeperError as exc:
            failure = (exc.reason, str(exc))
            # A run that went well for a while, as listening does, has succeeded before it failed.
            if failure != self._failure or time.monotonic() - began_at > _WENT_WELL_S:
                _log.warning("task_failed", task=self._name, reason=exc.reason, error=str(exc))
            self._failure = failure
        except Exception:  # noqa: BLE001 - whatever went wrong, the next run may not; a dead thread would be silent
            _log.exception("task_failed", task=self._name)
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        if self._failure is not None:
            self._failure = None
            _log.info("task_recovered", task=self._name)
