"""The segment: a group of users, by conditions on their attributes and by membership (members are kept elsewhere)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from gatekeeper_grpc.domain.attribute import Attributes
from gatekeeper_grpc.domain.attribute_memo import AttributeMemo
from gatekeeper_grpc.domain.condition import (
    MAX_VALUES,
    SCANNING_OPERATORS,
    Condition,
    condition_document,
    condition_from_document,
)
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.etag import etag
from gatekeeper_grpc.domain.limits import MAX_DESCRIPTION_CHARS, check_count, check_key, check_text
from gatekeeper_grpc.domain.text_search import TextSearch

MAX_CONDITIONS = 64


class Match(Enum):
    """How many conditions of a segment a user has to match."""

    ALL = "ALL"
    ANY = "ANY"


# Python 3.11 takes longer to look an enum member up (140 ns) than to test a condition.
_ANY = Match.ANY


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig:
    """The fields of a segment that an editor decides: at most 64 conditions, with at most 1,000 values in all.

    Raises:
        InvalidArgument: A field is invalid; names it as "segment.<name>".
    """

    key: str
    description: str = ""
    match: Match = Match.ALL
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        check_key("segment.key", self.key)
        check_text("segment.description", self.description, at_most=MAX_DESCRIPTION_CHARS)
        check_count("segment.conditions", self.conditions, at_most=MAX_CONDITIONS)
        value_count = sum(len(condition.values) for condition in self.conditions)
        if value_count > MAX_VALUES:
            raise InvalidArgument.of(
                "segment.conditions", f"must have at most {MAX_VALUES} values in all, not {value_count}"
            )

    def attribute_names(self) -> frozenset[str]:
        """Return the top-level attributes that the conditions test: all that a snapshot needs of a stored user."""
        return frozenset(condition.attribute_name for condition in self.conditions)

    def sought_texts(self) -> frozenset[str]:
        """Return the texts that CONTAINS conditions look for."""
        return frozenset[str]().union(*(condition.sought_texts for condition in self.conditions))

    def scanned_value_count(self) -> int:
        """Return how many values evaluation tries one by one; the contract allows 1,000 over all segments."""
        return sum(len(condition.values) for condition in self.conditions if condition.operator in SCANNING_OPERATORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment at a revision, without its members: there may be a million of them.

    `segment_id` is its identity: a segment that is created again under a deleted key is another segment. `revision` is
    the one that last changed it; edits of members do not count. Times are aware, in UTC.
    """

    segment_id: int
    config: SegmentConfig
    create_time: datetime
    update_time: datetime
    revision: int

    @property
    def key(self) -> str:
        """The segment's key."""
        return self.config.key

    @property
    def etag(self) -> str:
        """Opaque name of this state of this segment."""
        return etag("segment", self.segment_id, self.revision)

    def attribute_names(self) -> frozenset[str]:
        """Return the top-level attributes that the conditions test."""
        return self.config.attribute_names()

    def conditions_match(self, attributes: Attributes, memo: AttributeMemo | None = None) -> bool:
        """Return whether a user with these attributes matches; without conditions, nobody does. Never raises.

        Segments that test one user share a `memo`, which then must search for the `sought_texts` of all of them.
        """
        config = self.config
        memo = memo or AttributeMemo(TextSearch(config.sought_texts()))
        # One miss settles ALL, one hit settles ANY. A loop, because a generator for all() costs as much as a condition.
        settling = config.match is _ANY
        for condition in config.conditions:
            if condition.matches(attributes, memo) is settling:
                return settling
        return bool(config.conditions) and not settling


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedSegment:
    """A segment and the number of its members, both at one revision."""

    segment: Segment
    member_count: int


def segment_document(segment: Segment) -> dict[str, Any]:
    """Return the segment as JSON values, for the audit log and stored snapshots; see `segment_from_document`."""
    config = segment.config
    return {
        "key": config.key,
        "description": config.description,
        "match": config.match.value,
        "conditions": [condition_document(condition) for condition in config.conditions],
        "segment_id": segment.segment_id,
        "create_time": segment.create_time.isoformat(),
        "update_time": segment.update_time.isoformat(),
        "revision": segment.revision,
    }


def segment_from_document(document: Mapping[str, Any]) -> Segment:
    """Rebuild the segment of a document made by `segment_document`."""
    return Segment(
        segment_id=document["segment_id"],
        create_time=datetime.fromisoformat(document["create_time"]),
        update_time=datetime.fromisoformat(document["update_time"]),
        revision=document["revision"],
        config=SegmentConfig(
            key=document["key"],
            description=document["description"],
            match=Match(document["match"]),
            conditions=tuple(condition_from_document(condition) for condition in document["conditions"]),
        ),
    )


@contextmanager
def violations_under(path: str) -> Iterator[None]:
    """Prefix the field of an `InvalidArgument` raised inside with `path`, such as "segment.conditions[3]"."""
    try:
        yield
    except InvalidArgument as error:
        violation = error.violations[0]
        raise InvalidArgument.of(f"{path}.{violation.field}", violation.description) from error
