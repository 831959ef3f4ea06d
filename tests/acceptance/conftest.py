"""What acceptance tests stand on: a data directory that a first start has made, and a server on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Gatekeeper, copied, serving


@pytest.fixture(scope="session")
def first_started_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after `serve --demo`, ended; not to be used itself."""
    made = tmp_path_factory.mktemp("first-start") / "data"
    with serving(made, "--demo"):
        return made


@pytest.fixture
def data_dir(first_started_dir: Path, tmp_path: Path) -> Path:
    """A data directory of this test's own, with the demo flag and the first admin in it."""
    return copied(first_started_dir, tmp_path)


@pytest.fixture
def gatekeeper(data_dir: Path) -> Iterator[Gatekeeper]:
    """A server of this test's own."""
    with serving(data_dir) as started:
        yield started
