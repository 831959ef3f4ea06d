"""Logs of several workers go to one pipe, and stay one document a line."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from gatekeeper_grpc.operations import logs
from gatekeeper_grpc.operations.logs import begin_quiet, configure_logs, end_quiet


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


def test_what_a_library_says_again_and_again_is_one_line(
    configured_as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Written()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logs(level="INFO", log_format="json")
    pool = logging.getLogger("some.pool")

    for attempt in range(3):
        pool.warning("error connecting: %s", attempt)
    pool.warning("connected")

    entries = [json.loads(line) for line in written.writes]
    assert [(entry["logger"], entry["message"]) for entry in entries] == [
        ("some.pool", "error connecting: 0"),
        ("some.pool", "connected"),
    ]


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


@pytest.mark.parametrize(("variable", "is_coloured"), [("", True), ("1", False)])
def test_a_console_is_coloured_unless_no_color_is_set(
    variable: str, configured_as_before: None, monkeypatch: pytest.MonkeyPatch, *, is_coloured: bool
) -> None:
    written = Written()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("NO_COLOR", variable)
    configure_logs(level="INFO", log_format="console")

    structlog.get_logger().info("happened")

    assert ("\x1b[" in "".join(written.writes)) == is_coloured


def test_while_quiet_only_warnings_are_logged(configured_as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logs(level="INFO", log_format="json")
    log = structlog.get_logger()

    log.info("before")
    begin_quiet()
    log.info("during")
    log.warning("during")
    end_quiet()
    log.info("after")

    entries = [json.loads(line) for line in written.writes]
    assert [(entry["event"], entry["level"]) for entry in entries] == [
        ("before", "info"),
        ("during", "warning"),
        ("after", "info"),
    ]


def test_a_command_for_people_repeats_no_warning_of_a_library(
    configured_as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Written()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logs(level="INFO", log_format="json", libraries=False)
    monkeypatch.setattr(logs, "_log", structlog.get_logger())  # The first one keeps its output.

    logging.getLogger("some.pool").warning("error connecting")
    logging.getLogger("some.pool").error("broken")

    assert [json.loads(line)["message"] for line in written.writes] == ["broken"]
