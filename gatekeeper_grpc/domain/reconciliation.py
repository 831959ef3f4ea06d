"""Compares a resource in the database with its history in the audit log. Pure: states are JSON values.

The log holds a resource before and after each change. So the state now must be the one after the last change, the
state before each change must be the one after the change before, and before the first there was nothing. What was
changed behind the log shows now, and forever at the next change that the log records.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

import rfc8785

from gatekeeper_grpc.domain.erasure import PLACEHOLDER
from gatekeeper_grpc.domain.mutation import ResourceType


class Unknown(NamedTuple):
    """A state that cannot be compared, and why: "archived", "redacted", "written by an earlier version"."""

    reason: str


State = Mapping[str, Any] | Unknown | None
"""A resource as a document of the log has it; None: it does not exist."""

REDACTED: Final = Unknown("redacted")
ARCHIVED: Final = Unknown("archived")
EARLIER_VERSION: Final = Unknown("written by an earlier version")
UNREADABLE: Final = Unknown("unreadable")


class Recorded(NamedTuple):
    """One change of a resource, as the entry `seq` of the log records it."""

    seq: int
    before: State
    after: State


_BEGINNING = Recorded(0, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The result for one resource.

    Args:
        resource: Its kind.
        key: Its key.
        faults: How it differs from the log, each as text for people; empty: it does not.
        not_comparable: Why its state could not be compared, or not all of it; empty: it was.
    """

    resource: ResourceType
    key: str
    faults: tuple[str, ...] = ()
    not_comparable: str = ""


def compare(
    resource: ResourceType,
    key: str,
    *,
    now: State,
    history: Iterable[Recorded],
    origin: Callable[[State], State] = lambda _: None,
    uncounted: Sequence[int] = (),
    trusted_seq: int = 0,
) -> Comparison:
    """Compare a resource with its history.

    Args:
        resource: Its kind.
        key: Its key.
        now: Its state in the database.
        history: Its changes in the log, newest first.
        origin: Returns what its oldest known state should be; None: it did not exist.
        uncounted: Entries that may have changed it without recording how, in ascending order.
        trusted_seq: Differences that entries up to this one found are not reported again.
    """
    faults: list[str] = []
    later, later_seq, not_comparable = now, 0, ""
    for change in chain(history, [_BEGINNING]):
        earlier = change.after if change.seq else origin(later)
        found = _excused(differences(earlier, later), change.seq, later_seq, uncounted)
        if not later_seq:
            not_comparable = found.not_comparable
        if found.fields and not 0 < later_seq <= trusted_seq:
            faults.append(_fault(change.seq, earlier, later_seq, later, found.fields))
        later, later_seq = change.before, change.seq
    return Comparison(resource=resource, key=key, faults=tuple(faults), not_comparable=not_comparable)


class Differences(NamedTuple):
    """The names of the fields in which two states differ, and why others could not be compared."""

    fields: tuple[str, ...] = ()
    not_comparable: str = ""


def differences(recorded: State, later: State) -> Differences:
    """Compare the state after an entry with a later one. Existence counts as a field."""
    for state in (recorded, later):
        if isinstance(state, Unknown):
            return Differences(not_comparable=state.reason)
    if recorded is None or later is None:
        return Differences() if recorded is later else Differences(fields=("existence",))
    assert not isinstance(recorded, Unknown)  # noqa: S101 - see above
    assert not isinstance(later, Unknown)  # noqa: S101 - see above
    return _compare_fields(recorded, later)


def _compare_fields(recorded: Mapping[str, Any], later: Mapping[str, Any]) -> Differences:
    both = [name for name in later if name in recorded]
    different = [name for name in both if not _is_same(recorded[name], later[name])]
    redacted = [name for name in different if _may_have_been(recorded[name], later[name])]
    reason = REDACTED.reason if redacted else EARLIER_VERSION.reason if len(both) < len(later) else ""
    return Differences(tuple(name for name in different if name not in redacted), reason)


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are the same; Python says ``1 == True``."""
    if json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True):
        return True
    try:
        return rfc8785.dumps(one) == rfc8785.dumps(other)
    except rfc8785.CanonicalizationError:  # The log has no such value.
        return False


def _may_have_been(one: Any, other: Any) -> bool:
    """Return whether two values may have been the same before an erasure replaced parts of their texts."""
    if PLACEHOLDER in (one, other):
        return True
    if isinstance(one, str) and isinstance(other, str):
        return _fits(one, other) or _fits(other, one)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_may_have_been(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_may_have_been, one, other))
    return _is_same(one, other)


def _fits(redacted: str, text: str) -> bool:
    pattern = ".+".join(map(re.escape, redacted.split(PLACEHOLDER)))
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def _excused(found: Differences, seq: int, later_seq: int, uncounted: Sequence[int]) -> Differences:
    """Take back a difference that an uncounted change between two entries may explain; 0: now."""
    after = bisect_right(uncounted, seq)
    may_explain = after < len(uncounted) and (not later_seq or uncounted[after] < later_seq)
    return Differences(not_comparable=EARLIER_VERSION.reason) if found.fields and may_explain else found


def _fault(seq: int, earlier: State, later_seq: int, later: State, fields: tuple[str, ...]) -> str:
    since = f"entry {seq}" if seq else "its beginning"
    when = f"between {since} and entry {later_seq}" if later_seq else f"after {since}"
    if earlier is None:
        return f"created behind the log {when}"
    if later is None:
        return f"deleted behind the log {when}"
    return f"changed behind the log {when}: {', '.join(fields)}"
