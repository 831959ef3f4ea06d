"""WatchFlags over the wire: what is told when, what is refused, and how a watcher goes on elsewhere."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.evaluation_service_pb2 import WatchFlagsResponse
from gatekeeper.v1.flag_pb2 import Flag
from tests.conftest import StartServer, connect
from tests.rpc.asking import (
    TIMEOUT_S,
    Installation,
    Refusal,
    created,
    installed,
    invalid,
    new_key,
    refusal_of,
)
from tests.rpc.test_plumbing_overload import eventually
from tests.rpc.watching import CREATED, DELETED, UPDATED, first_message, watching

_numbers = count()


@pytest.fixture(scope="module")
def house(postgres: str) -> Iterator[Installation]:
    """An installation that tests share; each has flags of its own."""
    with installed(postgres) as installation:
        yield installation


def anybody(house: Installation) -> grpc.Channel:
    return house.channels[None]


def new_flag(house: Installation, **fields: Any) -> str:
    return created(house.admin, **{"enabled": True, **fields}).key


def update(house: Installation, key: str, **fields: Any) -> int:
    request = pb.UpdateFlagRequest(flag=Flag(key=key, **fields), update_mask=FieldMask(paths=list(fields)))
    return house.admin.UpdateFlag(request, timeout=TIMEOUT_S).revision


def delete(house: Installation, key: str) -> int:
    return house.admin.DeleteFlag(pb.DeleteFlagRequest(key=key), timeout=TIMEOUT_S).revision


# --- What is told ----------------------------------------------------------------------------------------------------


def test_the_first_message_says_at_once_where_the_stream_begins(house: Installation) -> None:
    new_flag(house)

    assert first_message(anybody(house)) == WatchFlagsResponse(revision=house.revision())


def test_a_flag_that_comes_changes_and_goes_is_told_each_time_in_order(house: Installation) -> None:
    with watching(anybody(house)) as watch:
        before = watch.read().revision
        key = new_flag(house)
        told = [watch.read_changes()]
        update(house, key, rollout_percentage=50)
        told.append(watch.read_changes())
        last = delete(house, key)
        message = watch.read()

    assert told == [{key: CREATED}, {key: UPDATED}]
    assert (message.revision, message.changes[0].flag_key, message.reset) == (last, key, False)
    assert last == before + 3


def test_whoever_comes_back_is_told_all_that_changed_since_each_flag_once(house: Installation) -> None:
    known = house.revision()
    kept, gone, again = (new_flag(house) for _ in range(3))
    update(house, kept, enabled=False)
    delete(house, gone)
    since_again = delete(house, again)
    created(house.admin, key=again)

    with watching(anybody(house), from_revision=known) as watch:
        assert watch.read_until(house.revision()) == {kept: CREATED, gone: DELETED, again: UPDATED}
    with watching(anybody(house), from_revision=since_again) as watch:
        assert watch.read_until(house.revision()) == {again: CREATED}
    assert first_message(anybody(house), from_revision=house.revision()) == WatchFlagsResponse(
        revision=house.revision()
    )


def test_a_watcher_of_some_flags_hears_of_no_other_and_may_wait_for_one_that_is_not_there_yet(
    house: Installation,
) -> None:
    key = new_key()
    with watching(anybody(house), key) as watch:
        watch.read()
        new_flag(house)
        created(house.admin, key=key)
        assert watch.read_changes() == {key: CREATED}


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag_keys", "from_revision", "field"),
    [
        pytest.param((), -1, "from_revision", id="a negative revision"),
        pytest.param(("a", "b", "a"), 0, "flag_keys[2]", id="a flag twice"),
        pytest.param(("a", "no spaces"), 0, "flag_keys[1]", id="a malformed key"),
        pytest.param([f"flag-{n}" for n in range(1_001)], 0, "flag_keys", id="too many flags"),
    ],
)
def test_a_bad_request_is_refused_and_its_field_named(
    flag_keys: tuple[str, ...], from_revision: int, field: str, house: Installation
) -> None:
    refusal = refusal_of(lambda: first_message(anybody(house), *flag_keys, from_revision=from_revision))

    assert refusal == invalid(field)


def test_a_revision_that_does_not_exist_yet_is_refused(house: Installation) -> None:
    newest = house.revision()

    refusal = refusal_of(lambda: first_message(anybody(house), from_revision=newest + 1))

    metadata = {"from_revision": str(newest + 1), "revision": str(newest)}
    assert refusal == Refusal(grpc.StatusCode.FAILED_PRECONDITION, "REVISION_NOT_REACHED", metadata)


def test_one_watcher_more_than_the_instance_may_have_is_refused_until_one_leaves(start_server: StartServer) -> None:
    server = start_server(max_watchers=2)
    with connect(server) as channel, watching(channel) as staying:
        staying.read()
        with watching(channel) as leaving:
            leaving.read()
            refusal = refusal_of(lambda: first_message(channel))
        assert eventually(lambda: len(server.watchers) < 2)
        assert first_message(channel).revision == 0

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
