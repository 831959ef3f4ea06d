"""What a serving process says of its addresses."""

from structlog.testing import capture_logs

from gatekeeper_grpc.config.settings import load_settings
from gatekeeper_grpc.lifecycle.process import _report_serving


def test_a_unix_socket_is_logged_as_such_and_without_a_port() -> None:
    with capture_logs() as logs:
        _report_serving(load_settings(listen="unix:/run/gk.sock"), demo=None, port=0, health_port=5, ops_port=6)

    (serving,) = (entry for entry in logs if entry["event"] == "serving")
    assert "port" not in serving
    assert (serving["listen"], serving["health_port"]) == ("unix:/run/gk.sock", 5)
