"""The log line of a call: built only if it is written."""

import json
from typing import Any

import grpc
import pytest
import structlog

from gatekeeper_grpc.interceptors import request_scope
from gatekeeper_grpc.interceptors.line_samples import LineSamples
from gatekeeper_grpc.interceptors.request_scope import MethodDurations, Rpc, log_finished
from gatekeeper_grpc.operations.logs import configure_logs

QUIET = "/gatekeeper.v1.EvaluationService/EvaluateFlags"


class FieldReads:
    """Counts how often the fields of a log line are built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._build = request_scope._fields
        monkeypatch.setattr(request_scope, "_fields", self._counted)

    def _counted(self, *args: Any) -> dict[str, Any]:
        self.count += 1
        return self._build(*args)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> FieldReads:
    # Of its own: the logger of the module keeps the level of its first use.
    monkeypatch.setattr(request_scope, "_log", structlog.get_logger())
    return FieldReads(monkeypatch)


@pytest.fixture(autouse=True)
def restored_logs() -> Any:
    configuration = structlog.get_config()
    yield
    structlog.configure(**configuration)


class Ended:
    """What the log line reads of a call that has ended."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._state = type("State", (), {"client": "ok", "gatekeeper_client": "ipv4:192.0.2.7:5001"})
        self._code = code

    def invocation_metadata(self) -> tuple[()]:
        """Return what the client sent."""
        return ()

    def code(self) -> grpc.StatusCode:
        return self._code

    def peer_identities(self) -> None:
        """Return what a client without a certificate has."""


def finish(level: str, *, code: grpc.StatusCode = grpc.StatusCode.OK, quiet: bool = True) -> None:
    configure_logs(level=level, log_format="json")
    log_finished(Rpc(method=QUIET, durations=MethodDurations(QUIET), quiet=quiet, samples=LineSamples()), Ended(code))


def test_a_suppressed_line_is_not_built(reads: FieldReads, capsys: pytest.CaptureFixture[str]) -> None:
    finish("INFO")

    assert (reads.count, capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize(
    ("level", "arguments", "logged_as"),
    [
        ("DEBUG", {}, "debug"),
        ("INFO", {"code": grpc.StatusCode.NOT_FOUND}, "info"),
        ("INFO", {"quiet": False}, "info"),
    ],
    ids=["quiet success at DEBUG", "quiet failure", "success"],
)
def test_twin_a_line_that_is_written_is_built(
    level: str, arguments: Any, logged_as: str, reads: FieldReads, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(level, **arguments)

    line = json.loads(capsys.readouterr().err)
    assert (reads.count, line["event"], line["level"], line["method"]) == (1, "rpc", logged_as, QUIET)
