"""Overload: the server answers while clients flood it, stall, or send nothing. Twins show the harm without that."""

import contextvars
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gatekeeper_grpc.interceptors import chain
from gatekeeper_grpc.interceptors.policy import POLICIES
from gatekeeper_grpc.transport import listener
from gatekeeper_grpc.transport.admission import CallPools, PoolName
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.transport.message_timeout import MessageTimeout
from gatekeeper_grpc.transport.pending_calls import PendingCalls, PendingLimits
from gatekeeper_grpc.transport.shares import PoolSize
from tests.support.floods import Blocking, HalfOpen, retry_after_s
from tests.support.stages import (
    ADMIN_TOKEN,
    EDIT,
    EDITOR_TOKEN,
    OPEN,
    STREAM,
    TIMEOUT_S,
    Server,
    echo,
    echo_stream,
    error_info,
    fails,
    serve,
    stream,
    text,
    unary,
    verify_role_name,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.promise("C1"), pytest.mark.usefixtures("either_state")]

TWO_WORKERS = PoolSize(workers=2, queue=16)
ENDLESS = MessageTimeout(limit_s=60.0, limit_when_saturated_s=60.0)
BRISK = MessageTimeout(limit_s=0.3, limit_when_saturated_s=0.3)


def codes_of(calls: list[Any]) -> set[grpc.StatusCode]:
    return {call.exception(timeout=TIMEOUT_S).code() for call in calls}


def victim_codes(server: Server, *, calls: int, timeout_s: float, metadata: Any = ()) -> set[grpc.StatusCode]:
    echoes = server.unary("Echo")
    outcomes = set()
    for _ in range(calls):
        call = echoes.future(text(), timeout=timeout_s, metadata=metadata)
        outcomes.add(call.code())
    return outcomes


@contextmanager
def crowded_evaluation(half_open: int) -> Iterator[Server]:
    """A public method on two workers, and clients that open calls of it and send nothing."""
    sizes = {PoolName.EVALUATION: TWO_WORKERS}
    with serve({"Echo": (unary(echo), OPEN)}, sizes=sizes, message_timeout=ENDLESS) as server:
        arrived = arrivals_at(server.pools[PoolName.EVALUATION])
        with HalfOpen(server) as crowd:
            crowd.open(half_open)
            wait_for(arrived, half_open)
            yield server


def arrivals_at(pool: Any, takes: str = "take") -> threading.Semaphore:
    """Count calls as a pool takes them."""
    arrived, take = threading.Semaphore(0), getattr(pool, takes)

    def counted(*args: Any) -> Any:
        taken = take(*args)
        arrived.release()
        return taken

    setattr(pool, takes, counted)
    return arrived


def wait_for(arrived: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert arrived.acquire(timeout=TIMEOUT_S)


def test_a_thousand_calls_without_a_message_harm_no_other_address() -> None:
    with crowded_evaluation(half_open=1_000) as server, server.seen_from("127.0.2.1") as victim:
        assert victim_codes(victim, calls=100, timeout_s=5.0) == {grpc.StatusCode.OK}


def test_twin_without_pending_calls_two_such_calls_starve_the_victim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PendingCalls, "hold", lambda _self, call, *, admit, **_within: admit(call))
    with crowded_evaluation(half_open=2) as server:
        assert victim_codes(server, calls=3, timeout_s=0.3) == {grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.mark.parametrize("policy", [OPEN, EDIT], ids=["open", "with a token"])
def test_a_message_that_does_not_arrive_ends_the_call_with_a_timeout(policy: Any) -> None:
    with serve({"Echo": (unary(echo), policy)}, message_timeout=BRISK) as server, HalfOpen(server) as silent:
        (call,) = silent.open(1, metadata=EDITOR_TOKEN)
        error = call.exception(timeout=TIMEOUT_S)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "request message" in error.details()
    assert error_info(error).reason == "REQUEST_TIMEOUT"


@pytest.mark.promise("C6")
@pytest.mark.parametrize("receiving", [1, 40], ids=["waiting", "receiving"])
def test_calls_cancelled_before_their_message_are_forgotten(receiving: int) -> None:
    pending = PendingLimits(receiving=receiving)
    silence = serve({"Echo": (unary(echo), OPEN)}, pending=pending, message_timeout=ENDLESS)
    with silence as server, HalfOpen(server) as silent:
        calls = silent.open(20)
        assert eventually(lambda: len(server.pools.pending.strangers) > 10)
        for call in calls:
            call.cancel()

        assert eventually(lambda: len(server.pools.pending.strangers) == 0)
        assert eventually(lambda: server.pools.pending.strangers.held_bytes == 0)
        assert victim_codes(server, calls=1, timeout_s=5.0) == {grpc.StatusCode.OK}


def test_a_call_without_a_token_is_refused_before_its_message() -> None:
    sizes = {PoolName.ADMIN_WRITE: PoolSize(workers=2, queue=300)}
    endless = serve({"Echo": (unary(echo), EDIT)}, sizes=sizes, message_timeout=ENDLESS)
    with endless as server, HalfOpen(server) as crowd:
        assert codes_of(crowd.open(200)) == {grpc.StatusCode.UNAUTHENTICATED}
        assert victim_codes(server, calls=5, timeout_s=5.0, metadata=EDITOR_TOKEN) == {grpc.StatusCode.OK}


def test_twin_refusing_in_an_ordinary_handler_pins_a_worker_per_call() -> None:
    def denies(_request: StringValue, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

    pool = futures.ThreadPoolExecutor(2)
    arrived = arrivals_at(pool, "submit")
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    handler = grpc.method_handlers_generic_handler("test.v1.TestService", {"Echo": unary(denies)})
    server.add_generic_rpc_handlers((handler,))
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with grpc.insecure_channel(target) as channel:
        bare = Server(pools=None, grpc_server=server, target=target, channel=channel)  # type: ignore[arg-type]
        with HalfOpen(bare) as crowd:
            crowd.open(2)
            wait_for(arrived, 2)
            assert victim_codes(bare, calls=2, timeout_s=0.3) == {grpc.StatusCode.DEADLINE_EXCEEDED}
    server.stop(None).wait(TIMEOUT_S)


@contextmanager
def silent_admins(half_open: int) -> Iterator[Server]:
    """A method on two workers that needs a token, and callers who have one and send nothing else."""
    sizes = {EDIT.pool: TWO_WORKERS}
    with serve({"Echo": (unary(echo), EDIT)}, sizes=sizes, message_timeout=ENDLESS) as server:
        arrived = arrivals_at(server.pools[EDIT.pool])
        with HalfOpen(server) as crowd:
            crowd.open(half_open, metadata=EDITOR_TOKEN)
            wait_for(arrived, half_open)
            yield server


def test_calls_with_a_token_and_no_message_harm_no_other_admin() -> None:
    with silent_admins(half_open=200) as server:
        assert victim_codes(server, calls=20, timeout_s=5.0, metadata=ADMIN_TOKEN) == {grpc.StatusCode.OK}


def test_twin_if_workers_wait_for_messages_two_such_calls_starve_admins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PendingCalls, "hold", lambda _self, call, *, admit, **_within: admit(call))
    with silent_admins(half_open=2) as server:
        outcome = victim_codes(server, calls=2, timeout_s=0.3, metadata=EDITOR_TOKEN)
        assert outcome == {grpc.StatusCode.DEADLINE_EXCEEDED}


@contextmanager
def stalled_streams(timeout: MessageTimeout) -> Iterator[Server]:
    """Two streams occupy both workers of a pool, each after its first message."""
    endless_echo = replace(STREAM, timeout=ENDLESS)
    methods = {"Echo": (unary(echo), endless_echo), "Stream": (stream(echo_stream), STREAM)}
    sizes = {STREAM.pool: TWO_WORKERS}
    with serve(methods, sizes=sizes, stream_timeout=timeout) as server, HalfOpen(server) as crowd:
        crowd.open(2, method="Stream", first=(b"",))
        assert eventually(lambda: server.pools[STREAM.pool].in_flight == 2)
        yield server


def test_workers_waiting_for_messages_are_freed_when_calls_queue() -> None:
    with stalled_streams(MessageTimeout(limit_s=60.0, limit_when_saturated_s=0.05)) as server:
        assert victim_codes(server, calls=3, timeout_s=5.0) == {grpc.StatusCode.OK}


def test_twin_with_a_long_timeout_when_saturated_the_victim_starves() -> None:
    with stalled_streams(ENDLESS) as server:
        assert victim_codes(server, calls=2, timeout_s=0.3) == {grpc.StatusCode.DEADLINE_EXCEEDED}


def test_a_silent_stream_is_ended_and_its_worker_freed() -> None:
    sizes = {PoolName.BULK: PoolSize(workers=1, queue=4)}
    brisk = serve({"Stream": (stream(echo_stream), STREAM)}, sizes=sizes, stream_timeout=BRISK)
    with brisk as server, HalfOpen(server) as silent:
        (call,) = silent.open(1, method="Stream", first=(b"",))
        assert codes_of([call]) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert list(server.stream("Stream")(iter([text()]), timeout=TIMEOUT_S)) == [text()]


def test_a_stream_whose_client_keeps_sending_is_not_ended() -> None:
    def slowly() -> Iterator[StringValue]:
        for _ in range(5):
            yield text()
            time.sleep(BRISK.limit_s / 3)

    with serve({"Stream": (stream(echo_stream), STREAM)}, stream_timeout=BRISK) as server:
        assert len(list(server.stream("Stream")(slowly(), timeout=TIMEOUT_S))) == 5


@contextmanager
def client_that_does_not_read(timeout: MessageTimeout) -> Iterator[Server]:
    """One streams worker, and a client that requests endless responses and reads none."""
    full = threading.Event()

    def endless(requests: Iterator[StringValue], _context: Any) -> Iterator[StringValue]:
        endlessly = next(requests).value == "endlessly"
        yield text("x" * 100_000)
        full.set()
        while endlessly:
            yield text("x" * 100_000)

    sizes = {PoolName.BULK: PoolSize(workers=1, queue=4)}
    with serve({"Stream": (stream(endless), STREAM)}, sizes=sizes, stream_timeout=timeout) as server:
        unread = server.stream("Stream")(iter([text("endlessly")]))
        assert full.wait(TIMEOUT_S)
        yield server
        unread.cancel()


def test_a_client_that_does_not_read_is_cancelled_and_frees_its_worker() -> None:
    with client_that_does_not_read(BRISK) as server:
        assert len(list(server.stream("Stream")(iter([text()]), timeout=TIMEOUT_S))) == 1


def test_twin_without_a_limit_such_a_client_keeps_its_worker() -> None:
    with client_that_does_not_read(ENDLESS) as server, pytest.raises(grpc.RpcError, match="Deadline Exceeded"):
        list(server.stream("Stream")(iter([text()]), timeout=0.5))


@pytest.mark.promise("C2")
@pytest.mark.parametrize("policy", [OPEN, EDIT], ids=["open", "with a token"])
def test_a_call_to_a_full_pool_is_refused_and_other_pools_serve(policy: Any) -> None:
    blocking, other = Blocking(), PoolName.ADMIN_WRITE if policy is OPEN else PoolName.EVALUATION
    methods = {"Block": (unary(blocking), policy), "Echo": (unary(echo), OPEN if policy is EDIT else EDIT)}
    with serve(methods, sizes={policy.pool: PoolSize(workers=1, queue=1)}) as server:
        running = server.unary("Block").future(text("1"), metadata=EDITOR_TOKEN)
        assert blocking.entered.acquire(timeout=TIMEOUT_S)
        queued = server.unary("Block").future(text("2"), metadata=EDITOR_TOKEN)
        assert eventually(server.pools[policy.pool].is_saturated)

        refusal = fails(server.unary("Block"), text("3"), metadata=EDITOR_TOKEN)
        assert server.unary("Echo")(text(), metadata=EDITOR_TOKEN) == text()

        blocking.released.set()
        assert (running.result(), queued.result()) == (text("1"), text("2"))
        assert server.unary("Block")(text("4"), metadata=EDITOR_TOKEN) == text("4")

    assert (refusal.code(), error_info(refusal).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
    assert retry_after_s(refusal) == 1.0
    assert sum(server.pools[policy.pool].refused.values()) == 1
    assert sum(server.pools[other].refused.values()) == 0


@pytest.mark.promise("C6")
def test_refused_and_timed_out_calls_leave_nothing_behind() -> None:
    blocking = Blocking()
    methods = {"Block": (unary(blocking), OPEN), "Echo": (unary(echo), OPEN)}
    sizes = {PoolName.EVALUATION: PoolSize(workers=1, queue=0)}
    with serve(methods, sizes=sizes, pending=PendingLimits(receiving=40), message_timeout=BRISK) as server:
        running = server.unary("Block").future(text())
        assert blocking.entered.acquire(timeout=TIMEOUT_S)
        assert victim_codes(server, calls=20, timeout_s=5.0) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        with HalfOpen(server) as silent:
            assert codes_of(silent.open(20)) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        blocking.released.set()
        assert running.result() == text()

        calls_known_to_grpcio = server.grpc_server._state.rpc_states  # type: ignore[attr-defined]
        assert eventually(lambda: not calls_known_to_grpcio)


def test_a_closed_pool_refuses_calls_and_the_serving_thread_lives() -> None:
    with serve({"Echo": (unary(echo), OPEN), "Edit": (unary(echo), EDIT)}) as server:
        server.pools[PoolName.EVALUATION].shutdown()

        assert fails(server.unary("Echo"), text()).code() is grpc.StatusCode.UNAVAILABLE
        assert server.unary("Edit")(text(), metadata=EDITOR_TOKEN) == text()


def test_a_call_for_which_no_thread_can_start_stays_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread() -> None:
        raise RuntimeError("can't start new thread")

    sizes = {PoolName.EVALUATION: PoolSize(workers=1, queue=1)}
    with serve({"Echo": (unary(echo), OPEN)}, sizes=sizes) as server:
        pool = server.pools[PoolName.EVALUATION]
        arrived = arrivals_at(pool)
        with monkeypatch.context() as exhausted:
            exhausted.setattr(pool, "_adjust_thread_count", no_thread)
            queued = server.unary("Echo").future(text("queued"), timeout=TIMEOUT_S)
            wait_for(arrived, 1)
            assert eventually(lambda: pool.in_flight == 1)

        assert server.unary("Echo")(text("next"), timeout=TIMEOUT_S) == text("next")
        assert queued.result() == text("queued")
        assert eventually(lambda: pool.in_flight == 0)


def test_twin_a_closed_ordinary_pool_ends_the_serving_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _args: died.set())
    pool = futures.ThreadPoolExecutor(1)
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    handler = grpc.method_handlers_generic_handler("test.v1.TestService", {"Echo": unary(echo)})
    server.add_generic_rpc_handlers((handler,))
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    pool.shutdown()
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary("/test.v1.TestService/Echo", StringValue.SerializeToString, None)
        fails_silently = call.future(text(), timeout=0.5)
        assert died.wait(TIMEOUT_S)
        assert fails_silently.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@contextmanager
def health_server() -> Iterator[tuple[health.HealthServicer, health_pb2_grpc.HealthStub]]:
    pools = CallPools()
    stages = chain.Stages(verify_token=verify_role_name, pools=pools, policies=POLICIES)
    server = grpc.server(pools[PoolName.OPERATIONS], interceptors=[stages], options=[("grpc.so_reuseport", 0)])
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, health_pb2_grpc.HealthStub(channel)
    server.stop(None).wait(TIMEOUT_S)
    pools.close()


def test_watchers_of_health_pin_no_worker() -> None:
    with health_server() as (servicer, stub):
        watchers = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(20)]
        first = {next(watcher).status for watcher in watchers}
        checked = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        second = {next(watcher).status for watcher in watchers}
        for watcher in watchers:
            watcher.cancel()

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert (first, checked, second) == ({serving}, serving, {not_serving})


def test_watchers_that_come_and_go_do_not_stop_the_server() -> None:
    """Without our interceptors, this stops the server of grpcio for good, so it has no twin in this process."""
    request = health_pb2.HealthCheckRequest()

    def come_and_go(stub: health_pb2_grpc.HealthStub) -> None:
        for _ in range(20):
            watchers = [stub.Watch(request, timeout=TIMEOUT_S) for _ in range(5)]
            for watcher in watchers[:3]:
                next(watcher)
            for watcher in watchers:
                watcher.cancel()

    with health_server() as (_servicer, stub), futures.ThreadPoolExecutor(3) as clients:
        visits = [clients.submit(come_and_go, stub) for _ in range(3)]
        for visit in visits:
            visit.result(TIMEOUT_S)
        assert stub.Check(request, timeout=TIMEOUT_S).status


def test_callbacks_of_a_non_blocking_method_run_on_a_worker() -> None:
    ended_on: list[str] = []
    ended, of_call = threading.Event(), contextvars.ContextVar("of_call", default="of no call")

    def note() -> None:
        ended_on.extend([threading.current_thread().name, of_call.get()])
        ended.set()

    def watch(_requests: Any, context: Any, send_response: Any = None) -> None:
        of_call.set("of this call")
        context.add_callback(note)
        send_response(text("first"))

    watch.experimental_non_blocking = True  # type: ignore[attr-defined] # What grpcio looks for.
    with serve({"Watch": (stream(watch), STREAM)}) as server:
        call = server.stream("Watch")(iter([text()]))
        assert next(call) == text("first")
        call.cancel()
        assert ended.wait(TIMEOUT_S)

    assert ended_on[0].startswith("gatekeeper-bulk")
    assert ended_on[1] == "of this call"


@contextmanager
def busy_serving_thread() -> Iterator[tuple[Server, threading.Event]]:
    """A server whose serving thread is stuck with its first call until the event is set."""
    go_on = threading.Event()
    with serve({"Echo": (unary(echo), OPEN)}) as server:
        pool, stuck = server.pools[OPEN.pool], threading.Event()
        take = pool.take

        def wait_first(call: ArrivedCall) -> None:
            stuck.set()
            assert go_on.wait(TIMEOUT_S)
            take(call)

        pool.take = wait_first  # type: ignore[method-assign] # A spy.
        first = server.unary("Echo").future(text())
        assert stuck.wait(TIMEOUT_S)
        yield server, go_on
        assert first.result() == text()


def codes_of_backlog(calls: int) -> set[grpc.StatusCode]:
    """Open calls while the serving thread takes none; return how they end when it does."""
    with busy_serving_thread() as (server, go_on), ExitStack() as stack:
        option = ("grpc.use_local_subchannel_pool", 1)
        channels = [
            stack.enter_context(grpc.insecure_channel(server.target, options=[option])) for _ in range(calls // 100)
        ]
        futures = [
            replace(server, channel=channel).unary("Echo").future(text()) for channel in channels for _ in range(100)
        ]
        # A call that is dropped ends at once; nothing tells when the others have arrived.
        eventually(lambda: any(future.done() for future in futures), timeout_s=2.0)
        go_on.set()
        return {future.code() for future in futures}


@pytest.mark.promise("C2", "F2")
def test_calls_above_capacity_never_end_as_cancelled() -> None:
    assert codes_of_backlog(2_000) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_twin_with_the_default_backlog_some_do(monkeypatch: pytest.MonkeyPatch) -> None:
    options = tuple(option for option in listener.OPTIONS if "max_pending_requests" not in option[0])
    monkeypatch.setattr(listener, "OPTIONS", options)

    assert grpc.StatusCode.CANCELLED in codes_of_backlog(4_000)
