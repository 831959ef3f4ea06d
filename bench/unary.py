"""EvaluateFlags compared with an empty call, a plain handler of grpcio with an empty answer (`bench.empty`).

Both servers take turns, second by second, and a ratio is that of two neighbouring rounds. While h2load calls, a gRPC
client makes 1 % of the calls in addition: it compares the values with the pure evaluator. A round counts only if the
server's own count of OK answers rose by exactly the calls of both.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.figures import Effort, Figure, median_figure, percentile
from bench.h2load import Load
from bench.processes import FLAGS, SERVE, Instance, database_url, flags_served, log_in, serving, snapshot_of
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import client_key_pb2 as keys
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext as Context
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.snapshot import Snapshot

SIZES = (1, 20, 200, 1_000)
CHECKED_SHARE = 0.01
QUESTION = EvaluateFlagsRequest(context=Context(user_id="user-1")).SerializeToString()
WARM_UP_CALLS = 500
COUNTED_WITHIN_S = 2.0
WAYS = ("with TLS", "with a bearer key", "by workers")
Metadata = tuple[tuple[str, str], ...]


class Round(NamedTuple):
    """Calls a second, and microseconds of processor time for each."""

    rate: float
    cpu_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server. `snapshot` is what it serves; None: it has the empty answer."""

    instance: Instance
    load: Load
    snapshot: Snapshot | None
    metadata: Metadata = ()
    rounds: list[Round | None] = field(default_factory=list)


def wrong_answers(server: Server, calls: int, seconds: float) -> list[str]:
    """Make so many calls by a gRPC client, evenly spread; returns the users for whom the pure evaluator differs."""
    wrong, began = [], time.perf_counter()
    with server.instance.channel() as channel:
        evaluate = EvaluationServiceStub(channel).EvaluateFlags
        for number in range(calls):
            time.sleep(max(0.0, began + number * seconds / calls - time.perf_counter()))
            user = f"checked-{number}"
            answer = evaluate(EvaluateFlagsRequest(context=Context(user_id=user)), metadata=server.metadata)
            if server.snapshot and answer.flags != expected(server.snapshot, user):
                wrong.append(user)
    return wrong


def expected(snapshot: Snapshot, user: str) -> dict[str, bool]:
    """Return the values of all flags by the pure evaluator."""
    plans = snapshot.select(()).plans
    details = snapshot.evaluate(plans, EvaluationContext(user_id=user))
    return {plan.key: detail.value for plan, detail in zip(plans, details, strict=True)}


def measure_round(server: Server, calls: int, seconds: float) -> Round | None:
    """Measure one round of so many calls, which take some `seconds`; None if it does not count.

    Raises:
        AssertionError: An answer had a value that the pure evaluator does not give.
    """
    checked = max(1, round(calls * CHECKED_SHARE))
    before, cpu_s = _answered(server), server.instance.cpu_s()
    with ThreadPoolExecutor(1) as thread:
        checking = thread.submit(wrong_answers, server, checked, seconds)
        rate = server.load.rate(server.instance, calls)
    assert not checking.result(), f"wrong values for {checking.result()}"
    cpu_us = (server.instance.cpu_s() - cpu_s) / (calls + checked) * 1e6
    return Round(rate=rate, cpu_us=cpu_us) if _has_counted(server, before + calls + checked) else None


def _answered(server: Server) -> int:
    return server.instance.answered() if server.snapshot else 0


def _has_counted(server: Server, answered: int) -> bool:
    """Whether the server counts so many OK answers; the last ones may be counted after their clients have them."""
    if server.snapshot is None:
        return True
    until = time.monotonic() + COUNTED_WITHIN_S
    while (counted := server.instance.answered()) < answered and time.monotonic() < until:
        time.sleep(0.01)
    return counted == answered


def take_turns(servers: Sequence[Server], effort: Effort) -> None:
    """Measure all rounds of all servers, each with as many calls as it answers in a round."""
    calls = {id(each): round(each.load.rate(each.instance, WARM_UP_CALLS) * effort.seconds) for each in servers}
    for _ in range(effort.rounds):
        for each in servers:
            each.rounds.append(measure_round(each, max(1, calls[id(each)]), effort.seconds))


def ratios(own: Server, empty: Server) -> tuple[list[float], list[float]]:
    """Return the ratios of rates and of processor times in all pairs of rounds that count."""
    pairs = [(mine, other) for mine, other in zip(own.rounds, empty.rounds, strict=True) if mine and other]
    return [mine.rate / other.rate for mine, other in pairs], [mine.cpu_us / other.cpu_us for mine, other in pairs]


def measure(effort: Effort) -> Iterator[Figure]:
    """Compare for each number of flags, as it is and with draws in Python."""
    for flags in SIZES:
        what = f"EvaluateFlags, {flags:,} flag{'s' * (flags > 1)}"
        with ExitStack() as stack:
            own, in_python, empty = _served(stack, flags), _served(stack, flags, GATEKEEPER_KERNEL="off"), _empty(stack)
            take_turns((own, in_python, empty), effort)
            yield from _figures(f"unary.{flags}", what, own, empty)
            yield from _figures(f"python.{flags}", f"{what}, in Python", in_python, empty)
            if flags == FLAGS:
                yield _at_half_load(own, empty, effort)


def measure_ways(effort: Effort) -> Iterator[Figure]:
    """Compare 20 flags as they come with TLS, with a bearer key, and by workers alone, all with the empty call."""
    with ExitStack() as stack:
        servers = dict(zip(WAYS, (_with_tls(stack), _with_key(stack), _by_workers(stack)), strict=True))
        empty = _empty(stack)
        take_turns((*servers.values(), empty), effort)
        for way, server in servers.items():
            yield from _figures(
                f"ways.{way.rpartition(' ')[2].lower()}", f"EvaluateFlags, 20 flags, {way}", server, empty
            )


def measure_bare(effort: Effort) -> Iterator[Figure]:
    """Compare what the core of grpcio can do at best with the empty call."""
    with ExitStack() as stack:
        bare, empty = _empty(stack, "bench.bare"), _empty(stack)
        take_turns((bare, empty), effort)
        yield from _figures("bare", "a constant answer by the core of grpcio alone", bare, empty)


def _figures(name: str, what: str, own: Server, empty: Server) -> Iterator[Figure]:
    rates, cpu = ratios(own, empty)
    yield median_figure(f"{name}.cpu", f"{what}: CPU of a call", "x empty", cpu)
    yield median_figure(f"{name}.rate", f"{what}: calls a second", "x empty", rates)
    counted = [each for each in own.rounds if each]
    yield median_figure(f"{name}.cpu_us", f"{what}: CPU of a call", "us", [each.cpu_us for each in counted])
    yield median_figure(f"{name}.calls", f"{what}: calls", "1/s", [each.rate for each in counted])


def _at_half_load(own: Server, empty: Server, effort: Effort) -> Figure:
    """Compare the p99 at half the rate of the empty call."""
    rate = statistics.median(each.rate for each in empty.rounds if each) / 2
    pairs = [(_p99_ms(own, rate, effort), _p99_ms(empty, rate, effort)) for _ in range(effort.rounds)]
    return median_figure(
        f"unary.{FLAGS}.p99_at_half_load",
        f"EvaluateFlags, {FLAGS} flags: p99 at half the rate of the empty call",
        "x empty",
        [mine / other for mine, other in pairs],
    )


def _p99_ms(server: Server, rate: float, effort: Effort) -> float:
    return percentile(server.load.latencies_ms(server.instance, round(rate * effort.seconds), rate=rate), 0.99)


def _load(stack: ExitStack, metadata: Metadata = ()) -> Load:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gatekeeper-bench-")))
    return Load(folder=folder, message=QUESTION, metadata=metadata)


def _served(stack: ExitStack, flags: int = FLAGS, *, with_tls: bool = False, **settings: str) -> Server:
    instance = stack.enter_context(flags_served(flags, SERVE, with_tls=with_tls, **settings))
    snapshot = snapshot_of(database_url(instance.data_dir))
    return Server(instance=instance, load=_load(stack), snapshot=snapshot)


def _with_tls(stack: ExitStack) -> Server:
    return _served(stack, with_tls=True)


def _by_workers(stack: ExitStack) -> Server:
    return _served(stack, GATEKEEPER_ANSWER_AT_ONCE="false")


def _with_key(stack: ExitStack) -> Server:
    """A server that asks for a client key; the rate of its tier is no limit, and is counted all the same."""
    server = _served(stack, GATEKEEPER_EVALUATION_ACCESS="key", GATEKEEPER_HIGH_TIER_RATE="1000000/s")
    key = keys.ClientKey(name="bench", type=keys.CLIENT_KEY_TYPE_BEARER, tier=keys.RATE_TIER_HIGH)
    with server.instance.channel() as channel:
        created = AdminServiceStub(channel).CreateClientKey(
            admin.CreateClientKeyRequest(client_key=key), metadata=log_in(server.instance)
        )
    metadata = (("authorization", f"Bearer {created.secret}"),)
    return Server(instance=server.instance, load=_load(stack, metadata), snapshot=server.snapshot, metadata=metadata)


def _empty(stack: ExitStack, module: str = "bench.empty") -> Server:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gatekeeper-bench-")))
    instance = stack.enter_context(serving(folder, (module,)))
    return Server(instance=instance, load=_load(stack), snapshot=None)
