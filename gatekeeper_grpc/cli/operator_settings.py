"""The settings of a command that operates the server, and its logs."""

import structlog

from gatekeeper_grpc.config import handover
from gatekeeper_grpc.config.settings import Settings, load_settings, unknown_variables
from gatekeeper_grpc.lifecycle.connection_urls import check_urls
from gatekeeper_grpc.operations.logs import configure_logs

_log = structlog.get_logger(__name__)

# The others end with their own line; what libraries warned of before says the same in other words.
_SERVERS = frozenset({"serve", "worker"})


def operator_settings(command: str) -> Settings:
    """Read the settings, configure the logs, and warn of variables that are no settings.

    Raises:
        SettingsError: A setting has an invalid value.
    """
    if command == "worker":
        handover.take()
    settings = load_settings()
    check_urls(settings)
    configure_logs(level=settings.log_level, log_format=settings.log_format, libraries=command in _SERVERS)
    if command != "worker":  # Its supervisor has said it.
        for name, nearest in unknown_variables():
            _log.warning("unknown_setting", variable=name, nearest=nearest)
    return settings
