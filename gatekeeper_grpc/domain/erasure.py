"""Export and erasure of a person: their data, mentions of them, and the result of an erasure."""

import re
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from gatekeeper_grpc.domain.audit import DocumentedEntry
from gatekeeper_grpc.domain.user import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """The result of an erasure: what was removed, and how many audit documents were redacted."""

    targets_removed: int
    memberships_removed: int
    documents_redacted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StillNamed:
    """Resources that still contain a user id: keys of flags and segments, and ids of other users."""

    flag_keys: tuple[str, ...] = ()
    segment_keys: tuple[str, ...] = ()
    user_ids: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.flag_keys or self.segment_keys or self.user_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A person, and the random id that stands for them in the audit log."""

    subject_id: UUID
    user_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedUser:
    """The person behind a user id; `subject_id` None: nobody. `named_by`: keys of segments that name the id."""

    user_id: str
    subject_id: UUID | None = None
    user: User | None = None
    named_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedTarget:
    """A flag that targets the user."""

    flag_key: str
    variant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedMembership:
    """A segment that the user is a member of."""

    segment_key: str


ExportPart = ExportedUser | list[ExportedTarget] | list[ExportedMembership] | DocumentedEntry


class Mention:
    """Finds a user id in JSON values, as a whole word: the erasure of `ann` must not redact `annette`.

    Where the id starts or ends with a letter, digit or underscore, the text must not continue with another one.
    """

    def __init__(self, user_id: str) -> None:
        before = r"(?<!\w)" if re.match(r"\w", user_id) else ""
        after = r"(?!\w)" if re.search(r"\w\Z", user_id) else ""
        self._found_in = re.compile(before + re.escape(user_id) + after).search

    def is_in(self, value: Any) -> bool:
        """Return whether any text of a JSON value, including names of members, mentions the id."""
        if isinstance(value, str):
            return self._found_in(value) is not None
        if isinstance(value, dict):
            return any(self.is_in(name) or self.is_in(member) for name, member in value.items())
        return isinstance(value, list) and any(map(self.is_in, value))
