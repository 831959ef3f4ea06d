"""Starts traces if the operator wants them; otherwise nothing of OpenTelemetry is imported."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from gatekeeper_grpc.config.settings import Settings, SettingsError, variable_of

if TYPE_CHECKING:
    from gatekeeper_grpc.operations.otlp import Otlp

_EXPORTER = "opentelemetry-exporter-otlp-proto-grpc"


def check_traces(settings: Settings) -> None:
    """Refuse to be asked for traces without what they need.

    Raises:
        SettingsError: An endpoint is set, and the packages of OpenTelemetry are not installed.
    """
    if settings.otel_exporter_otlp_endpoint is None:
        return
    try:
        version(_EXPORTER)
    except PackageNotFoundError:
        raise SettingsError(
            f"{variable_of('otel_exporter_otlp_endpoint')}: traces need packages that are not installed:"
            " pip install 'gatekeeper-grpc[otel]', or unset it"
        ) from None


def traces_of(settings: Settings) -> "Otlp | None":
    """Return what sends the traces of this process; None if the settings name no endpoint.

    Raises:
        SettingsError: As for `check_traces`.
    """
    check_traces(settings)
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    from gatekeeper_grpc.operations.otlp import Otlp  # noqa: PLC0415 - an extra, which others do not have

    return Otlp(settings)
