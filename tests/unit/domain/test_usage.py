"""Counting usage in memory: what is exact, what is sampled, what waits, and in which order it is written."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, repeat
from random import Random
from threading import Event, Thread

import pytest

from gatekeeper_grpc.domain import usage
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.evaluation import CODES, EvaluationContext, Reason, code_of, decision_of
from gatekeeper_grpc.domain.flag import OFF, ON
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.usage import (
    EXACT_FLAGS,
    MAX_BATCH_ROWS,
    MAX_UNKNOWN_KEYS,
    Amount,
    UsageBacklog,
    UsageBatch,
    UsageCounter,
    UsageKey,
    UsageWriter,
)
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from tests.support.flags import flag

HOUR = 1_767_225_600  # A whole hour, in seconds since 1970.
ON_TO_ALL = code_of(ON, Reason.STATIC)
ANNA = EvaluationContext(user_id="anna")


class Clock:
    def __init__(self) -> None:
        self.now = float(HOUR)

    def __call__(self) -> float:
        return self.now

    def next_minute(self) -> None:
        self.now += 60


class Shop:
    """Flags that are on for everybody, and the usage of them; `chances` are the random numbers of the samples."""

    def __init__(self, flags: int, chances: Iterable[float] = repeat(0.0)) -> None:
        self.clock = Clock()
        random: Iterator[float] = iter(chances)
        self.counter = UsageCounter(clock=self.clock, chance=lambda: next(random))
        self.keys = [f"flag-{n:05}" for n in range(1, flags + 1)]
        self.snapshot = Snapshot.build(
            revision=1,
            flags=[flag(key, flag_id=n, enabled=True, rollout_percentage=100) for n, key in enumerate(self.keys, 1)],
        )
        self.written: list[UsageBatch] = []
        self.writer = UsageWriter(self.counter, self.written.append)

    def ask(self, *keys: str) -> None:
        selection = self.snapshot.select(keys)
        self.counter.count(selection, self.snapshot.decide(selection, ANNA))

    def ask_in_bulk(self, *keys: str, users: int) -> None:
        selection = self.snapshot.select(keys)
        self.counter.note(selection)
        for _ in range(users):
            self.counter.count_in_bulk(selection, self.snapshot.decide(selection, ANNA))

    def flush(self) -> UsageBatch:
        """Let the minute end and write; the batch, an empty one if nothing was written."""
        self.clock.next_minute()
        before = len(self.written)
        self.writer.run()
        return self.written[-1] if len(self.written) > before else UsageBacklog().batch()


def key_of(flag_id: int, *, named: bool = True, hour: int = HOUR) -> UsageKey:
    return UsageKey(flag_id, hour, named, ON_TO_ALL)


def test_each_pair_of_variant_and_reason_has_a_code_of_its_own() -> None:
    pairs = [(variant, reason) for variant in (OFF, ON) for reason in Reason]

    codes = [code_of(*pair) for pair in pairs]

    assert sorted(codes) == [*range(CODES)]
    assert [decision_of(code) for code in codes] == pairs


def test_decisions_of_a_small_request_are_counted_one_by_one() -> None:
    shop = Shop(flags=EXACT_FLAGS)

    for _ in range(3):
        shop.ask(*shop.keys)

    assert shop.flush().counts == {key_of(n): Amount(3, 0) for n in range(1, EXACT_FLAGS + 1)}


def test_requests_that_name_flags_and_those_for_all_are_kept_apart() -> None:
    shop = Shop(flags=2)

    shop.ask(shop.keys[0])
    shop.ask()
    shop.ask()
    batch = shop.flush()

    assert batch.named == {1: HOUR}
    assert batch.all_flags == HOUR
    assert batch.counts == {key_of(1): (1, 0), key_of(1, named=False): (2, 0), key_of(2, named=False): (2, 0)}


def test_each_flag_of_a_large_request_is_counted_as_often_as_any_other() -> None:
    flags, every = 100, 100 // EXACT_FLAGS
    shop = Shop(flags, chances=[n / every for n in range(every)])

    for _ in range(every):
        shop.ask(*shop.keys)

    assert shop.flush().counts == {key_of(n): (every, every) for n in range(1, flags + 1)}


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({}, id="as they are"),
        pytest.param({"_MAX_KEPT_BYTES": 10, "_MAX_KEPT_ROWS": 2, "_MAX_KEPT_QUESTIONS": 3}, id="few rows kept"),
        pytest.param({"_MAX_KEPT_COLUMNS": 0}, id="no rows kept"),
    ],
)
def test_rows_are_added_up_to_what_was_decided_one_by_one(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    for name, limit in limits.items():
        monkeypatch.setattr(usage, name, limit)
    chance, shop = Random(7), Shop(flags=0)
    flags = [flag(f"flag-{n}", flag_id=n, enabled=n % 7 > 0, rollout_percentage=n * 9) for n in range(1, 12)]
    targets = UserIndex.build([UserEntry("user-3", 4, 1), UserEntry("user-5", 9, 0)])
    snapshot = Snapshot.build(revision=1, flags=flags, targets=targets)
    questions = [(), *(tuple(chance.sample([*snapshot.flags], size)) for size in range(1, 11))]
    expected: Counter[tuple[int, bool, int]] = Counter()
    for _ in range(500):
        keys, user = chance.choice(questions), chance.choice([None, *(f"user-{n}" for n in range(9))])
        selection, context = snapshot.select(keys), EvaluationContext(user_id=user)
        shop.counter.count(selection, snapshot.decide(selection, context))
        details = snapshot.evaluate(selection.plans, context)
        expected.update(
            (plan.flag_id, bool(keys), one.code) for plan, one in zip(selection.plans, details, strict=True)
        )

    counts = shop.flush().counts

    assert {(key.flag_id, key.named, key.code): amount for key, amount in counts.items()} == {
        key: (number, 0) for key, number in expected.items()
    }


def test_a_sample_counts_as_many_decisions_as_were_made_on_average() -> None:
    shop = Shop(flags=1_037)  # Not a multiple of anything.
    shop.counter = UsageCounter(clock=shop.clock)
    shop.writer = UsageWriter(shop.counter, shop.written.append)

    for _ in range(400):
        shop.ask()
    shop.clock.next_minute()
    shop.writer.finish(within_s=60)

    counted = sum(amount.decisions for batch in shop.written for amount in batch.counts.values())
    assert counted == pytest.approx(400 * 1_037, rel=0.03)


def test_all_named_flags_of_a_large_request_are_seen_in_its_minute() -> None:
    shop = Shop(flags=200)

    shop.ask(*shop.keys)

    assert shop.flush().named == dict.fromkeys(range(1, 201), HOUR)


def test_bulk_is_sampled_and_what_it_names_is_seen() -> None:
    shop = Shop(flags=2, chances=chain.from_iterable(repeat([n / 20 for n in range(20)])))

    shop.ask_in_bulk(*shop.keys, users=40)
    batch = shop.flush()

    assert batch.named == {1: HOUR, 2: HOUR}
    assert batch.counts == {key_of(1): (40, 40), key_of(2): (40, 40)}


def test_nothing_is_written_before_its_minute_has_ended() -> None:
    shop = Shop(flags=1)
    shop.ask(*shop.keys)

    shop.clock.now += 59
    shop.writer.run()

    assert shop.written == []


def test_last_seen_is_the_minute_of_the_request_however_late_it_is_written() -> None:
    shop = Shop(flags=2)
    shop.ask(*shop.keys)
    shop.clock.next_minute()
    shop.ask(shop.keys[1])
    shop.clock.now += 600

    assert shop.flush().named == {1: HOUR, 2: HOUR + 60}


def test_a_clock_that_is_set_back_does_not_stop_the_counting() -> None:
    shop = Shop(flags=1)
    shop.ask(*shop.keys)
    shop.clock.now -= 3_600
    shop.ask(*shop.keys)
    batch = shop.flush()

    assert batch.named == {1: HOUR}
    assert batch.counts == {key_of(1): (1, 0), key_of(1, hour=HOUR - 3_600): (1, 0)}


def test_threads_that_count_at_once_lose_nothing() -> None:
    shop, begin = Shop(flags=5), Event()

    def ask() -> None:
        begin.wait(10)
        for _ in range(2_000):
            shop.ask(*shop.keys)

    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    begin.set()
    for thread in threads:
        thread.join()

    assert {amount.decisions for amount in shop.flush().counts.values()} == {8_000}


# --- What waits -------------------------------------------------------------------------------------------------------


def drained(flush: Callable[[], UsageBatch]) -> list[UsageBatch]:
    return [batch for batch in iter(flush, UsageBacklog().batch())]  # noqa: C416 - it is an iterator


def test_a_batch_has_at_most_1000_rows_and_nothing_is_lost() -> None:
    shop = Shop(flags=3_000)
    for first in range(0, 3_000, EXACT_FLAGS):
        shop.ask(*shop.keys[first : first + EXACT_FLAGS])

    batches = drained(shop.flush)

    assert [batch.rows for batch in batches] == [MAX_BATCH_ROWS] * 6
    assert {flag_id for batch in batches for flag_id in batch.named} == {*range(1, 3_001)}
    assert sum(amount.decisions for batch in batches for amount in batch.counts.values()) == 3_000


def test_the_important_is_written_first_and_everything_has_a_share() -> None:
    shop = Shop(flags=3_000)
    for first in range(0, 3_000, EXACT_FLAGS):
        shop.ask(*shop.keys[first : first + EXACT_FLAGS])
        shop.ask(*(f"missing-{n}" for n in range(first, first + EXACT_FLAGS)))
    shop.ask()

    batch = shop.flush()

    of_named = sum(key.named for key in batch.counts)
    assert (len(batch.named), of_named, len(batch.counts) - of_named, len(batch.unknown)) == (500, 250, 20, 230)


def test_what_waits_longest_is_written_first() -> None:
    shop = Shop(flags=2_000)
    shop.ask(*shop.keys[:1_000])
    shop.flush()
    for _ in range(3):
        shop.ask(*shop.keys[:1_000])
        shop.ask(*shop.keys[1_000:])
        shop.clock.next_minute()

    first, second = shop.flush(), shop.flush()

    assert not first.named.keys() & second.named.keys()


def test_counts_of_a_flush_that_failed_are_in_the_next_one() -> None:
    shop, away = Shop(flags=1), True

    def write(batch: UsageBatch) -> None:
        if away:
            raise Unavailable("the database is away")
        shop.written.append(batch)

    shop.writer = UsageWriter(shop.counter, write)
    for _ in range(3):
        shop.ask(*shop.keys, "missing")
        with pytest.raises(Unavailable):
            shop.flush()
    away = False
    shop.ask(*shop.keys)

    batch = shop.flush()

    assert batch.counts == {key_of(1): (4, 0)}
    assert batch.named == {1: HOUR + 180}
    assert batch.unknown == {"missing": (3, HOUR + 120)}
    assert shop.writer.waiting_decisions == 0


def test_when_much_waits_past_hours_join_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatekeeper_grpc.domain.usage._MAX_WAITING_COUNTS", 20)
    shop, backlog = Shop(flags=10), UsageBacklog()

    for n in range(5):
        shop.clock.now = HOUR + n * 3_600.0
        shop.ask(*shop.keys)
        for minute in shop.counter.take(current=True):
            list(backlog.add(minute))

    counts = backlog.batch().counts
    assert {key.hour for key in counts} == {HOUR + 4 * 3_600}
    assert sum(amount.decisions for amount in counts.values()) == 50


def test_at_the_end_all_batches_and_the_current_minute_are_written() -> None:
    shop = Shop(flags=3_000)
    shop.ask(*shop.keys)

    shop.writer.finish(within_s=60)

    assert sum(len(batch.named) for batch in shop.written) == 3_000


def test_at_the_end_a_request_for_all_flags_of_none_is_written() -> None:
    shop = Shop(flags=0)
    shop.counter.note(shop.snapshot.select(()))

    shop.writer.finish(within_s=60)

    assert [batch.all_flags for batch in shop.written] == [HOUR]


def test_at_the_end_a_database_that_failed_before_is_not_tried_again() -> None:
    shop, tries = Shop(flags=1), count()

    def write(_: UsageBatch) -> None:
        next(tries)
        raise Unavailable("the database is away")

    shop.writer = UsageWriter(shop.counter, write)
    shop.ask(*shop.keys)
    with pytest.raises(Unavailable):
        shop.flush()
    shop.ask(*shop.keys)

    shop.writer.finish(within_s=60)

    assert next(tries) == 1
    assert shop.writer.waiting_decisions == 2


def test_at_the_end_a_flush_that_is_held_is_not_waited_for() -> None:
    shop, held, over = Shop(flags=1), Event(), Event()

    def write(_: UsageBatch) -> None:
        held.set()
        over.wait(30)

    shop.writer = UsageWriter(shop.counter, write)
    shop.ask(*shop.keys)
    run = Thread(target=shop.flush)
    run.start()
    assert held.wait(10)

    shop.writer.finish(within_s=0.01)

    assert run.is_alive()
    over.set()
    run.join()


# --- Unknown keys -----------------------------------------------------------------------------------------------------


def test_unknown_keys_are_counted_by_requests() -> None:
    shop = Shop(flags=1)

    shop.ask("nobody", *shop.keys)
    shop.ask("nobody", "nothing")
    shop.ask_in_bulk("nobody", users=7)
    batch = shop.flush()

    assert batch.unknown == {"nobody": (3, HOUR), "nothing": (1, HOUR)}
    assert batch.named == {1: HOUR}


def test_a_flood_of_unknown_keys_is_bounded_and_spares_frequent_ones() -> None:
    shop = Shop(flags=1)
    largest = Counter[str]()

    for n in range(40):
        shop.ask("misspelt", *(f"flood-{n}-{m}" for m in range(999)))
        largest = max(largest, shop.counter._minute.unknown, key=len)
        shop.clock.now += 3
    shop.writer.finish(within_s=60)

    assert len(largest) < 2 * MAX_UNKNOWN_KEYS
    unknown = {key: requests.number for batch in shop.written for key, requests in batch.unknown.items()}
    assert len(unknown) <= MAX_UNKNOWN_KEYS
    assert unknown["misspelt"] == 40
