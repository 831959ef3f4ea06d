"""What a serving process says of its addresses."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc import draws
from gatekeeper_grpc.config.settings import load_settings
from gatekeeper_grpc.lifecycle.process import _check_tls, _choose_kernel, _report_serving


def test_a_unix_socket_is_logged_as_such_and_without_a_port() -> None:
    with capture_logs() as logs:
        _report_serving(load_settings(listen="unix:/run/gk.sock"), demo=None, port=0, health_port=5, ops_port=6)

    (serving,) = (entry for entry in logs if entry["event"] == "serving")
    assert "port" not in serving
    assert (serving["listen"], serving["health_port"]) == ("unix:/run/gk.sock", 5)


def test_the_start_line_names_both_listeners() -> None:
    settings = load_settings(admin_listen="unix:/run/admin.sock")
    with capture_logs() as logs:
        _report_serving(settings, demo=None, port=4, admin_port=0, health_port=5, ops_port=6)

    (serving,) = (entry for entry in logs if entry["event"] == "serving")
    assert (serving["listen"], serving["port"]) == ("127.0.0.1:50051", 4)
    assert (serving["admin_listen"], "admin_port" in serving) == ("unix:/run/admin.sock", False)


def test_each_listener_on_a_network_without_tls_is_warned_of() -> None:
    with capture_logs() as logs:
        _check_tls(load_settings(listen="0.0.0.0:1", admin_listen="[::]:2"))
        _check_tls(load_settings(listen="127.0.0.1:1", admin_listen="[::]:3"))

    assert [(entry["event"], entry["listen"]) for entry in logs] == [
        ("listening_without_tls", "0.0.0.0:1"),
        ("listening_without_tls", "[::]:2"),
        ("listening_without_tls", "[::]:3"),
    ]


def test_a_kernel_that_cannot_be_used_is_warned_of_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "kernel.so"
    library.write_text("no library")
    monkeypatch.setattr(draws, "LIBRARY", library)

    with capture_logs() as logs:
        _choose_kernel(load_settings())
        _choose_kernel(load_settings(kernel="off"))

    (warning,) = logs
    assert (warning["event"], warning["log_level"]) == ("kernel_unusable", "warning")
    assert str(library) in warning["reason"]
    assert draws.implementation() == "python"
