"""Every private name of grpcio that we use, looked up in the installed grpcio: one that moves is named here.

If a test of this file fails after an upgrade of grpcio: find in `grpc/_server.py` what has become of the name that it
prints, change `transport/grpcio_internals.py` and the table, and run all of tests/rpc/transport, which prove the
behaviour.
"""

import ast
import importlib
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from gatekeeper_grpc.transport import grpcio_internals

TIMEOUT_S = 60.0
SOURCE = Path(grpcio_internals.__file__)
PRODUCT = SOURCE.parents[1]

# What has the names, and the names.
PRIVATE_NAMES: Mapping[str, frozenset[str]] = {
    "grpc._server": frozenset(
        {
            "_CANCELLED",
            "_CLOSED",
            "_HandlerCallDetails",
            "_OPEN",
            "_RECEIVE_CLOSE_ON_SERVER_TOKEN",
            "_RECEIVE_MESSAGE_TOKEN",
            "_REQUEST_CALL_TAG",
            "_RPCState",
            "_RequestIterator",
            "_SEND_MESSAGE_TOKEN",
            "_SEND_STATUS_FROM_SERVER_TOKEN",
            "_ServerStage",
            "_abort",
            "_get_initial_metadata_operation",
            "_is_rpc_state_active",
            "_possibly_finish_call",
            "_receive_close_on_server",
            "_request_call",
            "_request_registered_call",
            "_send_message",
            "_send_status_from_server",
            "_serialized_request",
            "_unary_response_in_pool",
            "cygrpc",
        }
    ),
    "grpc._server._ServerStage": frozenset({"STARTED"}),
    "cygrpc": frozenset(
        {
            "CompletionQueue",
            "CompletionType",
            "ReceiveCloseOnServerOperation",
            "ReceiveMessageOperation",
            "RequestCallEvent",
            "SendInitialMetadataOperation",
            "SendMessageOperation",
            "SendStatusFromServerOperation",
            "StatusCode",
            "peer_identities",
        }
    ),
    "cygrpc.CompletionType": frozenset({"queue_timeout"}),
    "cygrpc.StatusCode": frozenset({"ok", "unknown"}),
    "the server": frozenset({"_state"}),
    "the server's state": frozenset(
        {
            "completion_queue",
            "due",
            "generic_handlers",
            "interceptor_pipeline",
            "lock",
            "registered_method_handlers",
            "rpc_states",
            "server",
            "stage",
        }
    ),
    "the cygrpc server": frozenset({"register_completion_queue"}),
    "the event of a call": frozenset(
        {"call", "call_details", "completion_type", "invocation_metadata", "success", "tag"}
    ),
    "the details of a call": frozenset({"method"}),
    "the cygrpc call": frozenset({"cancel", "peer", "start_server_batch"}),
    "the context of a call": frozenset({"_rpc_event", "_state"}),
    "the request iterator": frozenset({"_look_for_request", "_raise_or_start_receive_message", "_state"}),
    "the state of a call": frozenset(
        {
            "aborted",
            "callbacks",
            "client",
            "code",
            "condition",
            "context",
            "details",
            "due",
            "initial_metadata_allowed",
            "request",
            "statused",
            "trailing_metadata",
        }
    ),
}
# How grpcio_internals.py spells what has the names.
SPELLINGS = {
    "_server": "grpc._server",
    "_cygrpc": "cygrpc",
    "_cygrpc.CompletionType": "cygrpc.CompletionType",
    "_cygrpc.StatusCode": "cygrpc.StatusCode",
    "_server._ServerStage": "grpc._server._ServerStage",
    "server": "the server",
    "server_state": "the server's state",
    "server_state.server": "the cygrpc server",
    "event": "the event of a call",
    "context._rpc_event": "the event of a call",
    "event.call_details": "the details of a call",
    "self._call": "the cygrpc call",
    "call": "the cygrpc call",
    "event.call": "the cygrpc call",
    "context": "the context of a call",
    "requests": "the request iterator",
    "self._requests": "the request iterator",
    "self._state": "the state of a call",
    "state": "the state of a call",
    "context._state": "the state of a call",
}
OURS = {"arrived", "self", "super()"}
SET_BY_US = {
    "become_lasting",
    "gatekeeper_arrival",
    "gatekeeper_arrived_at",
    "gatekeeper_call",
    "gatekeeper_client",
    "gatekeeper_ending",
    "gatekeeper_is_stream",
}


class _Submissions(ThreadPoolExecutor):
    """A pool that keeps what grpcio submits."""

    def __init__(self) -> None:
        super().__init__(1)
        self.args: tuple[Any, ...] = ()

    def submit(self, fn: Any, /, *args: Any, **_kwargs: Any) -> Future[Any]:
        self.args = args
        return super().submit(fn, *args)


class _Behaviour:
    def __call__(self, requests: Any, context: Any) -> bytes:
        self.requests, self.context = requests, context
        return b"".join(requests)


@pytest.fixture(scope="module")
def live() -> dict[str, Any]:
    """One call on an ordinary server, and all objects of it that we touch."""
    pool, behaviour = _Submissions(), _Behaviour()
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    handler = grpc.method_handlers_generic_handler(
        "test.v1.Call", {"A": grpc.stream_unary_rpc_method_handler(behaviour)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_unary("/test.v1.Call/A")
        assert call(iter([b"a", b"b"]), timeout=TIMEOUT_S) == b"ab"
    server.stop(None).wait(TIMEOUT_S)
    module = importlib.import_module("grpc._server")
    in_pool, event, state, submitted, *further = pool.args
    return {
        "grpc._server": module,
        "cygrpc": getattr(module, "cygrpc", None),
        "cygrpc.CompletionType": getattr(getattr(module, "cygrpc", None), "CompletionType", None),
        "cygrpc.StatusCode": getattr(getattr(module, "cygrpc", None), "StatusCode", None),
        "grpc._server._ServerStage": getattr(module, "_ServerStage", None),
        "the server": server,
        "the server's state": getattr(server, "_state", None),
        "the cygrpc server": getattr(getattr(server, "_state", None), "server", None),
        "the event of a call": event,
        "the details of a call": getattr(event, "call_details", None),
        "the cygrpc call": getattr(event, "call", None),
        "the context of a call": behaviour.context,
        "the request iterator": behaviour.requests,
        "the state of a call": state,
        "what runs on a worker": in_pool,
        "the submitted behaviour": submitted,
        "what is submitted further": further,
        "the served behaviour": behaviour,
    }


def missing(live: Mapping[str, Any]) -> list[str]:
    return [
        f"{owner} has no {name}"
        for owner, names in PRIVATE_NAMES.items()
        for name in sorted(names)
        if not hasattr(live[owner], name)
    ]


def test_grpcio_has_every_private_name_that_we_use(live: dict[str, Any]) -> None:
    assert missing(live) == [], f"moved in grpcio {grpc.__version__}: see the docstring of this file"


def test_twin_a_name_that_moves_is_named(live: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("grpc._server._abort")
    monkeypatch.delattr(live["the request iterator"], "_state")

    assert missing(live) == ["grpc._server has no _abort", "the request iterator has no _state"]


def test_a_call_is_submitted_with_its_event_state_and_behaviour(live: dict[str, Any]) -> None:
    context, requests, state = (
        live[f"the {name}"] for name in ("context of a call", "request iterator", "state of a call")
    )

    assert live["what runs on a worker"] is live["grpc._server"]._unary_response_in_pool
    assert live["the submitted behaviour"] is live["the served behaviour"]
    assert [live["what is submitted further"][0](), *live["what is submitted further"][1:]] == [requests, None, None]
    assert context._state is requests._state is state
    assert context._rpc_event is live["the event of a call"]


def test_a_brief_state_begins_as_one_of_grpcio_does(live: dict[str, Any]) -> None:
    theirs = vars(live["grpc._server"]._RPCState())
    brief = grpcio_internals._BriefState(threading.RLock())

    missing = {name for name in theirs if not hasattr(brief, name)}
    other = {name for name in theirs.keys() - missing if getattr(brief, name) != theirs[name]}

    assert missing == {"context"}
    assert other == {"callbacks", "condition", "rpc_errors"}


def test_the_table_lists_exactly_what_the_module_uses() -> None:
    used: dict[str, set[str]] = {owner: set() for owner in PRIVATE_NAMES}
    for owner, name in attributes_of_grpcio(ast.parse(SOURCE.read_text())):
        used[owner].add(name)

    assert used == PRIVATE_NAMES


def attributes_of_grpcio(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in SET_BY_US:
            of = ast.unparse(node.value)
            if of in SPELLINGS:
                yield SPELLINGS[of], node.attr
            else:
                assert of in OURS or not node.attr.startswith("_"), f"{of}.{node.attr}: of what? Add it to SPELLINGS"


def test_no_other_module_uses_private_names_of_grpcio() -> None:
    private = re.compile(r"\bgrpc\._|\bcygrpc\b|\b_rpc_event\b|\bcontext\._|\b_?server\._state\b")
    guilty = [path.name for path in PRODUCT.rglob("*.py") if path != SOURCE and private.search(path.read_text())]

    assert guilty == []
