"""Logs of several workers go to one pipe, and stay one document a line."""

import io
import json
import sys
from collections.abc import Iterator

import pytest
import structlog

from gatekeeper_grpc.logs import configure_logs


class Written(io.StringIO):
    """Keeps each write by itself, as a pipe that others write to would show it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


@pytest.fixture
def configured_as_before() -> Iterator[None]:
    """Logging as it was before, afterwards."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_a_line_is_one_write_and_carries_the_workers_number(
    configured_as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Written()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logs(level="INFO", log_format="json", worker=3)

    structlog.get_logger().info("happened", where="here")

    (line,) = written.writes
    assert line.endswith("\n")
    entry = json.loads(line)
    assert (entry["worker"], entry["event"], entry["where"]) == (3, "happened", "here")
