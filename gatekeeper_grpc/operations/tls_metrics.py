"""Metrics of TLS: the certificate that is shown, and the handshakes."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gatekeeper_grpc.transport.core import HandshakeFailure
from gatekeeper_grpc.transport.tls import ServerTls


class TlsMetrics(Collector):
    """Metrics of the certificate and of the handshakes of one process."""

    def __init__(self, tls: ServerTls, failed_handshakes: Mapping[HandshakeFailure, int]) -> None:
        self._tls = tls
        self._failed_handshakes = failed_handshakes

    def collect(self) -> Iterator[Metric]:
        """Read all metrics."""
        yield GaugeMetricFamily(
            "gatekeeper_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that is shown expires, in seconds since 1970.",
            value=self._tls.certificate.not_after.timestamp(),
        )
        yield GaugeMetricFamily(
            "gatekeeper_tls_certificate_refused",
            "1 if the files hold a certificate that cannot be used, so that the one before is shown, else 0.",
            value=bool(self._tls.refused),
        )
        yield CounterMetricFamily(
            "gatekeeper_tls_handshakes", "TLS handshakes that were begun on gRPC ports.", value=self._tls.handshakes
        )
        yield self._failures()

    def _failures(self) -> Metric:
        failures = CounterMetricFamily(
            "gatekeeper_tls_failed_handshakes",
            "TLS handshakes on gRPC ports that failed, by cause; not those that the client has not finished.",
            labels=["cause"],
        )
        for cause in HandshakeFailure:
            failures.add_metric([cause], self._failed_handshakes.get(cause, 0))
        return failures
