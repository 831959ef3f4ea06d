"""Derives changed flags from the change log: what a revision touched, and which flags depend on that."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from gatekeeper_grpc.domain.flag_change import FlagChange, without_covered
from gatekeeper_grpc.domain.mutation import ChangeType, ResourceType
from gatekeeper_grpc.domain.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedChange:
    """What one revision touched; `subjects` are the people whose entries changed, if they were loaded.

    `age_s` is how long ago it was committed, on the clock of the database, if that was asked for.
    """

    revision: int
    resource_type: str
    change_type: str
    key: str
    subjects: Sequence[UUID] = ()
    age_s: float = 0.0


def flag_changes(
    log: Sequence[LoggedChange], snapshot: Snapshot, attributes_of: Callable[[LoggedChange], Iterable[str]]
) -> list[FlagChange]:
    """Return the flags that changed, in the order of the log; of the updates of one flag only the last.

    A flag changes with itself and its targets, with the conditions and members of segments that it targets, and with
    stored attributes that these conditions name. Dependencies that it no longer has in `snapshot` do not matter: the
    flag itself changed when it lost them.

    Args:
        log: The changes up to the snapshot, in the order of revisions.
        snapshot: Defines the dependencies.
        attributes_of: Returns the attributes of the snapshot that a change of a user may have touched.
    """
    dependencies = _Dependencies(snapshot)

    def touched(change: LoggedChange) -> Iterable[str]:
        match change.resource_type:
            case ResourceType.FLAG | ResourceType.TARGETS:
                return (change.key,)
            case ResourceType.SEGMENT | ResourceType.MEMBERS:
                return dependencies.take_segment(change.key)
            case ResourceType.USER:
                return dependencies.take_attributes(attributes_of(change))
            case _:
                return ()

    latest_first = [
        FlagChange(change.revision, key, _type_of(change)) for change in reversed(log) for key in touched(change)
    ]
    return without_covered(latest_first[::-1])


def _type_of(change: LoggedChange) -> ChangeType:
    return ChangeType(change.change_type) if change.resource_type == ResourceType.FLAG else ChangeType.UPDATED


class _Dependencies:
    """The flags of a snapshot that depend on a segment or a stored attribute; computed at the first request.

    Each dependency is returned once: the log is read backwards, so all flags that it touches have changed later. A
    segment that thousands of flags target and thousands of revisions touch thus costs thousands of steps, not millions.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def take_segment(self, key: str) -> Sequence[str]:
        return self._flags_by_segment.pop(key, ())

    def take_attributes(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            for segment in self._segments_by_attribute.pop(name, ()):
                yield from self.take_segment(segment)

    @cached_property
    def _flags_by_segment(self) -> dict[str, list[str]]:
        flags: defaultdict[str, list[str]] = defaultdict(list)
        for key, flag in self._snapshot.flags.items():
            for target in flag.config.segment_targets:
                flags[target.segment_key].append(key)
        return flags

    @cached_property
    def _segments_by_attribute(self) -> dict[str, list[str]]:
        segments: defaultdict[str, list[str]] = defaultdict(list)
        for key, segment in self._snapshot.segments.items():
            for name in segment.attribute_names():
                segments[name].append(key)
        return segments
