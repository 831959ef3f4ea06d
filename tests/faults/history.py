"""Checks promises A1-A6 against the recorded calls of clients and the audit log. Pure.

Clients record each operation with the times at which it began and ended, on one clock. The log is what the database
says was done, in order. The checker rebuilds the flags at every revision from the log and holds each operation against
them. Writes whose outcome nobody knows may be in the log or not; everything else is one or the other.

Flags are never enabled, so that for every user a flag's value is its `default_value`; an update turns it over, so that
a mixture of two revisions that follow each other is never mistaken for one of them.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate, groupby, pairwise
from operator import attrgetter
from types import MappingProxyType

from gatekeeper_grpc.domain.revision import epoch_of

# A revision that was missing may be called missing for this long (see the contract on `min_revision`).
_HEAD_IS_FRESH_S = 0.1


class Outcome(StrEnum):
    """What a client knows of its operation."""

    OK = "ok"
    REFUSED = "refused"
    """It certainly did nothing."""
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What a write does to its flag."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagState:
    """A flag as it stands: who wrote it last, which value it has, and the name of this state."""

    write_id: str
    value: bool
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of one client, which does one at a time, on one process; another process is another instance."""

    client: str
    instance: str
    began: float
    ended: float
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(Operation):
    """An attempt to change a flag, retries under the same request id included. `write_id` is unique.

    Args:
        seen_etag: The state that the writer has seen; empty for none.
        revision: The answer's; 0 unless acknowledged.
        etag: The flag's, after it; empty unless acknowledged, and of a deletion.
    """

    write_id: str
    action: Action
    flag_key: str
    seen_etag: str = ""
    revision: int = 0
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Operation):
    """An admin's look at a flag, in the database; `state` is None when there is no such flag."""

    flag_key: str
    state: FlagState | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Operation):
    """An answer from memory: the values of all flags at one revision, by key."""

    min_revision: int = 0
    revision: int = 0
    values: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One entry of the audit log: what a flag was, and what it became; None: no flag.

    An entry about something else, such as a new epoch, has neither flag nor write.
    """

    revision: int
    flag_key: str = ""
    before: FlagState | None = None
    after: FlagState | None = None
    write_id: str = ""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that did not hold, and by what it shows."""

    promise: str
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was checked, by kind and outcome, and what was found."""

    operations: Counter[str]
    violations: Sequence[Violation]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.operations.items()))
        found = Counter(violation.promise for violation in self.violations)
        broken = "".join(f"; {promise}: {count}" for promise, count in sorted(found.items()))
        return f"{self.operations.total():,} operations checked ({kinds}), {len(self.violations)} violations{broken}"


def check(operations: Sequence[Operation], log: Sequence[Step], *, first_revision: int = 0) -> Verdict:
    """Hold a history against the log.

    Args:
        operations: What clients recorded, in any order.
        log: All flag changes since `first_revision`, in order; at that revision there are no flags.
        first_revision: Where the log begins.
    """
    past = _Past(operations, log, first_revision)
    checks = (_log_is_one_chain, _writes_are_steps, _order_is_real, _answers_are_states, _instances_go_forward)
    kinds = Counter(f"{type(operation).__name__.lower()}s {operation.outcome}" for operation in operations)
    return Verdict(kinds, [violation for check in checks for violation in check(past)])


_NO_FLAGS: Mapping[str, FlagState] = MappingProxyType({})


class _Past:
    """The history, sorted by kind, and the flags at every revision."""

    def __init__(self, operations: Sequence[Operation], log: Sequence[Step], first_revision: int) -> None:
        self.first_revision = first_revision
        self.log = log
        self.writes = [operation for operation in operations if isinstance(operation, Write)]
        self.reads = [operation for operation in operations if isinstance(operation, Read)]
        self.evaluations = [operation for operation in operations if isinstance(operation, Evaluation)]
        self.acknowledged = [write for write in self.writes if write.outcome is Outcome.OK]
        self._revisions = [first_revision, *(step.revision for step in log)]
        self._states = list(accumulate(log, _after, initial=_NO_FLAGS))
        by_end = sorted(self.acknowledged, key=attrgetter("ended"))
        self._ends = [write.ended for write in by_end]
        self._newest = list(accumulate((write.revision for write in by_end), max, initial=first_revision))
        began = {write.write_id: write.began for write in self.writes}
        self._asked_for = {step.revision: began[step.write_id] for step in log if step.write_id in began}

    def flags_at(self, revision: int) -> Mapping[str, FlagState] | None:
        """The flags at a revision; None when there never was such a revision."""
        index = bisect_left(self._revisions, revision)
        exists = index < len(self._revisions) and self._revisions[index] == revision
        return self._states[index] if exists else None

    def newest_before(self, time: float) -> int:
        """The newest revision that was acknowledged to somebody before a time."""
        return self._newest[bisect_right(self._ends, time)]

    def first_asked_for(self, revision: int) -> float:
        """When the write that made a revision began; before that, nobody can have seen it."""
        return self._asked_for.get(revision, float("-inf"))


def _after(flags: Mapping[str, FlagState], step: Step) -> Mapping[str, FlagState]:
    rest = {key: state for key, state in flags.items() if key != step.flag_key}
    return rest if step.after is None else {**rest, step.flag_key: step.after}


def _log_is_one_chain(past: _Past) -> Iterator[Violation]:
    """Each revision is one more than the one before, or begins an epoch; each change starts from what was there."""
    for before, after in pairwise([past.first_revision, *(step.revision for step in past.log)]):
        if after != before + 1 and epoch_of(after) <= epoch_of(before):
            yield Violation("A3", f"revision {after} follows {before} in the log")
    states: dict[str, FlagState | None] = {}
    for step in past.log:
        if step.before != states.get(step.flag_key):
            yield Violation(
                "A3", f"revision {step.revision} of {step.flag_key} does not start from the state before it"
            )
        states[step.flag_key] = step.after


def _writes_are_steps(past: _Past) -> Iterator[Violation]:
    """What was acknowledged is one step, what was refused is none, and no step is without a write."""
    steps = {write_id: list(found) for write_id, found in groupby(sorted(past.log, key=_write_id), key=_write_id)}
    for write in past.writes:
        yield from _write_is_step(write, steps.pop(write.write_id, []))
    for write_id in steps.keys() - {""}:
        yield Violation("A1", f"the log holds {write_id}, which nobody wrote")


def _write_id(step: Step) -> str:
    return step.write_id


def _write_is_step(write: Write, steps: Sequence[Step]) -> Iterator[Violation]:
    if len(steps) > 1:
        yield Violation("A3", f"{write.write_id} is {len(steps)} steps")
    if write.outcome is Outcome.REFUSED and steps:
        yield Violation("A1", f"{write.write_id} was refused ({write.reason}) and is in the log")
    if write.outcome is Outcome.OK and write.revision not in {step.revision for step in steps}:
        yield Violation("A1", f"{write.write_id}, acknowledged at revision {write.revision}, is lost")
    for step in steps:
        if write.seen_etag and (step.before is None or step.before.etag != write.seen_etag):
            yield Violation("A3", f"{write.write_id} replaced a state of {write.flag_key} that its writer never saw")
        if write.outcome is Outcome.OK and write.etag != (step.after.etag if step.after else ""):
            yield Violation("A3", f"{write.write_id} was told another etag than {write.flag_key} got")


def _order_is_real(past: _Past) -> Iterator[Violation]:
    """A write that began after another was acknowledged has a later revision."""
    for write in past.acknowledged:
        if write.revision <= past.newest_before(write.began):
            yield Violation("A3", f"{write.write_id} at revision {write.revision} began after a later one had ended")


def _answers_are_states(past: _Past) -> Iterator[Violation]:
    """An answer is what the flags were at its revision: not a mixture, not from the future, not older than asked."""
    for read in past.reads:
        if read.outcome is Outcome.OK:
            yield from _read_is_state(past, read)
    for evaluation in past.evaluations:
        if evaluation.outcome is Outcome.OK:
            yield from _evaluation_is_state(past, evaluation)
        elif evaluation.reason == "REVISION_NOT_REACHED":
            known = past.newest_before(evaluation.began - _HEAD_IS_FRESH_S)
            if evaluation.min_revision <= known:
                yield Violation(
                    "A2", f"{_named(evaluation)} was told that revision {evaluation.min_revision} is missing"
                )


def _read_is_state(past: _Past, read: Read) -> Iterator[Violation]:
    flags = past.flags_at(read.revision)
    if flags is None or flags.get(read.flag_key) != read.state:
        yield Violation("A3", f"{_named(read)} saw {read.flag_key} as it was not at revision {read.revision}")
    if read.revision < past.newest_before(read.began):
        yield Violation("A3", f"{_named(read)} missed a write that was acknowledged before it began")
    if past.first_asked_for(read.revision) > read.ended:
        yield Violation("A3", f"{_named(read)} saw revision {read.revision} before anybody wrote it")


def _evaluation_is_state(past: _Past, evaluation: Evaluation) -> Iterator[Violation]:
    flags = past.flags_at(evaluation.revision)
    if flags is None or {key: state.value for key, state in flags.items()} != evaluation.values:
        yield Violation("A5", f"{_named(evaluation)} mixed revisions: not what the flags were at {evaluation.revision}")
    if evaluation.revision < evaluation.min_revision:
        yield Violation("A2", f"{_named(evaluation)} got {evaluation.revision}, asked for {evaluation.min_revision}")
    if past.first_asked_for(evaluation.revision) > evaluation.ended:
        yield Violation("A5", f"{_named(evaluation)} saw revision {evaluation.revision} before anybody wrote it")


def _instances_go_forward(past: _Past) -> Iterator[Violation]:
    """No instance answers with an older revision than it showed before, in an answer or by acknowledging a write."""
    by_instance = sorted(past.evaluations, key=attrgetter("instance"))
    for instance, evaluations in groupby(by_instance, key=attrgetter("instance")):
        answers = [evaluation for evaluation in evaluations if evaluation.outcome is Outcome.OK]
        own = [write for write in past.acknowledged if write.instance == instance]
        yield from _goes_forward(answers, answers, "A5", "went back")
        yield from _goes_forward(own, answers, "A1", "does not show its own write")


def _goes_forward(
    shown: Iterable[Write | Evaluation], answers: Iterable[Evaluation], promise: str, what: str
) -> Iterator[Violation]:
    """No answer that began after something was shown is older than it."""
    by_end = sorted(shown, key=attrgetter("ended"))
    ends = [operation.ended for operation in by_end]
    newest = list(accumulate((operation.revision for operation in by_end), max, initial=0))
    for answer in answers:
        before = newest[bisect_left(ends, answer.began)]
        if answer.revision < before:
            yield Violation(promise, f"{_named(answer)} got {answer.revision} after {before}: the instance {what}")


def _named(operation: Operation) -> str:
    return f"{operation.client} on {operation.instance} at {operation.began:.3f} s"
