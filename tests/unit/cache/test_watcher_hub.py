"""The watcher hub, with streams that take messages when a test lets them: no watcher waits for another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gatekeeper_grpc.cache import watcher_hub
from gatekeeper_grpc.cache.change_history import ChangeHistory
from gatekeeper_grpc.cache.watcher_hub import WatcherHub
from gatekeeper_grpc.domain.errors import ResourceExhausted, Unavailable
from gatekeeper_grpc.domain.flag_change import FlagChange, FlagChanges
from gatekeeper_grpc.domain.mutation import ChangeType
from gatekeeper_grpc.domain.snapshot import Snapshot

pytestmark = pytest.mark.promise("C5")

C, U, D = ChangeType.CREATED, ChangeType.UPDATED, ChangeType.DELETED
HEARTBEAT_S = 15.0
GIVE_UP_AFTER_S = 60.0
RESET = None
Message = tuple[int, Mapping[str, ChangeType] | None]
encoded: dict[bytes, Message] = {}
_numbers = count()


def encode(revision: int, changes: Mapping[str, ChangeType] | None) -> bytes:
    """Stand in for protobuf: bytes that a test can read again."""
    message = str(next(_numbers)).encode()
    encoded[message] = (revision, changes)
    return message


@dataclass
class Client:
    """The client's end of a stream."""

    is_reading: bool = True
    told: list[Message] = field(default_factory=list)
    ended: list[object] = field(default_factory=list)
    unread: list[Callable[[], None]] = field(default_factory=list)

    def send(self, message: bytes, sent: Callable[[], None]) -> bool:
        assert not self.unread, "one message at a time"
        if self.ended:
            return False
        self.told.append(encoded[message])
        if self.is_reading:
            sent()
        else:
            self.unread.append(sent)
        return True

    def read_again(self) -> None:
        self.is_reading = True
        self.unread.pop()()

    def end(self, error: Exception) -> None:
        self.ended.append(type(error))

    def cancel(self) -> None:
        self.ended.append("cancelled")

    def take(self) -> list[Message]:
        """Return the messages since the last call."""
        told, self.told = self.told, []
        return told


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, _seconds: float) -> None:
        pass


class House:
    """A hub without its thread: a test runs its rounds."""

    def __init__(self, **options: Any) -> None:
        self.hub = WatcherHub(ChangeHistory(), encode, **{"capacity": 100, **options})
        self.revision = 0
        self.serve(Snapshot.build(revision=0, changes=FlagChanges(since=0)))

    def serve(self, snapshot: Snapshot) -> None:
        self.revision = snapshot.revision
        self.hub.published(snapshot)

    def change(self, *changes: tuple[str, ChangeType]) -> int:
        """Serve one revision later; returns it."""
        since, revision = self.revision, self.revision + 1
        told = tuple(FlagChange(revision, key, change) for key, change in changes)
        self.serve(Snapshot.build(revision=revision, changes=FlagChanges(since=since, changes=told)))
        return revision

    def open(self, *flag_keys: str, from_revision: int = 0, reading: bool = True) -> Client:
        client = Client(is_reading=reading)
        self.hub.open(client, from_revision=from_revision, flag_keys=frozenset(flag_keys))
        self.hub._run()
        return client


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watcher_hub, "time", clock)
    return clock


@pytest.fixture
def house(clock: Clock) -> House:
    return House()


def test_the_first_message_says_where_the_stream_begins(house: House) -> None:
    house.change(("a", C))

    assert house.open().take() == [(1, {})]
    assert house.open(from_revision=1).take() == [(1, {})]


def test_who_comes_back_is_told_first_what_was_missed(house: House) -> None:
    house.change(("a", C))
    house.change(("b", C))
    house.change(("a", D))

    assert house.open(from_revision=1).take() == [(3, {"b": C, "a": D})]


def test_each_change_is_told_to_everybody_who_is_free(house: House) -> None:
    clients = [house.open() for _ in range(100)]
    for client in clients:
        client.take()
    house.change(("a", C))
    house.hub._run()

    assert [client.take() for client in clients] == [[(1, {"a": C})]] * 100


def test_a_watcher_that_reads_again_gets_one_message_for_all(house: House) -> None:
    slow, brisk = house.open(reading=False), house.open()
    slow.take()
    brisk.take()
    for changes in ([("a", C)], [("b", U)], [("a", D)]):
        house.change(*changes)
        house.hub._run()
    assert slow.take() == []
    slow.read_again()
    house.hub._run()

    assert brisk.take() == [(1, {"a": C}), (2, {"b": U}), (3, {"a": D})]
    assert slow.take() == [(3, {"a": D, "b": U})]


def test_a_watcher_that_has_read_everything_is_sent_nothing_more(house: House) -> None:
    client = house.open()
    house.change(("a", C))
    for _ in range(3):
        house.hub._run()

    assert client.take() == [(0, {}), (1, {"a": C})]


def test_a_watcher_of_some_flags_is_told_of_these_only(house: House) -> None:
    client = house.open("a", "later")
    house.change(("b", C))
    house.hub._run()
    house.change(("a", C), ("b", U))
    house.hub._run()
    house.change(("later", C))
    house.hub._run()

    assert client.take() == [(0, {}), (2, {"a": C}), (3, {"later": C})]


def test_revisions_without_watched_changes_come_with_the_heartbeat(house: House, clock: Clock) -> None:
    all_flags, some = house.open(), house.open("a")
    house.change()
    house.change(("b", C))
    house.hub._run()
    clock.now += HEARTBEAT_S
    house.hub._run()

    assert some.take() == [(0, {}), (2, {})]
    assert all_flags.take() == [(0, {}), (2, {"b": C}), (2, {})]


def test_heartbeats_come_to_those_who_heard_nothing_else(house: House, clock: Clock) -> None:
    client = house.open()
    clock.now += HEARTBEAT_S - 1
    house.change(("a", C))
    house.hub._run()
    clock.now += HEARTBEAT_S - 1
    house.hub._run()
    assert client.take() == [(0, {}), (1, {"a": C})]
    clock.now += 1
    house.hub._run()

    assert client.take() == [(1, {})]


def test_heartbeats_come_while_flags_change_all_the_time(
    house: House, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, idle = [house.open() for _ in range(20)], house.open("nobody's")
    rests = count(1)

    def rest(_seconds: float) -> None:
        clock.now += 1
        if next(rests) <= 3 * HEARTBEAT_S:
            house.change(("a", U))

    monkeypatch.setattr(clock, "sleep", rest)
    house.change(("a", C))
    house.hub._run()

    assert len(idle.take()) >= 3
    assert busy[0].told[-1] == busy[-1].told[-1] == (house.revision, {"a": U})


def test_a_gap_resets_the_watchers_before_it(house: House) -> None:
    client, some, unread = house.open(), house.open("a"), house.open(reading=False)
    for each in (client, some, unread):
        each.take()
    house.serve(Snapshot.build(revision=50))
    house.hub._run()
    unread.read_again()
    house.hub._run()

    assert [client.take(), some.take(), unread.take()] == [[(50, RESET)]] * 3
    assert house.open(from_revision=49).take() == [(50, RESET)]
    assert house.open(from_revision=50).take() == [(50, {})]


def test_another_installation_resets_everybody(house: House) -> None:
    house.serve(Snapshot.build(revision=50))
    client = house.open()
    house.serve(Snapshot.build(revision=7, installation_id=UUID(int=1), changes=FlagChanges(since=0)))
    house.hub._run()

    assert client.take() == [(50, {}), (7, RESET)]


def test_too_many_changes_are_a_reset_except_for_watchers_of_few(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_hub, "_MAX_CHANGES", 2)
    client, some = house.open(), house.open("a")
    house.change(("a", C), ("b", C), ("c", C))
    house.hub._run()

    assert client.take() == [(0, {}), (1, RESET)]
    assert some.take() == [(0, {}), (1, {"a": C})]


def test_a_watcher_that_does_not_read_for_long_is_cancelled_and_forgotten(house: House, clock: Clock) -> None:
    slow, brisk = house.open(reading=False), house.open()
    clock.now += GIVE_UP_AFTER_S - 1
    house.hub._run()
    assert slow.ended == []
    clock.now += 1
    with capture_logs() as logs:
        house.hub._run()

    assert (slow.ended, brisk.ended) == (["cancelled"], [])
    assert logs == [{"event": "watchers_too_slow", "log_level": "info", "count": 1}]
    assert [watcher.stream for watcher in house.hub._watchers] == [brisk]


def test_a_watcher_that_leaves_is_forgotten_whatever_it_had_coming(house: House) -> None:
    client = Client(is_reading=False)
    watcher = house.hub.open(client, from_revision=0, flag_keys=frozenset())
    house.hub._run()
    house.change(("a", C))
    house.hub.leave(watcher)
    client.unread.pop()()
    house.hub._run()

    assert client.take() == [(0, {})]
    assert (len(house.hub), [*house.hub._watchers], [*house.hub._due]) == (0, [], [])


def test_a_watcher_whose_call_is_over_is_sent_nothing(house: House) -> None:
    client = house.open()
    client.end(Unavailable("gone"))
    house.change(("a", C))
    house.hub._run()

    assert client.take() == [(0, {})]
    assert [*house.hub._watchers] == []


def test_one_watcher_too_many_is_refused_until_another_leaves() -> None:
    house = House(capacity=2)
    watchers = [house.hub.open(Client(), from_revision=0, flag_keys=frozenset()) for _ in range(2)]
    with pytest.raises(ResourceExhausted):
        house.open()
    house.hub.leave(watchers[0])

    assert house.open().take() == [(0, {})]


def test_closing_ends_all_streams_and_cancels_the_slow_ones(house: House, clock: Clock) -> None:
    idle, behind = house.open(), house.open(reading=False)
    clock.now += 2
    late = Client()
    house.hub.start()
    house.hub.open(late, from_revision=0, flag_keys=frozenset())
    just_told = Client(is_reading=False)
    house.hub.open(just_told, from_revision=0, flag_keys=frozenset())
    house.hub.close()

    assert [client.ended for client in (idle, late, just_told)] == [[Unavailable]] * 3
    assert behind.ended == ["cancelled"]
    with pytest.raises(Unavailable):
        house.open()


def test_many_watchers_are_served_in_slices_and_a_new_one_first(
    house: House, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [house.open() for _ in range(90)]
    for client in clients:
        client.take()
    newcomer = Client()
    told_before: list[int] = []

    def rest(_seconds: float) -> None:
        if not told_before:
            told_before.append(sum(bool(client.told) for client in clients))
            house.hub.open(newcomer, from_revision=0, flag_keys=frozenset())
        elif newcomer.told and len(told_before) == 1:
            told_before.append(sum(bool(client.told) for client in clients))

    monkeypatch.setattr(clock, "sleep", rest)
    house.change(("a", C))
    house.hub._run()

    assert told_before[0] == watcher_hub._SLICE
    assert told_before[1] < 2 * watcher_hub._SLICE
    assert all(client.told for client in clients)


# --- For whatever happens --------------------------------------------------------------------------------------------


def replayed(known: set[str], messages: list[Message], served: set[str]) -> set[str]:
    """Keep a set of flag keys by messages, as a client does; after a reset it asks for all flags."""
    for _, changes in messages:
        if changes is None:
            known = set(served)
        else:
            known = (known | changes.keys()) - {key for key, change in changes.items() if change is D}
    return known


class Story:
    """An instance whose flags come and go, and a client that reads when it likes, or is away."""

    def __init__(self) -> None:
        self.house = House()
        self.flags: set[str] = set()
        self.known: set[str] = set()
        self.client = self.house.open()
        self.last_told = 0

    def flip(self, key: str) -> None:
        change = U if key in self.flags and len(self.flags) % 2 else D if key in self.flags else C
        self.flags = self.flags - {key} if change is D else self.flags | {key}
        self.house.change((key, change))

    def lose_track(self, key: str) -> None:
        self.flags ^= {key}
        self.house.serve(Snapshot.build(revision=self.house.revision + 5))

    def read(self) -> None:
        messages = self.client.take()
        revisions = [revision for revision, _ in messages]
        assert revisions == sorted(revisions)
        self.last_told = max([self.last_told, *revisions])
        self.known = replayed(self.known, messages, self.flags)

    def stall(self, _key: str) -> None:
        self.client.is_reading = False

    def go_on(self, _key: str) -> None:
        self.client.is_reading = True
        if self.client.unread:
            self.client.read_again()
        self.house.hub._run()
        self.read()

    def come_back(self, _key: str) -> None:
        self.read()
        if not self.last_told:  # It knows nothing yet, so it asks for all flags.
            self.known = set(self.flags)
        self.client = self.house.open(from_revision=self.last_told)

    def round(self, _key: str) -> None:
        self.house.hub._run()


EVENTS = ["flip", "flip", "flip", "lose_track", "stall", "go_on", "come_back", "round"]
events = st.lists(st.tuples(st.sampled_from(EVENTS), st.sampled_from("abc")), max_size=40)


@given(events=events)
def test_a_client_that_follows_the_messages_ends_with_the_served_flags(
    events: list[tuple[str, str]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watcher_hub, "time", Clock())
        story = Story()
        for name, key in events:
            if name == "flip":
                story.flip(key)
            else:
                getattr(story, name)(key)
        for _ in range(2):
            story.go_on("")

    assert story.known == story.flags


def test_without_watchers_the_hub_sleeps_until_something_happens(house: House) -> None:
    assert house.hub._pause_s() is None


def test_the_hub_sleeps_until_a_heartbeat_can_be_due(house: House, clock: Clock) -> None:
    house.open()
    at_first = house.hub._pause_s()
    clock.now += 10.0

    assert (at_first, house.hub._pause_s()) == (15.0, 5.0)


def test_a_watcher_that_does_not_read_is_checked_every_second(house: House, clock: Clock) -> None:
    house.open(reading=False)
    clock.now += 20.0
    house.hub._run()

    assert house.hub._pause_s() == 1.0
