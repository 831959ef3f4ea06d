"""A primary and its standby as the database of a fleet."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from gatekeeper_grpc.domain.caller import Role
from tests.faults.fleet import Fleet, Route, fleet
from tests.support.replication import Pair, running_pair
from tests.support.servers import access_token, token_for


class Replicated:
    """A pair as a fleet's database: there is no network to break, but there are servers."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        token_for(pair.primary.dsn, Role.ADMIN)

    def token(self) -> str:
        """Return an access token of its admin user."""
        return access_token(self._pair.primary.dsn, "admin")

    def route(self) -> AbstractContextManager[Route]:
        """Return the DSN that names both."""
        return nullcontext(Route(self._pair.dsn))


@contextmanager
def replicated(
    folder: Path, *, synchronous: bool, sabotage: str = "", settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Pair, Fleet]]:
    """Run a fleet on a pair for the length of the block."""
    with (
        running_pair(synchronous=synchronous) as pair,
        fleet(Replicated(pair), folder, sabotage=sabotage, settings=settings or {}) as instances,
    ):
        yield pair, instances
