"""The flag, its targets, and its document in the audit log and in stored snapshots."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.etag import etag
from gatekeeper_grpc.domain.limits import (
    MAX_DESCRIPTION_CHARS,
    MAX_OWNER_CHARS,
    MAX_SEGMENT_TARGETS,
    MAX_TAG_CHARS,
    MAX_TAGS,
    check_count,
    check_distinct,
    check_key,
    check_text,
    check_visible,
)

ON: Final = "on"
OFF: Final = "off"
# The variants of every flag. The database stores variant names, so flags with more variants need no other schema.
VARIANTS: Final = (OFF, ON)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTarget:
    """Targets the users of one segment."""

    segment_key: str
    variant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagConfig:
    """The fields of a flag that an editor decides.

    Raises:
        InvalidArgument: A field is invalid; names it as "flag.<name>".
    """

    key: str
    description: str = ""
    enabled: bool = False
    default_variant: str = OFF
    rollout_percentage: int = 0
    segment_targets: tuple[SegmentTarget, ...] = ()
    tags: tuple[str, ...] = ()
    owner: str = ""

    def __post_init__(self) -> None:
        check_key("flag.key", self.key)
        check_text("flag.description", self.description, at_most=MAX_DESCRIPTION_CHARS)
        if not 0 <= self.rollout_percentage <= 100:  # noqa: PLR2004 - per cent
            raise InvalidArgument.of("flag.rollout_percentage", f"must be 0 to 100, not {self.rollout_percentage}")
        self._check_segment_targets()
        check_count("flag.tags", self.tags, at_most=MAX_TAGS)
        for position, tag in enumerate(self.tags):
            check_text(f"flag.tags[{position}]", tag, at_least=1, at_most=MAX_TAG_CHARS)
        check_distinct("flag.tags", self.tags)
        check_text("flag.owner", self.owner, at_most=MAX_OWNER_CHARS)

    def check_new_names(self, *, before: "FlagConfig | None" = None) -> None:
        """Check the owner and the tags that the flag did not have before.

        Raises:
            InvalidArgument: One is not visible, see `check_visible`.
        """
        if before is None or self.owner != before.owner:
            check_visible("flag.owner", self.owner)
        for position, tag in enumerate(self.tags):
            if before is None or tag not in before.tags:
                check_visible(f"flag.tags[{position}]", tag)

    def _check_segment_targets(self) -> None:
        check_count("flag.segment_targets", self.segment_targets, at_most=MAX_SEGMENT_TARGETS)
        for position, target in enumerate(self.segment_targets):
            check_key(f"flag.segment_targets[{position}].segment_key", target.segment_key)
        check_distinct("flag.segment_targets", [target.segment_key for target in self.segment_targets])


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag at a revision, without its individual targets: there may be a million of them.

    `flag_id` is its identity: a flag that is created again under a deleted key is another flag. `revision` is the one
    that last changed it; edits of targets do not count. Times are aware, in UTC.
    """

    flag_id: int
    config: FlagConfig
    create_time: datetime
    update_time: datetime
    revision: int

    @property
    def key(self) -> str:
        """The flag's key."""
        return self.config.key

    @property
    def etag(self) -> str:
        """Opaque name of this state of this flag."""
        return etag("flag", self.flag_id, self.revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One individually targeted user of a flag."""

    subject_id: UUID
    user_id: str
    variant: str


def flag_document(flag: Flag) -> dict[str, Any]:
    """Return the flag as JSON values, for the audit log and stored snapshots; `flag_from_document` is the inverse."""
    return {
        **asdict(flag.config),
        "flag_id": flag.flag_id,
        "create_time": flag.create_time.isoformat(),
        "update_time": flag.update_time.isoformat(),
        "revision": flag.revision,
    }


def flag_from_document(document: Mapping[str, Any]) -> Flag:
    """Rebuild the flag of a document made by `flag_document`."""
    fields = dict(document)
    fields["segment_targets"] = tuple(SegmentTarget(**target) for target in fields["segment_targets"])
    fields["tags"] = tuple(fields["tags"])
    return Flag(
        flag_id=fields.pop("flag_id"),
        create_time=datetime.fromisoformat(fields.pop("create_time")),
        update_time=datetime.fromisoformat(fields.pop("update_time")),
        revision=fields.pop("revision"),
        config=FlagConfig(**fields),
    )
