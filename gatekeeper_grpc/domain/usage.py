"""Counts in memory which flags are asked for and what they answered, until the counts are written (decision 0045).

Workers count into the current minute. What writes takes the minutes that have ended into a `UsageBacklog`, where counts
are added up by hour, and hands out batches of it. Nothing here knows a user.
"""

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple

from gatekeeper_grpc.domain.evaluation import CODES, Reason
from gatekeeper_grpc.domain.selection import Decisions, Selection

EXACT_FLAGS: Final = 20
"""For how many flags a request may ask so that each decision is counted; of more, so many are, on average."""
MAX_UNKNOWN_KEYS: Final = 1_000
"""How many keys that no flag has are remembered."""
MAX_BATCH_ROWS: Final = 1_000
_MINUTE_S: Final = 60
_HOUR_S: Final = 3_600
# Of a bulk request, one user in so many is counted: it has thousands of them.
_BULK_SAMPLE: Final = 20
# A database that is away for days costs resolution then, and no more memory.
_MAX_WAITING_COUNTS: Final = 50_000
# Rows of values are added up together: when so many bytes are kept of a question, or so many rows of a long one.
_MAX_KEPT_BYTES: Final = 4_096
_MAX_KEPT_ROWS: Final = 16
_MAX_KEPT_QUESTIONS: Final = 100
# Longer rows would take the interpreter for more than a millisecond when they are added up.
_MAX_KEPT_COLUMNS: Final = 1_000
# How many flags are added up before other threads get a turn: a tenth of a millisecond.
_FLAGS_AT_ONCE: Final = 100


class UsageKey(NamedTuple):
    """What one number of decisions is about.

    `hour` is when it begins, in seconds since 1970; `code` stands for variant and reason, see `decision_of`.
    """

    flag_id: int
    hour: int
    named: bool
    code: int


class Amount(NamedTuple):
    """A number of decisions, and how many of them are estimated."""

    decisions: int = 0
    estimated: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """Return the sum."""
        return Amount(self.decisions + other.decisions, self.estimated + other.estimated)


class Requests(NamedTuple):
    """How many requests named an unknown key, and in which minute the last one did, in seconds since 1970."""

    number: int = 0
    minute: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageBatch:
    """What is written at once: at most 1,000 rows. Minutes are in seconds since 1970."""

    named: Mapping[int, int]
    """The last minute in which a request named a flag, by flag id."""
    counts: Mapping[UsageKey, Amount]
    unknown: Mapping[str, Requests]
    all_flags: int | None
    """The last minute in which a request for all flags was answered."""

    @property
    def rows(self) -> int:
        """The number of rows, without the one of `all_flags`."""
        return len(self.named) + len(self.counts) + len(self.unknown)

    def __bool__(self) -> bool:
        return bool(self.rows or self.all_flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSeries:
    """How a flag was used: amounts by the beginning of a period, whether it was named, variant and reason, in order."""

    periods: Mapping[datetime, Sequence["DecisionCount"]]
    named_time: datetime | None
    all_flags_time: datetime | None
    counted_since: datetime


class DecisionCount(NamedTuple):
    """How often a flag was decided in the same way in a period."""

    named: bool
    variant: str
    reason: Reason
    amount: Amount


class UnknownKey(NamedTuple):
    """A key that clients asked for and that no flag has."""

    key: str
    requests: int
    last_asked_time: datetime


def _counts_by_code() -> "defaultdict[int, list[int]]":
    return defaultdict(lambda: [0] * CODES)


class _Question(NamedTuple):
    """What rows of values are about: each `step`th flag of a selection; a decision stands for `weight` of them."""

    selection: Selection
    first: int = 0
    step: int = 1
    weight: int = 1


class UsageMinute:
    """What was counted in one minute: decisions by flag id and code, for all flags (0) and for named ones (1).

    Values are kept as they come, row by row: `add_up` before `exact` and `estimated` are read. A column of many rows is
    added up in the time that one decision takes.
    """

    __slots__ = ("_kept", "all_flags", "begins_at", "ends_at", "estimated", "exact", "named", "unknown")

    def __init__(self, now: float) -> None:
        self.begins_at = int(now) // _MINUTE_S * _MINUTE_S
        self.ends_at = self.begins_at + _MINUTE_S
        self.exact = (_counts_by_code(), _counts_by_code())
        self.estimated = (_counts_by_code(), _counts_by_code())
        self.named: set[int] = set()
        self.unknown: Counter[str] = Counter()
        self.all_flags = False
        self._kept: dict[_Question, bytearray] = {}

    def keep(self, question: _Question, values: bytes) -> None:
        """Count values, row by row, of flags that nothing but constants and draws decided."""
        rows = self._kept.get(question)
        if rows is None:
            if len(self._kept) >= _MAX_KEPT_QUESTIONS:
                self.add_up()
            rows = self._kept[question] = bytearray()
        rows += values
        if len(rows) > _MAX_KEPT_BYTES and len(rows) > _MAX_KEPT_ROWS * len(question.selection.plans):
            self._add_up(question, self._kept.pop(question))

    def count(self, question: _Question, codes: Sequence[int]) -> None:
        """Count the variants and reasons of one row, see `code_of`."""
        counts = self._counts(question)
        for flag_id, code in zip(question.selection.flag_ids[question.first :: question.step], codes, strict=True):
            counts[flag_id][code] += question.weight

    def add_up(self) -> None:
        """Add up all rows that are kept."""
        kept, self._kept = self._kept, {}
        for question, rows in kept.items():
            self._add_up(question, rows)

    def _add_up(self, question: _Question, rows: bytearray) -> None:
        plans, counts = question.selection.plans[question.first :: question.step], self._counts(question)
        number = len(rows) // len(plans)
        for column, plan in enumerate(plans):
            ons, (off, on), counted = rows[column :: len(plans)].count(1), plan.codes, counts[plan.flag_id]
            counted[off] += (number - ons) * question.weight
            counted[on] += ons * question.weight

    def _counts(self, question: _Question) -> "defaultdict[int, list[int]]":
        return (self.exact if question.weight == 1 else self.estimated)[question.selection.are_named]

    def has_ended(self, now: float) -> bool:
        """Return whether this is another minute, be it an earlier one because the clock was set back."""
        return not self.begins_at <= now < self.ends_at


class UsageCounter:
    """Counts evaluations. Thread-safe; an evaluation of 20 flags takes 2 microseconds longer.

    Args:
        clock: Seconds since 1970.
        chance: Returns a random number of 0 or more and below 1.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, chance: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()  # guards all below
        self._minute = UsageMinute(clock())
        self._ended: list[UsageMinute] = []

    def count(self, selection: Selection, decisions: Decisions) -> None:
        """Count the answer of a request about one user."""
        flags = len(selection.plans)
        if flags > EXACT_FLAGS or selection.unknown_flag_keys:
            self.note(selection)
        # Above, one flag of so many stands for all of them. Each flag is as likely as any other.
        every = -(-flags // EXACT_FLAGS)
        question = (
            _Question(selection, int(self._chance() * every), every, every) if every > 1 else _Question(selection)
        )
        if decisions.exceptions or flags > _MAX_KEPT_COLUMNS * every:
            self._count_one_by_one(question, decisions, users=(0,))
        elif flags:
            self._keep(question, decisions.values[question.first :: every])

    def note(self, selection: Selection) -> None:
        """Note what a request asks for, whose answers are not counted one by one."""
        named = selection.flag_ids if selection.are_named else ()
        now = self._clock()
        with self._lock:
            minute = self._minute_of(now)
            minute.named.update(named)
            minute.all_flags |= not selection.are_named
            if selection.unknown_flag_keys:
                _count_unknown(minute.unknown, selection.unknown_flag_keys)

    def count_in_bulk(self, selection: Selection, decisions: Decisions) -> None:
        """Count the answers about those of many users who are in the sample; `note` the request as well."""
        users = range(int(self._chance() * _BULK_SAMPLE), decisions.users, _BULK_SAMPLE)
        question, flags = _Question(selection, weight=_BULK_SAMPLE), len(selection.plans)
        if decisions.exceptions or flags > _MAX_KEPT_COLUMNS:
            self._count_one_by_one(question, decisions, users=users)
        elif flags and users:
            values = decisions.values
            self._keep(question, b"".join([values[user * flags : (user + 1) * flags] for user in users]))

    def take(self, *, current: bool = False) -> list[UsageMinute]:
        """Take the minutes that have ended, with `current` also the one that has not."""
        now = self._clock()
        with self._lock:
            if current or self._minute.has_ended(now):
                self._begin(now)
            ended, self._ended = self._ended, []
        for minute in ended:
            minute.add_up()
        return ended

    def _keep(self, question: _Question, values: bytes) -> None:
        now = self._clock()
        with self._lock:
            minute = self._minute
            # The hot path: no call that is not needed.
            if not minute.begins_at <= now < minute.ends_at:
                minute = self._begin(now)
            minute.keep(question, values)

    def _count_one_by_one(self, question: _Question, decisions: Decisions, *, users: Iterable[int]) -> None:
        selection, first, step, _ = question
        rows = [selection.codes(decisions, user=user, first=first, step=step) for user in users]
        now = self._clock()
        with self._lock:
            minute = self._minute_of(now)
            for codes in rows:
                minute.count(question, codes)

    def _minute_of(self, now: float) -> UsageMinute:
        return self._begin(now) if self._minute.has_ended(now) else self._minute

    def _begin(self, now: float) -> UsageMinute:
        self._ended.append(self._minute)
        self._minute = UsageMinute(now)
        return self._minute


def _count_unknown(counts: Counter[str], keys: Iterable[str]) -> None:
    """Count keys, and forget those that were asked for least when there are twice as many as are remembered."""
    counts.update(keys)
    if len(counts) >= 2 * MAX_UNKNOWN_KEYS:
        kept = counts.most_common(MAX_UNKNOWN_KEYS)
        counts.clear()
        counts.update(dict(kept))


class UsageBacklog:
    """Counts that wait to be written. Not thread-safe.

    A batch has what waits longest of each kind. Kinds share the room by their importance: each gets half of what those
    before it left, and what those after it do not need. First the time when flags were last named, then decisions about
    named flags, then those about all flags, then unknown keys. So nothing is lost, and nothing waits for ever.

    It stays bounded without a database, too: by the number of flags and keys. When more than 50,000 numbers of
    decisions wait, those of past hours are added to the current one.
    """

    def __init__(self) -> None:
        self._named: dict[int, int] = {}
        self._counts: tuple[dict[UsageKey, Amount], ...] = ({}, {})
        self._unknown: dict[str, Requests] = {}
        self._all_flags: int | None = None

    def __len__(self) -> int:
        """Return how many rows wait."""
        return sum(map(len, self._queues()))

    @property
    def decisions(self) -> int:
        """How many decisions wait."""
        return sum(amount.decisions for counts in self._counts for amount in counts.values())

    def add(self, minute: UsageMinute) -> Iterator[None]:
        """Add what was counted in a minute; yields after each part, so that the caller can let other threads run."""
        for flag_id in minute.named:
            self._note_named(flag_id, minute.begins_at)
        if minute.all_flags or minute.exact[False]:
            self._all_flags = max(self._all_flags or 0, minute.begins_at)
        for key, count in minute.unknown.most_common(MAX_UNKNOWN_KEYS):
            self._add_unknown(key, count, minute.begins_at)
        yield
        for named in (True, False):
            for counted, is_estimated in ((minute.exact[named], False), (minute.estimated[named], True)):
                for position, (flag_id, codes) in enumerate(counted.items()):
                    self._add_decisions(flag_id, minute.begins_at, codes, named=named, is_estimated=is_estimated)
                    if position % _FLAGS_AT_ONCE == 0:
                        yield
        if sum(map(len, self._counts)) > _MAX_WAITING_COUNTS:
            yield from self._forget_hours(minute.begins_at)

    def batch(self) -> UsageBatch:
        """Return what to write next; it still waits."""
        shares, room, queues = [], MAX_BATCH_ROWS, self._queues()
        for position, queue in enumerate(queues):
            needed_after = sum(map(len, queues[position + 1 :]))
            share = min(len(queue), max(-(-room // 2), room - needed_after))
            shares.append(dict(islice(queue.items(), share)))
            room -= share
        named, of_named, of_all, unknown = shares
        return UsageBatch(named=named, counts=of_named | of_all, unknown=unknown, all_flags=self._all_flags)

    def remove(self, batch: UsageBatch) -> None:
        """Remove what was written. Nothing may have been added since `batch`."""
        for flag_id in batch.named:
            del self._named[flag_id]
        for key in batch.counts:
            del self._counts[key.named][key]
        for unknown in batch.unknown:
            del self._unknown[unknown]
        self._all_flags = None

    def _queues(self) -> tuple[dict[Any, Any], ...]:
        return self._named, self._counts[True], self._counts[False], self._unknown

    def _note_named(self, flag_id: int, minute: int) -> None:
        self._named[flag_id] = max(self._named.get(flag_id, 0), minute)

    def _add_decisions(
        self, flag_id: int, minute: int, codes: Sequence[int], *, named: bool, is_estimated: bool
    ) -> None:
        if named and not is_estimated:
            self._note_named(flag_id, minute)
        hour, waiting = minute // _HOUR_S * _HOUR_S, self._counts[named]
        for code, decisions in enumerate(codes):
            if decisions:
                key = UsageKey(flag_id, hour, named, code)
                waiting[key] = waiting.get(key, Amount()).plus(Amount(decisions, decisions * is_estimated))

    def _add_unknown(self, key: str, count: int, minute: int) -> None:
        """Count an unknown key, if there is room for it: the keys of a flood must not replace those that wait."""
        before = self._unknown.get(key, Requests())
        if before.number or len(self._unknown) < MAX_UNKNOWN_KEYS:
            self._unknown[key] = Requests(before.number + count, max(before.minute, minute))

    def _forget_hours(self, minute: int) -> Iterator[None]:
        hour = minute // _HOUR_S * _HOUR_S
        for counts in self._counts:
            for position, key in enumerate([key for key in counts if key.hour != hour]):
                current = key._replace(hour=hour)
                counts[current] = counts.get(current, Amount()).plus(counts.pop(key))
                if position % _FLAGS_AT_ONCE == 0:
                    yield


class UsageWriter:
    """Writes what a `UsageCounter` has counted, a batch at a time.

    Args:
        counter: Counts.
        write: Adds a batch to what the installation has, or raises: then it is written with the next one.
        waiting: Is told how many rows wait.
    """

    def __init__(
        self,
        counter: UsageCounter,
        write: Callable[[UsageBatch], None],
        *,
        waiting: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._counter = counter
        self._write = write
        self._tell_waiting = waiting
        self._writing = threading.Lock()  # orders the writers: the last run may meet one that is held
        self._backlog = UsageBacklog()
        self._has_failed = False

    def run(self) -> None:
        """Write one batch of the minutes that have ended; call it once a minute.

        Raises:
            GatekeeperError: As `write`. Everything waits for the next run.
        """
        with self._writing:
            self._collect()
            self._write_batch(self._backlog.batch())

    def finish(self, *, within_s: float) -> None:
        """Write the current minute as well, in as many batches as it takes; none if the last run failed.

        Raises:
            GatekeeperError: As `write`.
        """
        ends_at = time.monotonic() + within_s
        if not self._writing.acquire(timeout=within_s):
            return  # A run is held by the database.
        try:
            self._collect(current=True)
            while not self._has_failed and (batch := self._backlog.batch()) and time.monotonic() < ends_at:
                self._write_batch(batch)
        finally:
            self._writing.release()

    @property
    def waiting_decisions(self) -> int:
        """How many decisions were taken from the counter and not written."""
        return self._backlog.decisions

    def _collect(self, *, current: bool = False) -> None:
        for minute in self._counter.take(current=current):
            for _ in self._backlog.add(minute):
                time.sleep(0)  # Lets a thread that answers a call run now, not after the switch interval.

    def _write_batch(self, batch: UsageBatch) -> None:
        self._has_failed = True
        self._tell_waiting(len(self._backlog))
        if batch:
            self._write(batch)
            self._backlog.remove(batch)
            self._tell_waiting(len(self._backlog))
        self._has_failed = False
