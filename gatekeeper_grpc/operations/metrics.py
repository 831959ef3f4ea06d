"""Metrics and readiness of one serving instance."""

import math
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import cache
from importlib.metadata import version

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from gatekeeper_grpc import draws
from gatekeeper_grpc.auth.refused_credentials import Cause
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.snapshot_writer import SnapshotWriter
from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.instrumentation import counters
from gatekeeper_grpc.interceptors.rate_limits import Limit
from gatekeeper_grpc.operations.readiness import Bounds, Readiness, readiness_of
from gatekeeper_grpc.store.audit.head_reporter import AuditHeadReporter
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.errors import DATABASE_ERRORS
from gatekeeper_grpc.transport.admission import CallPools

# The database counts as reachable if it confirmed the snapshot within this many refresh intervals.
_POLLS_WITHOUT_DATABASE = 3
_LOCK_SHOWN_FOR_S = 10.0
# Deadlocks, a full disk, too many connections, locks that were not free in time, and timeouts: alerts and dashboards
# name them, so they exist before the first one.
_ALWAYS_SHOWN = dict.fromkeys(("40P01", "53100", "53300", "55P03", "57014"), 0)


class InstanceMetrics(Collector):
    """Metrics of one serving instance: what was counted, and what is read when they are requested."""

    def __init__(
        self,
        settings: Settings,
        cache: SnapshotCache,
        *,
        database: Database,
        pools: CallPools,
        watchers: Sized,
        refused_credentials: Callable[[], Mapping[Cause, int]],
        refused_api_tokens: Callable[[], Mapping[Cause, int]],
        rate_limits: Callable[[], Mapping[Limit, tuple[int, int]]],
        unshared_nonces: Callable[[], int],
        audit: AuditHeadReporter,
        start_reasons: Callable[[], Iterable[str]],
        secret_faults: Callable[[], int],
        writers: Sequence[SnapshotWriter],
        open_connections: Callable[[], int],
        max_connections: int,
        further: Sequence[Collector] = (),
    ) -> None:
        self._cache = cache
        self._database = database
        self._pools = pools
        self._watchers = watchers
        self._refused_credentials = refused_credentials
        self._refused_api_tokens = refused_api_tokens
        self._rate_limits = rate_limits
        self._unshared_nonces = unshared_nonces
        self._audit = audit
        self._start_reasons = start_reasons
        self._secret_faults = secret_faults
        self._writers = writers
        self._open_connections = open_connections
        self._max_connections = max_connections
        self._further = further
        self._bounds = Bounds(stale_after_s=settings.stale_after_s, max_staleness_s=settings.ready_max_staleness_s)
        self._database_silent_after_s = settings.refresh_interval_s * _POLLS_WITHOUT_DATABASE
        self._draining = False
        self._process = ProcessCollector(registry=CollectorRegistry())

    def drain(self) -> None:
        """Report not ready from now on."""
        self._draining = True

    def readiness(self) -> Readiness:
        """Return the readiness at this moment."""
        snapshot = self._cache.peek()
        unconfirmed_s = self._cache.unconfirmed_s()
        return readiness_of(
            revision=snapshot.revision if snapshot else None,
            unconfirmed_s=unconfirmed_s,
            database=unconfirmed_s < self._database_silent_after_s,
            draining=self._draining,
            since_start=tuple(self._start_reasons()),
            bounds=self._bounds,
        )

    def collect(self) -> Iterator[Metric]:
        """Read all metrics."""
        yield from self._snapshot_metrics()
        yield from self._storage_metrics()
        yield from self._readiness_metrics()
        yield from self._database_metrics()
        yield from self._pool_metrics()
        yield from self._credential_metrics()
        yield from self._pending_metrics()
        yield _gauge("open_connections", "Connections of clients to the gRPC ports.", self._open_connections())
        yield _gauge("max_connections", "Connections above which further ones are refused.", self._max_connections)
        yield _gauge("watchers", "Open WatchFlags streams.", len(self._watchers))
        yield _gauge(
            "secret_file_faults", "Secrets whose file cannot be used, so that the old value is.", self._secret_faults()
        )
        yield _gauge("threads", "Python threads of the process.", threading.active_count())
        yield from counters.collect()
        yield _build_info(draws.implementation())
        for collector in (*self._further, self._process):
            yield from collector.collect()

    def _snapshot_metrics(self) -> Iterable[Metric]:
        snapshot = self._cache.peek()
        yield _gauge("snapshot_revision", "Revision being served.", snapshot.revision if snapshot else None)
        yield _gauge("snapshot_flags", "Flags in the served snapshot.", len(snapshot.flags) if snapshot else None)
        yield _gauge(
            "snapshot_targets",
            "Individual targets in the served snapshot.",
            len(snapshot.targets) if snapshot else None,
        )
        yield _gauge(
            "snapshot_members", "Segment members in the served snapshot.", len(snapshot.members) if snapshot else None
        )
        yield _gauge(
            "snapshot_unconfirmed_seconds",
            "Seconds since the database last confirmed the served snapshot as the newest.",
            self._cache.unconfirmed_s(),
        )

    def _storage_metrics(self) -> Iterable[Metric]:
        writable = GaugeMetricFamily(
            "gatekeeper_snapshot_storage_writable",
            "1 if the storage accepted the last-known-good snapshot at the last attempt, else 0.",
            labels=["storage"],
        )
        for writer in self._writers:
            writable.add_metric([writer.storage], not writer.has_failed)
        yield writable

    def _readiness_metrics(self) -> Iterable[Metric]:
        readiness = self.readiness()
        yield _gauge("ready", "1 if the instance can serve evaluations, else 0.", readiness.ready)
        yield _gauge("stale", "1 if responses are marked stale, else 0.", readiness.stale)
        yield _gauge(
            "database_reachable",
            "1 if the database answered within the last three refresh intervals, else 0.",
            readiness.database,
        )
        yield _gauge(
            "audit_log_rewritable",
            "1 if the database role can rewrite the audit log, 0 if not, NaN until it is known.",
            self._audit.can_rewrite,
        )

    def _database_metrics(self) -> Iterable[Metric]:
        errors = CounterMetricFamily(
            "gatekeeper_database_errors",
            "Errors of the database, by SQLSTATE or its class; none: the connection was lost or refused.",
            labels=["sqlstate"],
        )
        for sqlstate, count in {**_ALWAYS_SHOWN, **DATABASE_ERRORS.counts()}.items():
            errors.add_metric([sqlstate], count)
        yield errors
        connections = GaugeMetricFamily(
            "gatekeeper_database_connections", "Connections of the pool to the database.", labels=["state"]
        )
        found = self._database.connections()
        for state in ("idle", "used"):
            connections.add_metric([state], found[state])
        yield connections
        yield _gauge("database_max_connections", "Connections that the pool may have.", self._database.max_connections)
        yield _gauge("database_waiting_calls", "Calls that wait for a connection.", found["waited_for"])
        yield _gauge("database_round_trip_seconds", "Average round trip to the database.", self._database.round_trip_s)
        yield _gauge(
            "database_lock_holder_seconds",
            "Age of the transaction of another session whose lock made a call fail within the last 10 s, 0 if none"
            " did, NaN if the database role may not see it.",
            self._lock_holder_s(),
        )
        yield _gauge(
            "database_commits_stalled",
            "1 if a commit that was given up still waits in the database and no other is begun, else 0.",
            self._database.has_stalled_commits(),
        )

    def _lock_holder_s(self) -> float | None:
        holder = self._database.lock_holder
        has_held = holder is not None and time.monotonic() - holder.seen_at < _LOCK_SHOWN_FOR_S
        return holder.age_s() if holder and has_held else 0.0

    def _pool_metrics(self) -> Iterable[Metric]:
        refused = CounterMetricFamily(
            "gatekeeper_refused_calls",
            "Calls refused before a worker took them, by reason.",
            labels=["pool", "reason"],
        )
        in_flight = GaugeMetricFamily(
            "gatekeeper_calls_in_flight", "Calls that run or wait in a queue.", labels=["pool"]
        )
        for name, pool in self._pools.items():
            for reason, count in pool.refused.items():
                refused.add_metric([name, reason], count)
            in_flight.add_metric([name], pool.in_flight)
        yield refused
        yield in_flight

    def _credential_metrics(self) -> Iterable[Metric]:
        credentials = CounterMetricFamily(
            "gatekeeper_refused_credentials",
            "Evaluation calls refused for their client key or signature, by the cause, which clients are not told.",
            labels=["cause"],
        )
        for cause, count in self._refused_credentials().items():
            credentials.add_metric([cause], count)
        yield credentials
        tokens = CounterMetricFamily(
            "gatekeeper_refused_api_tokens",
            "Calls refused for their API token, by the cause, which callers are not told.",
            labels=["cause"],
        )
        for cause, count in self._refused_api_tokens().items():
            tokens.add_metric([cause], count)
        yield tokens
        yield self._rate_limit_decisions()
        yield CounterMetricFamily(
            "gatekeeper_unshared_nonces",
            "Signed calls whose nonce no other instance was asked about, because Redis did not answer.",
            value=self._unshared_nonces(),
        )

    def _rate_limit_decisions(self) -> Metric:
        decisions = CounterMetricFamily(
            "gatekeeper_rate_limit_decisions",
            "Calls that a rate limit allowed, and those that it refused because their caller called too often.",
            labels=["limit", "decision"],
        )
        for limit, (allowed, refused) in self._rate_limits().items():
            decisions.add_metric([limit, "allowed"], allowed)
            decisions.add_metric([limit, "refused"], refused)
        return decisions

    def _pending_metrics(self) -> Iterable[Metric]:
        pending = self._pools.pending.strangers
        yield _gauge("pending_calls", "Calls whose first message is not here yet.", len(pending))
        yield _gauge("held_bytes", "What messages that are not admitted yet may hold now.", pending.held_bytes)
        yield _gauge("held_bytes_limit", "What they may hold at most.", pending.limits.max_bytes)
        yield CounterMetricFamily(
            "gatekeeper_refused_pending_calls",
            "Calls refused before their message was here, because others waited for theirs.",
            value=pending.refused,
        )


@cache
def _build_info(kernel: str) -> Metric:
    versions = {
        "version": version("gatekeeper-grpc"),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "kernel": kernel,
    }
    info = GaugeMetricFamily(
        "gatekeeper_build_info", "1, with the versions of this instance, and who makes its draws.", labels=[*versions]
    )
    info.add_metric([*versions.values()], 1)
    return info


def _gauge(name: str, meaning: str, value: float | None) -> Metric:
    """Return a gauge. None, an unknown value, is NaN."""
    return GaugeMetricFamily(f"gatekeeper_{name}", meaning, value=math.nan if value is None else value)
