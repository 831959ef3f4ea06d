"""`gatekeeper_grpc.testing`: what client teams test against, over a real socket."""

import doctest
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
import structlog

import gatekeeper_grpc.testing
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.errors import InvalidArgument, NotFound
from gatekeeper_grpc.domain.flag import ON, FlagConfig, SegmentTarget
from gatekeeper_grpc.domain.segment import SegmentConfig
from gatekeeper_grpc.testing import EvaluationServer, serve
from tests.support.clients import TIMEOUT_S, Refusal, refusal_of
from tests.support.watching import CREATED, UPDATED, watching

STAFF = SegmentConfig(
    key="staff", conditions=(Condition(attribute="team", operator=Operator.EQUALS, values=("gatekeeper",)),)
)
BETA = FlagConfig(key="beta", enabled=True, segment_targets=(SegmentTarget(segment_key="staff", variant=ON),))


@contextmanager
def connected(server: EvaluationServer) -> Iterator[grpc.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with server, grpc.insecure_channel(server.address, options=options) as channel:
        yield channel


def asked(channel: grpc.Channel, user_id: str, *, min_revision: int = 0, **attributes: str) -> dict[str, bool]:
    context = EvaluationContext(user_id=user_id)
    context.attributes.update(attributes)
    request = EvaluateFlagsRequest(context=context, min_revision=min_revision)
    return dict(EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S).flags)


def test_flags_are_evaluated_for_a_user() -> None:
    with connected(serve({"checkout": True, "search": False})) as channel:
        assert asked(channel, "alice") == {"checkout": True, "search": False}


def test_segments_are_evaluated_by_the_attributes_of_a_request() -> None:
    with connected(serve([BETA], [STAFF])) as channel:
        assert asked(channel, "alice", team="gatekeeper") == {"beta": True}
        assert asked(channel, "alice", team="other") == {"beta": False}


def test_many_users_are_evaluated_in_one_stream() -> None:
    server = serve()
    server.set_flag("checkout", users={"alice": True})
    contexts = [EvaluationContext(user_id=user) for user in ("alice", "bob")]
    with connected(server) as channel:
        stub = EvaluationServiceStub(channel)
        _header, answer = stub.BulkEvaluateFlags(iter([BulkEvaluateFlagsRequest(contexts=contexts)]), timeout=TIMEOUT_S)

    assert [(result.user_id, list(result.evaluation.values)) for result in answer.batch.results] == [
        ("alice", [True]),
        ("bob", [False]),
    ]


def test_a_call_after_set_flag_has_the_new_value() -> None:
    server = serve({"checkout": False})
    with connected(server) as channel:
        revision = server.set_flag("checkout", value=True)

        assert asked(channel, "alice", min_revision=revision) == {"checkout": True}


def test_a_watcher_is_told_of_set_flag() -> None:
    server = serve({"checkout": False})
    with connected(server) as channel, watching(channel) as watch:
        watch.read()
        server.set_flag("checkout", value=True)
        assert watch.read_changes() == {"checkout": UPDATED}
        server.set_flag("search")
        assert watch.read_changes() == {"search": CREATED}


def test_a_replaced_flag_has_only_its_new_targets() -> None:
    server = serve()
    server.set_flag("checkout", users={"alice": True})
    server.set_flag("checkout", users={"bob": True})
    with connected(server) as channel:
        assert [asked(channel, user)["checkout"] for user in ("alice", "bob")] == [False, True]


def test_a_revision_that_does_not_exist_is_refused_as_in_production() -> None:
    with connected(serve({"checkout": True})) as channel:
        refusal = refusal_of(lambda: asked(channel, "alice", min_revision=9))

    metadata = {"min_revision": "9", "revision": "2"}
    assert refusal == Refusal(grpc.StatusCode.FAILED_PRECONDITION, "REVISION_NOT_REACHED", metadata)


def test_a_malformed_request_is_refused_as_in_production() -> None:
    with connected(serve()) as channel:
        assert refusal_of(lambda: asked(channel, "a\0")).fields == ("context.user_id",)


@pytest.mark.parametrize(
    ("flags", "error"),
    [({"no such key!": True}, InvalidArgument), ([BETA], NotFound)],
    ids=["malformed key", "unknown segment"],
)
def test_flags_that_cannot_be_are_refused(flags: dict[str, bool] | list[FlagConfig], error: type[Exception]) -> None:
    with pytest.raises(error):
        serve(flags)


def test_close_ends_open_streams() -> None:
    server = serve()
    with connected(server) as channel, watching(channel) as watch:
        watch.read()
        server.close()

        assert watch.code() == grpc.StatusCode.UNAVAILABLE


def test_the_example_of_its_docstring_runs() -> None:
    with structlog.testing.capture_logs():
        assert doctest.testmod(gatekeeper_grpc.testing) == doctest.TestResults(failed=0, attempted=7)


def test_serving_imports_no_database_driver() -> None:
    script = """
import sys
from gatekeeper_grpc.testing import serve
with serve({"a": True}) as server:
    server.set_flag("a")
print([name for name in ("psycopg", "psycopg_pool", "redis") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=TIMEOUT_S)

    assert done.stdout.splitlines()[-1] == "[]"
