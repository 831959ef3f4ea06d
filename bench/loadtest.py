"""The load test: ramp, sustained load, spike, ramp down (`make loadtest`, 10 minutes; `--scale 0.1`: one minute).

Users are connections of gRPC clients. Each evaluates all flags at a steady rate, at planned moments, whether or not its
calls before have been answered; latency counts from the planned moment, so that a server that stalls hides nothing.
Exit code 1: the p99 is 50 ms or more, or 0.1 % of the calls failed.

Without `--server`, it starts a server with 20 flags.
"""

import asyncio
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any, NamedTuple

import click
import grpc
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.figures import percentile
from bench.processes import FLAGS, flags_served
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

MAX_P99_MS = 50.0
MAX_FAILED_SHARE = 0.001
PROCESSES = 2
CALL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 60.0
REPORT_EVERY_S = 0.25


class Stage(NamedTuple):
    """For so many seconds, the number of users goes from that of the stage before to `users`."""

    name: str
    seconds: float
    users: int


STAGES = (
    Stage("ramp", 120, 100),
    Stage("sustained", 300, 100),
    Stage("spike", 120, 200),
    Stage("down", 60, 0),
)


class Planned(NamedTuple):
    """A call: when, in seconds from the beginning, by which user, and in which stage."""

    at_s: float
    user: int
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is called: an address, the bearer key and the certificates to trust, as far as it needs them."""

    address: str
    key: str = ""
    trusted: bytes = b""

    def channel(self) -> grpc.aio.Channel:
        """Open a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        if not self.trusted:
            return grpc.aio.insecure_channel(self.address, options=options)
        return grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(self.trusted), options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call sends."""
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()


@dataclass(kw_only=True)
class Outcome:
    """What became of calls: latencies in ms by stage, failures by status, and how late calls were sent, in ms."""

    latencies: dict[str, list[float]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    late_ms: list[float] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Take in what another process found."""
        for stage, found in other.latencies.items():
            self.latencies.setdefault(stage, []).extend(found)
        self.failures += other.failures
        self.late_ms += other.late_ms

    @property
    def all_latencies(self) -> list[float]:
        """Those of all stages."""
        return [each for found in self.latencies.values() for each in found]

    @property
    def failed_share(self) -> float:
        """The share of the calls that failed; 1 if there were none."""
        failed = self.failures.total()
        calls = failed + len(self.all_latencies)
        return failed / calls if calls else 1.0

    def is_good(self) -> bool:
        """Whether the p99 and the share of failures keep their limits."""
        answered = self.all_latencies
        return bool(answered) and percentile(answered, 0.99) < MAX_P99_MS and self.failed_share < MAX_FAILED_SHARE


def scaled(stages: Sequence[Stage], scale: float, users: int) -> list[Stage]:
    """Return stages of this share of the time, where 100 users become `users`."""
    return [Stage(each.name, each.seconds * scale, round(each.users * users / 100)) for each in stages]


def plan(stages: Sequence[Stage], rate: float) -> Iterator[Planned]:
    """Yield all calls in order: `rate` a second for each user who is there, evenly spread over users and time."""
    began, users_before, turn, due = 0.0, 0, 0, 0.0
    for stage in stages:
        while due < began + stage.seconds:
            users = users_before + (stage.users - users_before) * (due - began) / stage.seconds
            present = max(1, round(users))
            yield Planned(due, turn % present, stage.name)
            turn += 1
            due += 1 / (present * rate)
        began += stage.seconds
        users_before = stage.users


def run_users(target: Target, mine: Sequence[Planned], connected: Any, progress: Any) -> Outcome:
    """Make the planned calls in this process, once all processes have `connected` (a barrier)."""
    return asyncio.run(_Users(target, mine, connected, progress).run())


class _Users:
    """Some of the users."""

    def __init__(self, target: Target, mine: Sequence[Planned], connected: Any, progress: Any) -> None:
        self._target = target
        self._mine = mine
        self._connected = connected
        self._progress = progress
        self._begins_at = 0.0
        self._outcome = Outcome(latencies={each.stage: [] for each in mine})
        self._done = 0
        self._told_at = 0.0

    async def run(self) -> Outcome:
        channels = {user: self._target.channel() for user in sorted({each.user for each in self._mine})}
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.gather(*(each.channel_ready() for each in channels.values()))
        await asyncio.to_thread(self._connected.wait, CONNECT_TIMEOUT_S)
        self._begins_at = time.monotonic()
        stubs = {user: EvaluationServiceStub(channel) for user, channel in channels.items()}
        async with asyncio.TaskGroup() as calls:
            for planned in self._mine:
                await asyncio.sleep(max(0.0, self._begins_at + planned.at_s - time.monotonic()))
                calls.create_task(self._call(stubs[planned.user], planned))
        for channel in channels.values():
            await channel.close()
        return self._outcome

    async def _call(self, stub: Any, planned: Planned) -> None:
        due = self._begins_at + planned.at_s
        self._outcome.late_ms.append((time.monotonic() - due) * 1_000)
        request = EvaluateFlagsRequest(context=EvaluationContext(user_id=f"user-{planned.user}"))
        try:
            await stub.EvaluateFlags(request, timeout=CALL_TIMEOUT_S, metadata=self._target.metadata)
        except grpc.RpcError as failed:
            self._outcome.failures[failed.code().name] += 1
        else:
            self._outcome.latencies[planned.stage].append((time.monotonic() - due) * 1_000)
        self._tell()

    def _tell(self) -> None:
        """Say how many calls have ended, now and then."""
        self._done += 1
        if time.monotonic() > self._told_at + REPORT_EVERY_S:
            self._told_at = time.monotonic()
            self._progress.put((self._done, self._outcome.failures.total()))
            self._done = 0


def run(target: Target, stages: Sequence[Stage], rate: float, console: Console) -> Outcome:
    """Make all calls, from several processes, and show progress; returns what became of them.

    Raises:
        TimeoutError: Nothing accepts connections at the address.
    """
    planned = [*plan(stages, rate)]
    shares = [[each for each in planned if each.user % PROCESSES == number] for number in range(PROCESSES)]
    shares = [share for share in shares if share]
    spawning = multiprocessing.get_context("spawn")
    with (
        SyncManager(ctx=spawning) as manager,
        ProcessPoolExecutor(PROCESSES, mp_context=spawning) as processes,
    ):
        progress, connected = manager.Queue(), manager.Barrier(len(shares))
        running = [processes.submit(run_users, target, share, connected, progress) for share in shares]
        _show_progress(running, progress, len(planned), console)
        outcome = Outcome()
        for each in running:
            outcome.add(each.result())
    return outcome


def _show_progress(running: Sequence[Future[Outcome]], progress: Any, calls: int, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} calls"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("load test", total=calls)
        while wait(running, timeout=REPORT_EVERY_S, return_when=FIRST_EXCEPTION).not_done:
            while not progress.empty():
                done, _ = progress.get()
                shown.advance(task, done)
        shown.update(task, completed=calls)


def describe(outcome: Outcome) -> Table:
    """Return a table of the stages."""
    table = Table(title="Load test")
    for column in ("stage", "answered", "p50 ms", "p99 ms", "longest ms"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, found in (*outcome.latencies.items(), ("all", outcome.all_latencies)):
        cells = [f"{of:.1f}" for of in (percentile(found, 0.5), percentile(found, 0.99), max(found))] if found else []
        table.add_row(stage, f"{len(found):,}", *cells)
    return table


def conclude(outcome: Outcome, console: Console) -> bool:
    """Print what became of the calls; returns whether the limits were kept."""
    console.print(describe(outcome))
    console.print(f"failed: {outcome.failed_share:.3%} {dict(outcome.failures) or ''}".rstrip())
    if outcome.late_ms:
        # Of what the latencies have in them, this is not the server's.
        console.print(f"the clients themselves sent calls late by {percentile(outcome.late_ms, 0.99):.1f} ms (p99)")
    is_good = outcome.is_good()
    limits = f"p99 < {MAX_P99_MS:g} ms, failures < {MAX_FAILED_SHARE:.1%}"
    console.print(f"{'kept' if is_good else 'MISSED'}: {limits}")
    return is_good


@contextmanager
def _target(server: str, key: str, trusted: bytes) -> Iterator[Target]:
    if server:
        yield Target(address=server, key=key, trusted=trusted)
        return
    with flags_served() as instance:
        yield Target(address=f"127.0.0.1:{instance.port}")


@click.command()
@click.option("--server", default="", help=f"host:port; absent: a server with {FLAGS} flags is started.")
@click.option("--scale", default=1.0, show_default=True, help="Share of the ten minutes.")
@click.option(
    "--users", default=100, show_default=True, help="While the load is sustained; the spike has twice as many."
)
@click.option("--rate", default=10.0, show_default=True, help="Calls of each user a second.")
@click.option("--key", default="", envvar="GATEKEEPER_CLIENT_KEY", help="A bearer key, if the server asks for one.")
@click.option(
    "--ca", type=click.Path(exists=True, path_type=Path), help="Certificates to trust: the server speaks TLS."
)
def main(  # noqa: D103 - the help is the docstring of the module
    *, server: str, scale: float, users: int, rate: float, key: str, ca: Path | None
) -> None:
    console = Console()
    with _target(server, key, ca.read_bytes() if ca else b"") as target:
        outcome = run(target, scaled(STAGES, scale, users), rate, console)
    sys.exit(0 if conclude(outcome, console) else 1)


if __name__ == "__main__":
    main()
