"""Export and erasure of a person: their data, mentions of them, and the result of an erasure."""

import re
from dataclasses import dataclass
from string import punctuation
from typing import Final
from uuid import UUID

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.audit import DocumentedEntry
from gatekeeper_grpc.domain.user import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """The result of an erasure: what was removed, and in how many audit documents something was replaced."""

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


PLACEHOLDER: Final = "[erased]"
"""Stands in a document of the audit log for what an erasure removed."""


class Mention:
    """Finds a user id in texts, as a whole word: the erasure of `ann` must not find `annette`.

    Where the id starts or ends with a letter, digit or underscore, the text must not continue with another one. An id
    without any of these must stand between spaces; if it is ordinary punctuation, or blank, it must be the whole text,
    because others write the same. Of a JSON value, every text is searched, at any depth; numbers and the names of
    members are not.
    """

    def __init__(self, user_id: str) -> None:
        whole_id = _as_whole_word(user_id)
        self._found_in = re.compile(whole_id).search
        # A placeholder is passed over: it may look like the id.
        self._replace_in = re.compile(f"{re.escape(PLACEHOLDER)}|{whole_id}").sub

    def is_in(self, value: JsonValue) -> bool:
        """Return whether any text of a JSON value mentions the id."""
        if isinstance(value, str):
            return self._found_in(value) is not None
        if isinstance(value, dict):
            return any(map(self.is_in, value.values()))
        return isinstance(value, list) and any(map(self.is_in, value))

    def replaced_in(self, value: JsonValue) -> JsonValue:
        """Return a JSON value with each mention replaced by `PLACEHOLDER`."""
        if isinstance(value, str):
            return self._replace_in(PLACEHOLDER, value)
        if isinstance(value, dict):
            return {name: self.replaced_in(member) for name, member in value.items()}
        return [self.replaced_in(item) for item in value] if isinstance(value, list) else value


def _as_whole_word(user_id: str) -> str:
    escaped = re.escape(user_id)
    if re.search(r"\w", user_id):
        before = r"(?<!\w)" if re.match(r"\w", user_id) else ""
        after = r"(?!\w)" if re.search(r"\w\Z", user_id) else ""
        return before + escaped + after
    if all(character.isspace() or character in punctuation for character in user_id):
        return rf"\A{escaped}\Z"
    return rf"(?<!\S){escaped}(?!\S)"
