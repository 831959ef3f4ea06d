"""Reads the URLs of the settings, before any command uses one."""

from gatekeeper_grpc.config.settings import Settings, SettingsError, variable_of
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.store.postgres.dsn import read_dsn


def check_urls(settings: Settings) -> None:
    """Check each URL that is set, without connecting.

    Raises:
        SettingsError: A URL cannot be read. The message names its variable and repeats no part of it.
    """
    for field in ("database_url", "read_database_url", "migration_database_url"):
        url = getattr(settings, field)
        if url is not None:
            _check_dsn(url.get_secret_value(), name=variable_of(field))
    if settings.redis_url is not None:
        _check_redis(settings.redis_url.get_secret_value())


def _check_dsn(url: str, *, name: str) -> None:
    try:
        read_dsn(url, name=name)
    except InvalidArgument as exc:
        raise SettingsError(str(exc)) from None


def _check_redis(url: str) -> None:
    # Here, because importing redis takes 0.2 s, which a command without it need not spend.
    from gatekeeper_grpc.redis_bus.address import RedisAddress  # noqa: PLC0415

    try:
        RedisAddress(url)
    except ValueError as exc:
        raise SettingsError(f"{variable_of('redis_url')} {exc}") from None
