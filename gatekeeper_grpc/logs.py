"""Structured logs: one event name and fields, as JSON or, on a terminal, for people."""

import logging
import sys

import structlog


def configure_logs(*, level: str, log_format: str) -> None:
    """Send logs to standard error from now on.

    Args:
        level: The least to log, such as "INFO".
        log_format: "json", "console", or "auto", which is console on a terminal.
    """
    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.dev.ConsoleRenderer()] if for_people else _JSON),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


_JSON = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
