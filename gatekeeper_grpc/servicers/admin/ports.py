"""What the AdminService needs of the rest of the house."""

from dataclasses import dataclass
from typing import Protocol

from gatekeeper_grpc.domain.commands import FlagFilter, FlagUpdate, TargetEdit, TargetEditResult
from gatekeeper_grpc.domain.flag import Flag, FlagConfig, Target
from gatekeeper_grpc.domain.mutation import Intent, Read, Written
from gatekeeper_grpc.wire.paging import PageTokens


class Flags(Protocol):
    """Keeps flags."""

    def create(self, config: FlagConfig, intent: Intent) -> Written[Flag]: ...
    def get(self, key: str) -> Read[Flag]: ...
    def list(self, wanted: FlagFilter) -> Read[list[Flag]]: ...
    def update(self, update: FlagUpdate, intent: Intent) -> Written[Flag]: ...
    def delete(self, key: str, etag: str, intent: Intent) -> Written[None]: ...


class Targets(Protocol):
    """Keeps individual targets."""

    def edit(self, edit: TargetEdit, intent: Intent) -> Written[TargetEditResult]: ...
    def list(self, flag_key: str, *, after: str, limit: int) -> Read[list[Target]]: ...
    def revision(self) -> int: ...


class Cache(Protocol):
    """Serves snapshots."""

    def refresh_after_write(self, revision: int) -> None:
        """Make a durable write visible on this instance; never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminPorts:
    """Everything the AdminService works with."""

    flags: Flags
    targets: Targets
    cache: Cache
    page_tokens: PageTokens
