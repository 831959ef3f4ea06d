"""Calls as grpcio deals with them, and as we do until they need a worker: the same promises hold for both."""

import pytest

from gatekeeper_grpc.interceptors import chain


@pytest.fixture(params=["lasting", "brief"])
def either_state(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unary calls are dealt with by grpcio, or they are as brief as those that may be answered where they arrive."""
    monkeypatch.setattr(chain._UnaryResponse, "answers_at_once", request.param == "brief")
