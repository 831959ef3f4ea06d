"""Structured logs: an event name and fields, as JSON, or as text on a terminal."""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from gatekeeper_grpc.domain.current_call import current_call_id, current_trace_id

_log = structlog.get_logger(__name__)

# A library's warning is repeated after this time.
_REPEAT_AFTER_S = 60.0
_MAX_REMEMBERED = 256
# Set while only warnings and errors are logged. As a processor, because loggers keep the level that they began with.
_quiet = threading.Event()


def configure_logs(*, level: str, log_format: str, worker: int | None = None, libraries: bool = True) -> None:
    """Send logs to standard error from now on.

    Args:
        level: The lowest level that is logged, such as "INFO".
        log_format: "json", "console", or "auto", which is console on a terminal.
        worker: The number of this worker in a fleet; every line has it.
        libraries: Log the warnings of libraries, too; their errors are always logged.
    """
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            add_call_id,
            *([] if worker is None else [_adds(worker=worker)]),
            structlog.processors.add_log_level,
            _drop_while_quiet,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_console() if is_console else _JSON),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        # Not `print`, which writes a line and its end separately: workers share standard error.
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryLogs(logging.WARNING if libraries else logging.ERROR)])


def _console() -> tuple[Processor, ...]:
    """As text, in colours unless NO_COLOR forbids it (https://no-color.org)."""
    colors = not os.environ.get("NO_COLOR")
    return (structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),)


def begin_quiet() -> None:
    """Log only warnings and errors from now on: the start is read by a person at a terminal."""
    _quiet.set()


def end_quiet() -> None:
    """Log by the configured level again."""
    _quiet.clear()


def is_quiet() -> bool:
    """Whether only warnings and errors are logged."""
    return _quiet.is_set()


def _drop_while_quiet(_logger: object, _method: str, event: EventDict) -> EventDict:
    if _quiet.is_set() and logging.getLevelNamesMapping()[event["level"].upper()] < logging.WARNING:
        raise structlog.DropEvent
    return event


def add_call_id(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the id of the call that the line is about, and that of its trace, unless no call is served."""
    ids = {"call_id": current_call_id(), "trace_id": current_trace_id()}
    return {**{name: value for name, value in ids.items() if value}, **event}


def _adds(**fields: object) -> Processor:
    """Return what adds fields to every line."""
    return lambda _logger, _method, event: {**fields, **event}


class _LibraryLogs(logging.Handler):
    """Passes lines that libraries log through the standard library, such as a lost connection, to our log.

    Otherwise they would have another form, and might interrupt our lines. A warning that repeats, for example at each
    attempt of a pool to connect, is passed on once a minute. Errors are always passed on.
    """

    def __init__(self, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._logged_at: dict[tuple[str, str], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or self._is_new(record.name, str(record.msg)):
            self._pass_on(record)

    def _is_new(self, logger: str, template: str) -> bool:
        """Return whether this was not logged for a while. Called with the handler's lock held."""
        now, logged_at = time.monotonic(), self._logged_at.get((logger, template), -math.inf)
        if now - logged_at < _REPEAT_AFTER_S:
            return False
        if len(self._logged_at) >= _MAX_REMEMBERED:
            self._logged_at.clear()
        self._logged_at[logger, template] = now
        return True

    def _pass_on(self, record: logging.LogRecord) -> None:
        _log.log(record.levelno, "library", logger=record.name, message=record.getMessage(), exc_info=record.exc_info)


# Plain: the default prints the local variables of a traceback, and with them passwords and tokens.
_JSON = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
