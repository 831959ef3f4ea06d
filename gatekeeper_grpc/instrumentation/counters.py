"""What this process counts and times while it works; `operations/metrics.py` shows it, next to what it reads then.

One place, because a metric is a name that operators write into alerts: docs/operations/metrics.md lists them all. No
label holds a flag key, a user, an address or an admin user. The reasons: docs/decisions/0044-metrics-and-lines.md.
"""

import math
import threading
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gatekeeper_grpc.domain.evaluation import TALLY_BITS, Reason, tally_of

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
# One series for each bucket of each statement: fewer of them.
_STATEMENT_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10)

# Not prometheus_client's own: a process that embeds us for its tests has its own metrics there.
_REGISTRY: Final = CollectorRegistry()

SURPLUS_CALLS: Final = Counter(
    "gatekeeper_surplus_calls",
    "Calls refused as they came, because too many waited for their turn.",
    registry=_REGISTRY,
)
CLIENT_KEY_LOOKUPS: Final = Counter(
    "gatekeeper_client_key_lookups",
    "Look-ups of client keys in memory: a miss is a key that does not exist, has expired or is revoked.",
    ["result"],
    registry=_REGISTRY,
)
REFRESH_DURATION: Final = Histogram(
    "gatekeeper_refresh_duration_seconds",
    "Time that successful loads of the snapshot took: unchanged, changes, full or replica.",
    ["kind"],
    buckets=_SECONDS,
    registry=_REGISTRY,
)
PROPAGATION: Final = Histogram(
    "gatekeeper_propagation_seconds",
    "Time from the commit of a change, on any instance, until this instance served it.",
    buckets=_SECONDS,
    registry=_REGISTRY,
)
DATABASE_WAIT: Final = Histogram(
    "gatekeeper_database_wait_seconds",
    "Time that calls waited for a connection to the database.",
    buckets=_SECONDS,
    registry=_REGISTRY,
)
STATEMENT_DURATION: Final = Histogram(
    "gatekeeper_database_statement_duration_seconds",
    "Time until the database answered a statement; pipeline: all statements of a change, which are sent together.",
    ["statement"],
    buckets=_STATEMENT_SECONDS,
    registry=_REGISTRY,
)
AUDIT_APPEND_DURATION: Final = Histogram(
    "gatekeeper_audit_append_duration_seconds",
    "Time from the audit entry of a change to the end of its COMMIT.",
    buckets=_SECONDS,
    registry=_REGISTRY,
)
LOGINS: Final = Counter(
    "gatekeeper_logins",
    "Logins that succeeded, that failed, and that had to wait after failed ones (locked_out).",
    ["result"],
    registry=_REGISTRY,
)
REFRESH_TOKENS_REUSED: Final = Counter(
    "gatekeeper_refresh_tokens_reused",
    "Spent refresh tokens that were presented again, which ends their session: one of two holders stole it.",
    registry=_REGISTRY,
)
WATCH_STREAMS_ENDED: Final = Counter(
    "gatekeeper_watch_streams_ended",
    "WatchFlags streams that ended: by the client, or because it was slow, the stream old, its key invalid, or the"
    " instance shut down.",
    ["cause"],
    registry=_REGISTRY,
)

SPANS: Final = Counter(
    "gatekeeper_spans",
    "Spans of traces that were sent, and that were dropped because they could not be.",
    ["result"],
    registry=_REGISTRY,
)
USAGE_WAITING_ROWS: Final = Gauge(
    "gatekeeper_usage_waiting_rows",
    "Rows of usage that wait to be written, at most 1,000 a minute; without a database they only grow.",
    registry=_REGISTRY,
)


class _Series:
    """The durations of the calls of one method that ended with one status. Thread-safe."""

    __slots__ = ("_lock", "counts", "seconds")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self.counts = [0] * (len(_SECONDS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count a call."""
        bucket = bisect_left(_SECONDS, seconds)
        with self._lock:
            self.counts[bucket] += 1
            self.seconds += seconds


class _RpcDurations(Collector):
    """A histogram by method and status that counts every call; one of prometheus_client takes twice the time for it."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], _Series] = {}

    def labels(self, method: str, code: str) -> _Series:
        """Return the series of a method and status, which exists from now on."""
        return self._series.setdefault((method, code), _Series())

    def collect(self) -> Iterator[Metric]:
        """Return the histogram."""
        durations = HistogramMetricFamily(
            "gatekeeper_rpc_duration_seconds",
            "Time from the arrival of a call to its end, by status; of streams, how long they were open.",
            labels=["method", "code"],
        )
        bounds = [*map(floatToGoString, (*_SECONDS, math.inf))]
        for labels, series in [*self._series.items()]:
            buckets = [*zip(bounds, accumulate(series.counts), strict=True)]
            durations.add_metric(labels, buckets, series.seconds)
        yield durations


class _Evaluations(Collector):
    """Counts evaluations by what they were answered from, and their decisions by reason.

    It has 48 bits for each count, in one number: one addition counts all reasons at once, and 20 flags take about a
    tenth of a microsecond. A tally has a one at the bits of the reason of each decision.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _tally
        self._tally = 0

    def count(self, tally: int) -> None:
        """Count decisions, and answers by their source: the sum of tallies and of the sources below."""
        with self._lock:
            self._tally += tally

    def collect(self) -> Iterator[Metric]:
        """Return the counts."""
        answers = CounterMetricFamily(
            "gatekeeper_answers",
            "Evaluations by what they were answered from: a fresh snapshot, a stale one, or none.",
            labels=["source"],
        )
        for name, source in _SOURCES.items():
            answers.add_metric([name], _count_in(self._tally, source))
        yield answers
        decisions = CounterMetricFamily(
            "gatekeeper_decisions", "Decisions about one flag for one user, by reason.", labels=["reason"]
        )
        for reason in Reason:
            decisions.add_metric([reason.name], _count_in(self._tally, tally_of(reason)))
        yield decisions


def _count_in(tally: int, one: int) -> int:
    return tally // one % (1 << TALLY_BITS)


FRESH: Final = 1 << TALLY_BITS * 6
STALE: Final = 1 << TALLY_BITS * 7
NONE: Final = 1 << TALLY_BITS * 8
_SOURCES: Final = {"fresh": FRESH, "stale": STALE, "none": NONE}

RPC_DURATION: Final = _RpcDurations()
EVALUATIONS: Final = _Evaluations()
for _collector in (RPC_DURATION, EVALUATIONS):
    _REGISTRY.register(_collector)

# A series exists from the start, so that its first event is a rise.
KEY_FOUND: Final = CLIENT_KEY_LOOKUPS.labels("hit")
KEY_NOT_FOUND: Final = CLIENT_KEY_LOOKUPS.labels("miss")
for _result in ("succeeded", "failed", "locked_out"):
    LOGINS.labels(_result)
for _kind in ("unchanged", "changes", "full", "replica"):
    REFRESH_DURATION.labels(_kind)
SPANS_SENT: Final = SPANS.labels("sent")
SPANS_DROPPED: Final = SPANS.labels("dropped")
for _cause in ("client", "slow", "age", "key", "shutdown"):
    WATCH_STREAMS_ENDED.labels(_cause)


def collect() -> Iterator[Metric]:
    """Return all metrics of this module, without the times at which each series began."""
    for metric in _REGISTRY.collect():
        metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
        yield metric
