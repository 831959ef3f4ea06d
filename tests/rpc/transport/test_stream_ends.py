"""Open streams end by silence, by age, and with their credential. Twins show that they go on without that."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_status import rpc_status

from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.transport.message_timeout import MessageTimeout
from tests.support.stages import (
    EDIT,
    EDITOR_TOKEN,
    STREAM,
    TIMEOUT_S,
    Server,
    echo_stream,
    error_info,
    serve,
    stream,
    text,
    verify_role_name,
)

pytestmark = pytest.mark.promise("C1", "D2")

BRISK = MessageTimeout(limit_s=0.5, limit_when_saturated_s=0.5)
ENDLESS = MessageTimeout(limit_s=60.0, limit_when_saturated_s=60.0)
PAUSE_S = 0.1


class Client:
    """Opens a stream and sends the same message over and over, or one and no more, until it is told to stop."""

    def __init__(self, server: Server, message: StringValue, *, again: bool, metadata: Any = ()) -> None:
        self.left = threading.Event()
        self.answers = 0
        self._message, self._again = message, again
        self.call = server.stream("Stream")(self._requests(), metadata=metadata, timeout=TIMEOUT_S)

    def _requests(self) -> Iterator[StringValue]:
        yield self._message
        while not self.left.wait(PAUSE_S if self._again else None):
            yield self._message

    def error(self) -> Any:
        """Read until the stream ends."""
        try:
            with pytest.raises(grpc.RpcError) as ended:
                self._read()
            return ended.value
        finally:
            self.left.set()

    def _read(self) -> None:
        for _ in self.call:
            self.answers += 1

    def is_open_after(self, answers: int) -> bool:
        """Read so many answers; they take longer than what ends the stream of the other test."""
        try:
            return len([next(self.call) for _ in range(answers)]) == answers
        finally:
            self.left.set()
            self.call.cancel()


@contextmanager
def serving(policy: Any, **limits: Any) -> Iterator[Server]:
    with serve({"Stream": (stream(echo_stream), policy)}, **limits) as server:
        yield server


def test_a_stream_of_empty_messages_is_silent() -> None:
    with serving(replace(STREAM, progress_field="value"), stream_timeout=BRISK) as server:
        client = Client(server, text(""), again=True)
        error = client.error()

    assert (error.code(), error_info(error).reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT")
    assert client.answers > 1


@pytest.mark.parametrize(
    ("policy", "message"),
    [(STREAM, ""), (replace(STREAM, progress_field="value"), "content")],
    ids=["twin: every message counts", "messages with content"],
)
def test_a_stream_whose_messages_count_goes_on(policy: Any, message: str) -> None:
    with serving(policy, stream_timeout=BRISK) as server:
        assert Client(server, text(message), again=True).is_open_after(answers=12)


@pytest.mark.parametrize("again", [True, False], ids=["busy", "waiting"])
def test_a_stream_ends_at_its_greatest_age_and_is_not_ok(again: bool) -> None:
    with serving(STREAM, stream_timeout=ENDLESS, max_ages_s={STREAM.pool: 0.5}) as server:
        error = Client(server, text(), again=again).error()

    status = rpc_status.from_call(error)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert status is not None
    assert [detail.type_url.rpartition(".")[2] for detail in status.details] == ["ErrorInfo"]


def test_twin_a_stream_without_a_greatest_age_goes_on() -> None:
    with serving(STREAM, stream_timeout=ENDLESS, max_ages_s={}) as server:
        assert Client(server, text(), again=True).is_open_after(answers=12)


def soon_expired(token: str) -> Caller:
    return replace(verify_role_name(token), expire_time_s=time.time() + 0.5)


EDIT_STREAM = replace(EDIT, access=Role.EDITOR)


@pytest.mark.promise("D3")
@pytest.mark.parametrize("again", [True, False], ids=["busy", "waiting"])
def test_a_stream_ends_when_its_access_token_expires(again: bool) -> None:
    with serving(EDIT_STREAM, stream_timeout=ENDLESS, verify_token=soon_expired) as server:
        error = Client(server, text(), again=again, metadata=EDITOR_TOKEN).error()

    assert (error.code(), error_info(error).reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


def test_twin_a_stream_that_asks_only_at_its_start_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Caller, "check_token_time", lambda _self: None)
    with serving(EDIT_STREAM, stream_timeout=ENDLESS, verify_token=soon_expired) as server:
        assert Client(server, text(), again=True, metadata=EDITOR_TOKEN).is_open_after(answers=12)
