"""What admin callers ask for: commands that `wire` makes and the store carries out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagUpdate:
    """Changes some fields of a flag's `FlagConfig`; `etag` empty: whatever state the flag is in."""

    key: str
    changes: Mapping[str, Any]
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagFilter:
    """Which flags to list: the first `limit` by key, after `after`, that pass every filter given."""

    limit: int
    after: str = ""
    key_prefix: str = ""
    tags: tuple[str, ...] = ()
    owner: str = ""
    enabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEdit:
    """Targets users of a flag with `variant`, or stops targeting them when it is None."""

    flag_key: str
    user_ids: tuple[str, ...]
    variant: str | None
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEditResult:
    """How many users were not targeted before, had another variant, are targeted no more."""

    added_count: int = 0
    moved_count: int = 0
    removed_count: int = 0
