"""The constants of the cost model, and a check of it: `python -m bench.capacity --calls 5000` says what a load needs.

Constants are measured with 1 and 200 flags, below the limit of the process. The check has another number of flags, and
unary calls and bulk evaluation at the same time.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType

import click
import grpc
import psycopg
from google.protobuf.field_mask_pb2 import FieldMask

from bench import results
from bench.bulk import clients, contexts_by_id, message_of, stream
from bench.capacity_tables import costs_of
from bench.cost_model import Costs, Demand, Need, line_through
from bench.figures import Effort, Figure, figure
from bench.h2load import Load
from bench.processes import Instance, create_flags, database_url, fill, flags_served, log_in, serving
from bench.unary import QUESTION
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext as Context
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

FEW, MANY, CHECKED = 1, 200, 60
CALLS_PER_S = 300.0
SECONDS_EACH = 3.0
FLAGS, TARGETS = 10_000, 250_000
CHECKED_FLAGS, CHECKED_TARGETS = 5_000, 500_000
CHANGES = 50
# So many contexts that a message takes a few milliseconds, whatever the number of flags.
CONTEXTS = 1_000
STATEMENTS = "gatekeeper_database_statement_duration_seconds_count"
WHAT: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "call_us": ("a call of EvaluateFlags, without its flags: CPU", "us"),
        "flag_us": ("each flag of a call: CPU", "us"),
        "context_us": ("a context of BulkEvaluateFlags, without its flags: CPU", "us"),
        "decision_us": ("each flag of a context: CPU", "us"),
        "rest_cores": ("a process at rest: CPU", "cores"),
        "process_mib": ("a process without flags: memory", "MiB"),
        "flags_mib": ("10,000 flags: memory", "MiB"),
        "targets_mib": ("1,000,000 targets: memory", "MiB"),
        "connections": ("connections to PostgreSQL of a process at rest", ""),
        "statements": ("statements of a process at rest", "1/s"),
        "statements_per_change": ("statements of a process for a change made by another", ""),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What was asked of a process, and the processor time that it took."""

    demand: Demand
    seconds: float
    cpu_s: float

    @property
    def cores(self) -> float:
        """The processor time a second."""
        return self.cpu_s / self.seconds


def measure(effort: Effort) -> Iterator[Figure]:
    """Measure the constants, then another load and another database, and compare."""
    costs = Costs(**_processor(effort), **_memory(effort), **_database(effort))
    for field in fields(costs):
        what, unit = WHAT[field.name]
        yield figure(f"capacity.{field.name}", what, unit, getattr(costs, field.name))
    used = _mixed(effort)
    predicted = costs.cores(used.demand)
    what = f"the model's error for {CHECKED} flags, unary and bulk at once: CPU"
    yield figure("capacity.check", what, "of the measured", abs(predicted - used.cores) / used.cores)
    flags, targets = effort.scaled(CHECKED_FLAGS), effort.scaled(CHECKED_TARGETS)
    measured_mib = _resident_mib(flags, targets)
    predicted_mib = costs.mib(Demand(flags=flags, targets=targets))
    what = f"the model's error for {flags:,} flags and {targets:,} targets: memory"
    yield figure("capacity.memory_check", what, "of the measured", abs(predicted_mib - measured_mib) / measured_mib)


def describe(need: Need) -> str:
    """Return what is needed as text."""
    return (
        f"{need.processes} processes, which use {need.cores:.2f} cores together and {need.mib_each:,.0f} MiB each.\n"
        f"PostgreSQL has {need.connections} connections of them at rest, {need.max_connections} at most, and"
        f" {need.statements_per_s:,.0f} statements/s."
    )


def _processor(effort: Effort) -> dict[str, float]:
    """Measure processor times with few and with many flags."""
    seconds = SECONDS_EACH * effort.seconds
    unary: dict[int, float] = {}
    bulk: dict[int, float] = {}
    rests = []
    for flags in (FEW, MANY):
        with _loaded(flags) as (instance, load, processes):
            rest = _used(instance, Demand(), lambda: time.sleep(seconds)).cores
            called = _unary(instance, load, seconds, flags)
            streamed = _bulk(instance, processes, seconds, flags)
        rests.append(rest)
        unary[flags] = (called.cores - rest) / called.demand.calls_per_s * 1e6
        bulk[flags] = (streamed.cores - rest) / streamed.demand.contexts_per_s * 1e6
    call_us, flag_us = line_through(*unary.items())
    context_us, decision_us = line_through(*bulk.items())
    return {
        "call_us": call_us,
        "flag_us": flag_us,
        "context_us": context_us,
        "decision_us": decision_us,
        "rest_cores": statistics.mean(rests),
    }


def _mixed(effort: Effort) -> Used:
    """Measure unary calls and bulk evaluation at once."""
    seconds = SECONDS_EACH * effort.seconds
    with _loaded(CHECKED) as (instance, load, processes):
        message = message_of(contexts_by_id(CONTEXTS))
        streaming = processes.submit(stream, instance.port, 2 * seconds, message)
        time.sleep(seconds / 2)  # The client has started by then, and does not end before the calls do.
        before = _evaluations(instance, CHECKED)
        called = _unary(instance, load, seconds, CHECKED)
        evaluated_per_s = (_evaluations(instance, CHECKED) - before) / called.seconds
        streaming.result()
    demand = Demand(
        calls_per_s=called.demand.calls_per_s,
        flags_per_call=CHECKED,
        contexts_per_s=evaluated_per_s - called.demand.calls_per_s,
        flags_per_context=CHECKED,
    )
    return Used(demand=demand, seconds=called.seconds, cpu_s=called.cpu_s)


@contextmanager
def _loaded(flags: int) -> Iterator[tuple[Instance, Load, ProcessPoolExecutor]]:
    with (
        flags_served(flags) as instance,
        clients() as processes,
        tempfile.TemporaryDirectory(prefix="gatekeeper-bench-") as folder,
    ):
        load = Load(folder=Path(folder), message=QUESTION)
        load.rate(instance, 200)
        # The process of the client starts now, and not while it is measured.
        processes.submit(stream, instance.port, 0.2, message_of(contexts_by_id(1))).result()
        yield instance, load, processes


def _used(instance: Instance, demand: Demand, act: Callable[[], object]) -> Used:
    began, cpu_s = time.monotonic(), instance.cpu_s()
    act()
    return Used(demand=demand, seconds=time.monotonic() - began, cpu_s=instance.cpu_s() - cpu_s)


def _unary(instance: Instance, load: Load, seconds: float, flags: int) -> Used:
    calls = round(CALLS_PER_S * seconds)
    used = _used(instance, Demand(), lambda: load.latencies_ms(instance, calls, rate=CALLS_PER_S))
    demand = Demand(calls_per_s=calls / used.seconds, flags_per_call=flags)
    return Used(demand=demand, seconds=used.seconds, cpu_s=used.cpu_s)


def _bulk(instance: Instance, processes: ProcessPoolExecutor, seconds: float, flags: int) -> Used:
    message = message_of(contexts_by_id(CONTEXTS))
    before = _evaluations(instance, flags)
    used = _used(instance, Demand(), lambda: processes.submit(stream, instance.port, seconds, message).result())
    contexts = _evaluations(instance, flags) - before
    demand = Demand(contexts_per_s=contexts / used.seconds, flags_per_context=flags)
    return Used(demand=demand, seconds=used.seconds, cpu_s=used.cpu_s)


def _evaluations(instance: Instance, flags: int) -> float:
    """Return how often it has evaluated all its flags, for calls and for contexts."""
    return instance.counted("gatekeeper_decisions_total") / flags


def _memory(effort: Effort) -> dict[str, float]:
    flags, targets = effort.scaled(FLAGS), effort.scaled(TARGETS)
    empty, with_flags, with_targets = (_resident_mib(*each) for each in ((0, 0), (flags, 0), (flags, targets)))
    return {
        "process_mib": empty,
        "flags_mib": (with_flags - empty) / flags * 1e4,
        "targets_mib": (with_targets - with_flags) / targets * 1e6,
    }


def _resident_mib(flags: int, targets: int) -> float:
    """Return the memory of a process that has loaded so much, and answers."""
    with tempfile.TemporaryDirectory(prefix="gatekeeper-bench-") as folder, serving(Path(folder)):
        url = database_url(Path(folder))
        if flags:
            fill(url, flags=flags, targets=targets)
        with serving(Path(folder), DATABASE_URL=url) as instance:
            _wait_for_an_answer(instance)
            return instance.rss_kib() / 1_024


def _wait_for_an_answer(instance: Instance) -> None:
    """Return when all is loaded: until then, calls are refused."""
    request = EvaluateFlagsRequest(context=Context(user_id="user-1"), flag_keys=["flag-1"])
    with instance.channel() as channel:
        while True:
            with suppress(grpc.RpcError):
                EvaluationServiceStub(channel).EvaluateFlags(request, wait_for_ready=True)
                return
            time.sleep(0.05)


def _database(effort: Effort) -> dict[str, float]:
    """Measure what a second instance costs PostgreSQL, at rest and for changes of the first."""
    seconds = SECONDS_EACH * effort.seconds
    with tempfile.TemporaryDirectory(prefix="gatekeeper-bench-") as folder, serving(Path(folder)) as first:
        create_flags(first, 1)
        url = database_url(Path(folder))
        before = _connections(url)
        with serving(Path(folder), DATABASE_URL=url) as second:
            time.sleep(seconds)
            connections = _connections(url) - before
            at_rest = _statements(second, lambda: time.sleep(seconds)) / seconds
            began = time.monotonic()
            changed = _statements(second, lambda: _change(first, CHANGES))
            changed -= at_rest * (time.monotonic() - began)
    return {
        "connections": connections,
        "statements": at_rest,
        "statements_per_change": max(0.0, changed) / CHANGES,
    }


def _connections(url: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'").fetchone()
    assert row is not None
    return int(row[0])


def _statements(instance: Instance, act: Callable[[], object]) -> float:
    before = instance.counted(STATEMENTS)
    act()
    return instance.counted(STATEMENTS) - before


def _change(instance: Instance, changes: int) -> None:
    metadata = log_in(instance)
    with instance.channel() as channel:
        for number in range(changes):
            flag = flag_pb2.Flag(key="flag-0", rollout_percentage=1 + number % 100)
            request = admin.UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["rollout_percentage"]))
            AdminServiceStub(channel).UpdateFlag(request, metadata=metadata)


@click.command()
@click.option("--calls", default=0.0, help="Calls of EvaluateFlags a second.")
@click.option("--flags-per-call", default=20.0, show_default=True)
@click.option("--contexts", default=0.0, help="Contexts of BulkEvaluateFlags a second.")
@click.option("--flags-per-context", default=20.0, show_default=True)
@click.option("--flags", default=1_000.0, show_default=True, help="All flags of the installation.")
@click.option("--targets", default=0.0, show_default=True, help="All targets of the installation.")
@click.option("--changes", default=0.1, show_default=True, help="Changes a second.")
@click.option("--pool-size", default=10, show_default=True, help="GATEKEEPER_DB_POOL_SIZE.")
@click.option("--costs", "file", default=results.SHOWN, type=click.Path(exists=True, path_type=Path))
def main(  # noqa: D103 - the help is the docstring of the module
    *,
    calls: float,
    flags_per_call: float,
    contexts: float,
    flags_per_context: float,
    flags: float,
    targets: float,
    changes: float,
    pool_size: int,
    file: Path,
) -> None:
    demand = Demand(
        calls_per_s=calls,
        flags_per_call=flags_per_call,
        contexts_per_s=contexts,
        flags_per_context=flags_per_context,
        flags=flags,
        targets=targets,
        changes_per_s=changes,
        pool_size=pool_size,
    )
    click.echo(describe(costs_of(results.read(file)).need(demand)))


if __name__ == "__main__":
    main()
