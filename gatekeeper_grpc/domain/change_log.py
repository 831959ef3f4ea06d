"""The change log, as far as it tells which flags changed: what a revision touched, and which flags depend on that."""

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
    """What one revision touched; `subjects` are the people whose entries changed, where they were asked for."""

    revision: int
    resource_type: str
    change_type: str
    key: str
    subjects: Sequence[UUID] = ()


def flag_changes(
    log: Sequence[LoggedChange], snapshot: Snapshot, attributes_of: Callable[[LoggedChange], Iterable[str]]
) -> list[FlagChange]:
    """Return which flags changed by what the log tells, in its order; of updates of one flag only the last.

    A flag changes with itself and its targets, with the conditions and members of segments that it aims at, and with
    stored attributes that these conditions name. What it depended on before, but not in `snapshot`, needs no look: it
    changed itself in between.

    Args:
        log: What was touched up to the snapshot, in the order of revisions.
        snapshot: Tells what depends on what.
        attributes_of: The attributes, of those in the snapshot, that a change of a user may have touched.
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
    """Which flags of a snapshot depend on a segment or a stored attribute; looked at when first asked.

    Each is given once: walking back through the log, all flags that it touches are known to have changed later. A
    segment that thousands of flags aim at, and thousands of revisions touch, thus costs thousands and not millions.
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
