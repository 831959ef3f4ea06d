"""What the tests of RPCs share: one installation for the tests of a module."""

from collections.abc import Iterator

import pytest

from tests.support.clients import Installation, installed


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    """A server on a database of its own, with an admin user of each role; all tests of a module share it."""
    with installed(postgres) as installation:
        yield installation


@pytest.fixture(scope="module", params=["true", "false"], ids=["at_once", "by_workers"])
def answering(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways in which an evaluation is answered, for the servers that the tests of a module start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATEKEEPER_ANSWER_AT_ONCE", request.param)
        yield
