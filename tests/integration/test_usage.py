"""Usage in a real PostgreSQL: what instances add is summed up exactly, kept for its time, and in nobody's way."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Barrier, Thread
from typing import Any, LiteralString

import pytest

from gatekeeper_grpc.domain.commands import FlagFilter, UsageRange
from gatekeeper_grpc.domain.errors import FailedPrecondition, GatekeeperError, NotFound
from gatekeeper_grpc.domain.evaluation import Reason, code_of
from gatekeeper_grpc.domain.flag import ON, FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.domain.usage import Amount, DecisionCount, Requests, UsageBatch, UsageKey
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.usage import UsageStore
from tests.support.servers import KEYS

INTENT = Intent(caller=None, action="Test")
STATIC = code_of(ON, Reason.STATIC)
HOURLY, DAILY = UsageRange(by_day=False), UsageRange(by_day=True)
NOW = datetime.now(UTC)


class Usage:
    """A store of usage, and flags to be used."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = UsageStore(database)
        self.flags = FlagStore(database, MutationRunner(database, KEYS.data))

    def create(self, key: str) -> int:
        return self.flags.create(FlagConfig(key=key), INTENT).result.flag_id

    def execute(self, *statements: LiteralString) -> None:
        with self.database.write() as conn:
            for statement in statements:
                conn.execute(statement)

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        with self.database.read() as conn:
            return conn.execute(query).fetchall()

    def decide(self, flag_id: int, at: datetime, decisions: int = 1, *, named: bool = True) -> None:
        self.store.add(batch(counts=[(counted(flag_id, at, named=named), Amount(decisions))]))

    def total(self, key: str, wanted: UsageRange = DAILY) -> int:
        return sum(
            count.amount.decisions for counts in self.store.read(key, wanted).periods.values() for count in counts
        )

    def stale(self, **ago: float) -> list[str]:
        return [flag.key for flag in self.flags.list(FlagFilter(limit=100, stale_for=timedelta(**ago))).result]

    def age(self, by: LiteralString) -> None:
        """Let all flags and the beginning of counting be older."""
        self.execute(
            "UPDATE feature_flags SET create_time = create_time - interval '" + by + "'",
            "UPDATE usage_coverage SET since = since - interval '" + by + "'",
        )


@pytest.fixture
def usage(database: Database) -> Usage:
    return Usage(database)


def seconds(at: datetime) -> int:
    return int(at.timestamp())


def counted(flag_id: int, at: datetime, *, named: bool = True, code: int = STATIC) -> UsageKey:
    return UsageKey(flag_id, seconds(at.replace(minute=0, second=0, microsecond=0)), named, code)


def batch(
    named: Iterable[tuple[int, datetime]] = (),
    counts: Iterable[tuple[UsageKey, Amount]] = (),
    unknown: Iterable[tuple[str, int, datetime]] = (),
    all_flags: datetime | None = None,
) -> UsageBatch:
    return UsageBatch(
        named={flag_id: seconds(at) for flag_id, at in named},
        counts=dict(counts),
        unknown={key: Requests(count, seconds(at)) for key, count, at in unknown},
        all_flags=seconds(all_flags) if all_flags else None,
    )


# --- Written and read -------------------------------------------------------------------------------------------------


def test_what_is_added_is_read_by_hour_and_by_day(usage: Usage) -> None:
    flag_id, noon = usage.create("checkout"), NOW.replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(1)
    split = code_of(ON, Reason.SPLIT)
    for hour in (noon, noon + timedelta(hours=2)):
        one_by_one, sampled = counted(flag_id, hour), counted(flag_id, hour, named=False, code=split)
        usage.store.add(batch(counts=[(one_by_one, Amount(2)), (sampled, Amount(60, 40))]))
        usage.store.add(batch(counts=[(one_by_one, Amount(3))]))

    hours, days = usage.store.read("checkout", HOURLY).periods, usage.store.read("checkout", DAILY).periods

    named = DecisionCount(named=True, variant=ON, reason=Reason.STATIC, amount=Amount(5, 0))
    of_all = DecisionCount(named=False, variant=ON, reason=Reason.SPLIT, amount=Amount(60, 40))
    assert hours == {noon: [named, of_all], noon + timedelta(hours=2): [named, of_all]}
    assert days == {
        noon.replace(hour=0): [named._replace(amount=Amount(10, 0)), of_all._replace(amount=Amount(120, 80))]
    }


def test_a_part_of_a_series_has_whole_periods(usage: Usage) -> None:
    flag_id, noon = usage.create("checkout"), NOW.replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(2)
    for hour in range(4):
        usage.decide(flag_id, noon + timedelta(hours=hour))
    half_past = timedelta(minutes=30)

    wanted = UsageRange(by_day=False, start_time=noon + timedelta(hours=1) + half_past, end_time=noon + 3 * half_past)
    until = UsageRange(by_day=False, end_time=noon + timedelta(hours=2))

    assert [*usage.store.read("checkout", wanted).periods] == [noon + timedelta(hours=1)]
    assert [*usage.store.read("checkout", until).periods] == [noon, noon + timedelta(hours=1)]
    assert usage.total("checkout", UsageRange(by_day=True, start_time=noon + half_past)) == 4


def test_last_named_is_the_latest_of_all_instances(usage: Usage) -> None:
    flag_id, minute = usage.create("checkout"), NOW.replace(second=0, microsecond=0)
    before = usage.store.read("checkout", HOURLY)

    for ago in (3, 1, 2):
        usage.store.add(batch(named=[(flag_id, minute - timedelta(minutes=ago))]))

    assert before.named_time is None
    assert usage.store.read("checkout", HOURLY).named_time == minute - timedelta(minutes=1)


def test_a_clock_that_is_ahead_makes_no_flag_used_for_ever(usage: Usage) -> None:
    flag_id = usage.create("checkout")

    usage.store.add(batch(named=[(flag_id, NOW + timedelta(days=9_999))], all_flags=NOW + timedelta(days=9_999)))
    usage.decide(flag_id, NOW + timedelta(days=9_999))
    usage.store.prune()

    read = usage.store.read("checkout", HOURLY)
    assert read.named_time is not None
    assert read.all_flags_time is not None
    assert max(read.named_time, read.all_flags_time) < datetime.now(UTC) + timedelta(minutes=1)
    assert read.periods == {}


def test_a_request_for_all_flags_asked_for_those_that_existed_then(usage: Usage) -> None:
    usage.create("old")
    usage.age("1 hour")
    minute = NOW.replace(second=0, microsecond=0) - timedelta(minutes=10)
    usage.store.add(batch(all_flags=minute))
    usage.store.add(batch(all_flags=minute - timedelta(minutes=5)))
    usage.create("new")

    assert usage.store.read("old", HOURLY).all_flags_time == minute
    assert usage.store.read("new", HOURLY).all_flags_time is None


def test_usage_makes_no_revision_and_no_audit_entry(usage: Usage) -> None:
    flag_id = usage.create("checkout")
    before = usage.rows("SELECT revision, audit_seq, audit_hash FROM revision_head")

    usage.store.add(batch(named=[(flag_id, NOW)], unknown=[("missing", 1, NOW)], all_flags=NOW))

    assert usage.rows("SELECT revision, audit_seq, audit_hash FROM revision_head") == before


# --- Several instances ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_two_instances_that_write_at_once_sum_up_exactly(usage: Usage, seed: int) -> None:
    random, rounds, start = Random(seed), 15, Barrier(2)
    ids = [*range(1, 301)]

    def write(order: list[int]) -> None:
        start.wait(10)
        for _ in range(rounds):
            usage.store.add(
                batch(
                    named=[(flag_id, NOW) for flag_id in order],
                    counts=[(counted(flag_id, NOW), Amount(2, 1)) for flag_id in order],
                    unknown=[(f"missing-{n}", 1, NOW) for n in order],
                    all_flags=NOW,
                )
            )

    with ThreadPoolExecutor(2) as instances:
        for done in [instances.submit(write, random.sample(ids, len(ids))) for _ in range(2)]:
            done.result()

    assert usage.rows("SELECT DISTINCT decisions, estimated_decisions FROM flag_usage") == [(4 * rounds, 2 * rounds)]
    assert usage.rows("SELECT count(*), min(requests), max(requests) FROM unknown_flag_keys") == [
        (len(ids), 2 * rounds, 2 * rounds)
    ]


def test_a_flag_can_be_deleted_while_its_usage_is_being_written(usage: Usage) -> None:
    ids = [usage.create(f"flag-{n}") for n in range(20)]
    failures: list[GatekeeperError] = []

    def write() -> None:
        for _ in range(30):
            try:
                usage.store.add(batch([(n, NOW) for n in ids], [(counted(n, NOW), Amount(1)) for n in ids]))
            except GatekeeperError as exc:
                failures.append(exc)

    writer = Thread(target=write)
    writer.start()
    for n in range(20):
        usage.flags.delete(f"flag-{n}", "", INTENT)
    writer.join()

    assert failures == []


# --- Kept for its time ------------------------------------------------------------------------------------------------


def test_hours_become_days_after_7_days_and_days_go_after_90(usage: Usage) -> None:
    flag_id = usage.create("checkout")
    days_ago = [NOW - timedelta(days=n) for n in (0, 6, 9, 9, 50, 89, 95)]
    for at in days_ago:
        usage.decide(flag_id, at.replace(hour=1))
        usage.decide(flag_id, at.replace(hour=2))
    before = usage.total("checkout")

    done = [usage.store.prune(), usage.store.prune()]

    assert usage.rows("SELECT hours, count(*), sum(decisions) FROM flag_usage GROUP BY hours ORDER BY hours") == [
        (1, 4, 4),
        (24, 3, 8),
    ]
    assert (before, usage.total("checkout"), usage.total("checkout", HOURLY)) == (14, 12, 4)
    assert done == [8, 0]


def test_what_is_written_late_is_added_to_its_day(usage: Usage) -> None:
    flag_id, at = usage.create("checkout"), NOW - timedelta(days=9)
    for _ in range(2):
        usage.decide(flag_id, at, 5)
        usage.store.prune()

    assert usage.rows("SELECT hours, decisions FROM flag_usage") == [(24, 10)]


def test_two_instances_that_maintain_at_once_keep_every_decision(usage: Usage) -> None:
    ids = [usage.create(f"flag-{n}") for n in range(10)]
    for hour in range(24):
        at = (NOW - timedelta(days=9)).replace(hour=hour)
        usage.store.add(batch(counts=[(counted(n, at), Amount(1)) for n in ids]))
    start = Barrier(2)

    def maintain() -> int:
        start.wait(10)
        return usage.store.prune()

    with ThreadPoolExecutor(2) as instances:
        done = [instance.result() for instance in [instances.submit(maintain) for _ in range(2)]]

    usage.store.prune()
    assert sum(done) <= 240
    assert usage.rows("SELECT hours, count(*), sum(decisions) FROM flag_usage GROUP BY hours") == [(24, 10, 240)]


def test_usage_of_a_deleted_flag_goes_and_a_new_one_begins_at_none(usage: Usage) -> None:
    flag_id = usage.create("checkout")
    usage.store.add(batch(named=[(flag_id, NOW)], counts=[(counted(flag_id, NOW), Amount(1))]))
    usage.decide(flag_id, NOW - timedelta(days=9))
    usage.flags.delete("checkout", "", INTENT)
    with pytest.raises(NotFound):
        usage.store.read("checkout", HOURLY)

    usage.create("checkout")
    usage.store.prune()

    read = usage.store.read("checkout", DAILY)
    assert (read.named_time, read.periods) == (None, {})
    assert usage.rows("SELECT * FROM flag_last_named") == []
    assert usage.rows("SELECT count(*) FROM flag_usage WHERE hours = 24") == [(0,)]


# --- Flags that nobody names ------------------------------------------------------------------------------------------


def test_flags_that_no_request_names_are_listed(usage: Usage) -> None:
    ids = {key: usage.create(key) for key in ("named", "named-long-ago", "only-with-all", "never")}
    usage.age("30 days")
    usage.create("new")
    usage.store.add(
        batch(
            named=[(ids["named"], NOW - timedelta(days=6)), (ids["named-long-ago"], NOW - timedelta(days=8))],
            counts=[(counted(ids["only-with-all"], NOW, named=False), Amount(1))],
            all_flags=NOW,
        )
    )

    assert usage.stale(days=7) == ["named-long-ago", "never", "only-with-all"]
    assert usage.stale(days=9) == ["never", "only-with-all"]


def test_a_flag_counts_as_named_until_the_end_of_its_minute(usage: Usage) -> None:
    flag_id = usage.create("checkout")
    usage.age("30 days")

    usage.store.add(batch(named=[(flag_id, datetime.now(UTC) - timedelta(days=7, seconds=1))]))
    assert usage.stale(days=7) == []

    usage.execute("UPDATE flag_last_named SET named_time = named_time - interval '1 minute'")
    assert usage.stale(days=7) == ["checkout"]


def test_nobody_is_called_stale_for_a_time_that_was_not_counted(usage: Usage) -> None:
    usage.create("checkout")
    usage.age("6 days")

    with pytest.raises(FailedPrecondition, match="usage is counted since"):
        usage.stale(days=7)
    assert usage.stale(days=5) == ["checkout"]


# --- Unknown keys -----------------------------------------------------------------------------------------------------


def test_unknown_keys_are_listed_until_a_flag_has_them_or_nobody_asks(usage: Usage) -> None:
    usage.store.add(batch(unknown=[("new-soon", 5, NOW), ("misspelt", 2, NOW), ("old", 9, NOW - timedelta(days=31))]))
    usage.store.add(batch(unknown=[("misspelt", 1, NOW - timedelta(minutes=5))]))
    before = [(unknown.key, unknown.requests) for unknown in usage.store.unknown_keys()]
    usage.create("new-soon")

    after = [(unknown.key, unknown.requests, unknown.last_asked_time) for unknown in usage.store.unknown_keys()]

    assert before == [("new-soon", 5), ("misspelt", 3)]
    assert after == [("misspelt", 3, NOW.replace(microsecond=0))]
    usage.store.prune()
    assert usage.rows("SELECT key FROM unknown_flag_keys") == [("misspelt",)]


def test_at_most_1000_unknown_keys_are_kept_the_most_asked_for(usage: Usage) -> None:
    for part in range(3):
        usage.store.add(batch(unknown=[(f"flood-{part}-{n}", 1, NOW) for n in range(900)]))
    usage.store.add(batch(unknown=[("misspelt", 2, NOW - timedelta(days=3))]))

    listed = usage.store.unknown_keys()
    usage.store.prune()

    assert (len(listed), listed[0].key) == (1_000, "misspelt")
    assert usage.rows("SELECT count(*), count(*) FILTER (WHERE key = 'misspelt') FROM unknown_flag_keys") == [
        (1_000, 1)
    ]
