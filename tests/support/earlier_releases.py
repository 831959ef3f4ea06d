"""What earlier releases accepted and a database may hold: made by this release, with a check switched off."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_MODULES_THAT_CHECK = ("domain.limits", "domain.flag", "domain.user", "wire.client_keys", "wire.segments", "wire.users")


@contextmanager
def accepting_any_name() -> Iterator[None]:
    """For the length of the block, servers of this process accept ids and names that cannot be seen."""
    with pytest.MonkeyPatch.context() as patch:
        for module in _MODULES_THAT_CHECK:
            patch.setattr(f"gatekeeper_grpc.{module}.check_visible", lambda _field, _text: None)
        yield


@contextmanager
def accepting_empty_text() -> Iterator[None]:
    """For the length of the block, servers of this process accept CONTAINS, STARTS_WITH and ENDS_WITH of nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatekeeper_grpc.wire.segments.check_not_for_everybody", lambda _operator, _values: None)
        yield
