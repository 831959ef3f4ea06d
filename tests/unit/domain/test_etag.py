"""The etag: names one state of one resource, and refuses a change that was made to another state."""

import pytest

from gatekeeper_grpc.domain.errors import Changed
from gatekeeper_grpc.domain.etag import check_etag, etag

CURRENT = etag("flag", 1, 7)


@pytest.mark.parametrize("seen", ["", CURRENT], ids=["none", "the current one"])
def test_no_etag_and_the_current_one_are_accepted(seen: str) -> None:
    check_etag("flag 'a'", seen, current=CURRENT)


@pytest.mark.parametrize("seen", [etag("flag", 1, 6), "x", "\0", "é" * 100, 'W/"1"', f"{CURRENT} ", CURRENT.lower()])
def test_every_other_etag_is_stale_and_the_current_one_is_named(seen: str) -> None:
    with pytest.raises(Changed) as refused:
        check_etag("flag 'a'", seen, current=CURRENT)

    assert refused.value.metadata == {"current_etag": CURRENT}
