"""What the tests of RPCs share: one installation for the tests of a module."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gatekeeper_grpc import draws
from gatekeeper_grpc.store.configuration import store
from tests.support.clients import Installation, installed


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    """A server on a database of its own, with an admin user of each role; all tests of a module share it."""
    with installed(postgres) as installation:
        yield installation


@pytest.fixture(autouse=True)
def without_limit_of_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a configuration keeps others waiting depends on the machine: here it may."""
    monkeypatch.setattr(f"{store.__name__}.MAX_LOCK_S", 60.0)


@pytest.fixture(
    scope="module",
    params=[("true", True), ("true", False), ("false", True)],
    ids=["at_once", "at_once_in_python", "by_workers"],
)
def answering(request: pytest.FixtureRequest) -> Iterator[None]:
    """The ways in which an evaluation is answered, for the servers that the tests of a module start.

    Draws are made by the kernel, where it was built, or in Python.
    """
    at_once, is_native = request.param
    with pytest.MonkeyPatch.context() as patch, drawn(native=is_native):
        patch.setenv("GATEKEEPER_ANSWER_AT_ONCE", at_once)
        yield


@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def drawing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Draws made by the kernel, where it was built, and in Python."""
    with drawn(native=request.param):
        yield


@contextmanager
def drawn(*, native: bool) -> Iterator[None]:
    assert draws.use(native=native) is None
    try:
        yield
    finally:
        draws.use(native=False)
