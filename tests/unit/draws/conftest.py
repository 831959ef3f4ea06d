"""The implementations of the draws, under the same tests."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from gatekeeper_grpc.draws import Draws
from gatekeeper_grpc.draws.native import Kernel, NativeDraws
from gatekeeper_grpc.draws.python import PythonDraws
from tests.support.kernels import BASELINE, load

Compile = Callable[[Sequence[bytes], Sequence[int]], Draws]


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """The kernel as it is built."""
    return load(tmp_path_factory.mktemp("kernel"))


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """The kernel as an old processor runs it."""
    return load(tmp_path_factory.mktemp("kernel"), BASELINE)


@pytest.fixture(scope="session", params=["python", "kernel", "baseline"])
def compiled(request: pytest.FixtureRequest) -> Compile:
    """What compiles flags."""
    if request.param == "python":
        return PythonDraws
    return partial(NativeDraws, request.getfixturevalue(request.param))
