"""Structured logs: one event name and fields, as JSON or, on a terminal, for people."""

import logging
import math
import sys
import time

import structlog
from structlog.typing import EventDict

_log = structlog.get_logger(__name__)

# How long a library's line is not repeated, and how many are remembered for that.
_SAID_ONCE_S = 60.0
_MAX_SAID = 256


def configure_logs(*, level: str, log_format: str, worker: int | None = None) -> None:
    """Send logs to standard error from now on.

    Args:
        level: The least to log, such as "INFO".
        log_format: "json", "console", or "auto", which is console on a terminal.
        worker: Which worker of a fleet this process is; every line says so.
    """
    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *([] if worker is None else [_Adding(worker=worker)]),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_FOR_PEOPLE if for_people else _JSON),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        # Not `print`, which writes a line and its end apart: workers share standard error.
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryLogs()])


class _Adding:
    """Adds fields to every line."""

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        return {**self._fields, **event}


class _LibraryLogs(logging.Handler):
    """Takes what libraries log by way of the standard library, such as a lost connection, into our log.

    Left to itself it would be lines of another form, some in the middle of ours. A warning that comes again and again,
    as a pool gives it each time it tries to connect, is passed on once a minute: the first tells why, and that it is
    over is told in lines of our own. Errors are all passed on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[tuple[str, str], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or self._is_news(record.name, str(record.msg)):
            self._pass_on(record)

    def _is_news(self, logger: str, template: str) -> bool:
        """Tell whether this has not been said for a while. Called with the handler's lock held."""
        now, said_at = time.monotonic(), self._said_at.get((logger, template), -math.inf)
        if now - said_at < _SAID_ONCE_S:
            return False
        if len(self._said_at) >= _MAX_SAID:
            self._said_at.clear()
        self._said_at[logger, template] = now
        return True

    def _pass_on(self, record: logging.LogRecord) -> None:
        _log.log(record.levelno, "library", logger=record.name, message=record.getMessage(), exc_info=record.exc_info)


# Plain: the default prints the local variables of a traceback, and with them passwords and tokens.
_FOR_PEOPLE = (structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),)
_JSON = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
