"""Runs client commands against the server of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.clients import Installation
from tests.support.commands import Run, runner
from tests.support.servers import access_token


@pytest.fixture(autouse=True)
def server_logs() -> Iterator[None]:
    """The server of this process logs to the same standard output."""
    with capture_logs():
        yield


@pytest.fixture
def run(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a client command in this process; nobody is logged in."""
    monkeypatch.setenv("GATEKEEPER_SERVER", f"127.0.0.1:{installation.server.port}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return runner(monkeypatch, capsys)


@pytest.fixture
def as_viewer(run: Run, installation: Installation) -> Run:
    """Runs a command with a viewer's token."""
    return lambda *arguments, **more: run(*arguments, GATEKEEPER_TOKEN=access_token(installation.dsn, "viewer"), **more)


@pytest.fixture
def as_editor(run: Run, installation: Installation) -> Run:
    """Runs a command with an editor's token."""
    return lambda *arguments, **more: run(*arguments, GATEKEEPER_TOKEN=access_token(installation.dsn, "editor"), **more)


@pytest.fixture
def as_admin(run: Run, installation: Installation) -> Run:
    """Runs a command with an admin's token."""
    return lambda *arguments, **more: run(*arguments, GATEKEEPER_TOKEN=access_token(installation.dsn, "admin"), **more)
