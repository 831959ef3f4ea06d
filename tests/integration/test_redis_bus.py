"""A real Redis announces and stores; it is killed, hangs, loses data and fails over; no call waits for it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Self
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.cache.last_known_good import newest_stored
from gatekeeper_grpc.cache.snapshot_format import SnapshotHeader, SnapshotRefused, decode, encode
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.redis_bus import announcements as announcements_module
from gatekeeper_grpc.redis_bus import bus as bus_module
from gatekeeper_grpc.redis_bus import link as link_module
from gatekeeper_grpc.redis_bus.address import RedisAddress
from gatekeeper_grpc.redis_bus.announcements import RedisAnnouncements
from gatekeeper_grpc.redis_bus.bus import RedisBus
from gatekeeper_grpc.redis_bus.link import RedisLink
from gatekeeper_grpc.redis_bus.snapshot_storage import RedisSnapshotStorage
from tests.support.flags import flag
from tests.support.servers import KEYS
from tests.support.tls import self_signed, terminated
from tests.support.valkey import Valkey, valkey, watched_pair

pytestmark = pytest.mark.promise("B3")

TIMEOUT_S = 60.0
INSTALLATION = KEYS.data.fingerprints


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def server(running: Valkey) -> Iterator[Valkey]:
    """An empty server for this test, which runs again after it."""
    with running.client() as client:
        client.flushall()
    yield running
    if not running.answers():
        running.start_again()


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_REST_S", 0.1)
    monkeypatch.setattr(bus_module, "_SNAPSHOT_TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr(announcements_module, "_HEARTBEAT_EVERY_S", 0.1)


@contextmanager
def bus(url: str, installation: tuple[str, ...] = INSTALLATION) -> Iterator[RedisBus]:
    bus = RedisBus(url, installation)
    bus.start()
    try:
        yield bus
    finally:
        bus.close()


class Listener:
    """Listens in a thread as the refresher does: again, a moment after it has failed."""

    def __init__(self, source: RedisAnnouncements) -> None:
        self.heard: SimpleQueue[int] = SimpleQueue()
        self.subscribed = threading.Semaphore(0)
        self._source = source
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.subscribed.acquire(timeout=TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT_S)

    def hears(self, revision: int, announce: Callable[[int], None]) -> bool:
        """Announce a revision until it is received; return whether it was within 10 s."""
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            announce(revision)
            try:
                if self.heard.get(timeout=0.2) == revision:
                    return True
            except Empty:
                continue
        return False

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._source.listening() as wait:
                    self.subscribed.release()
                    while not self._stopping.is_set():
                        for revision in wait(0.05):
                            self.heard.put(revision)
            except Unavailable:
                self._stopping.wait(0.02)


def kept(revision: int = 7, *, flags: int = 3, keys: DataKeys = KEYS.data) -> bytes:
    snapshot = Snapshot.build(
        installation_id=UUID(int=1),
        revision=revision,
        flags=[flag(f"flag-{number}", flag_id=number) for number in range(flags)],
    )
    return b"".join(encode(snapshot, SnapshotHeader.of(snapshot, confirmed_time=datetime.now(UTC)), keys))


def put(storage: RedisSnapshotStorage, content: bytes) -> None:
    with storage.locked() as is_ours:
        assert is_ours
        storage.write([content])


# --- announcements ----------------------------------------------------------------------------------------------------


def test_what_one_instance_announces_the_others_hear(server: Valkey) -> None:
    with bus(server.url) as one, bus(server.url) as other, Listener(other.announcements) as listener:
        one.announce(7)

        assert listener.heard.get(timeout=TIMEOUT_S) == 7


def test_two_installations_on_one_redis_do_not_hear_each_other(server: Valkey) -> None:
    with bus(server.url, ("elsewhere",)) as other, bus(server.url) as ours, Listener(ours.announcements) as listener:
        other.announce(99)
        assert listener.hears(7, ours.announce)
        assert listener.heard.empty()


def test_during_a_key_rotation_instances_hear_each_other(server: Valkey) -> None:
    with bus(server.url, ("new", "old")) as one, bus(server.url, ("old", "new")) as other:
        with Listener(other.announcements) as listener:
            one.announce(7)
            assert listener.heard.get(timeout=TIMEOUT_S) == 7
        with Listener(one.announcements) as listener:
            other.announce(8)
            assert listener.heard.get(timeout=TIMEOUT_S) == 8


def test_after_a_key_rotation_running_and_new_instances_share_limits(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RedisLink.__init__.__kwdefaults__
    monkeypatch.setitem(RedisLink.__init__.__kwdefaults__, "timeout_s", TIMEOUT_S)
    once = Rate.parse("1/min burst 1")
    with bus(server.url, ("old", "new")) as running, bus(server.url, ("new", "old")) as started:
        running.use_names(("new", "old"))
        budgets = running.budgets, started.budgets

        assert [each.take("logins", "anna", once).wait_s > 0 for each in budgets] == [False, True]
        assert [each.add("evaluations", {"anna": 3}) for each in budgets] == [{"anna": 3}, {"anna": 6}]


def test_after_redis_was_killed_the_subscription_starts_again(server: Valkey) -> None:
    with capture_logs() as logs, bus(server.url) as ours, Listener(ours.announcements) as listener:
        server.kill()
        time.sleep(0.3)
        server.start_again()

        assert listener.subscribed.acquire(timeout=TIMEOUT_S)
        assert listener.hears(7, ours.announce)
    assert [log["event"] for log in logs] == ["redis_away", "redis_back"]


def test_a_redis_that_hangs_is_noticed_by_the_beat_and_subscribed_again(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements_module, "_DELIVERED_WITHIN_S", 0.2)
    with capture_logs() as logs, bus(server.url) as ours, Listener(ours.announcements) as listener:
        with server.hanging():
            assert _eventually(lambda: any(log["event"] == "redis_away" for log in logs))
        assert listener.subscribed.acquire(timeout=TIMEOUT_S)
        assert listener.hears(7, ours.announce)
    assert [log["event"] for log in logs] == ["redis_away", "redis_back"]


def deaf_subscription_ends(server: Valkey) -> bool:
    """Drop all publications without an error; return whether the listener subscribes again."""
    with bus(server.url) as ours, Listener(ours.announcements) as listener, server.client() as client:
        (connection,) = client.client_list(_type="pubsub")
        with _forwarding_nothing(ours):
            assert connection["sub"] != "0"
            return listener.subscribed.acquire(timeout=2.0)


@contextmanager
def _forwarding_nothing(bus: RedisBus) -> Iterator[None]:
    """Swallow what is published, as a partitioned old primary would."""
    ask = bus._link.ask
    bus._link.ask = lambda question: 0  # type: ignore[method-assign,assignment,return-value]  # noqa: ARG005
    try:
        yield
    finally:
        bus._link.ask = ask  # type: ignore[method-assign]


def test_a_subscription_on_which_nothing_is_heard_is_given_up(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements_module, "_DELIVERED_WITHIN_S", 0.2)

    assert deaf_subscription_ends(server)


def test_twin_without_the_beat_nobody_notices(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements_module, "_HEARTBEAT_EVERY_S", 3_600.0)

    assert not deaf_subscription_ends(server)


def test_what_others_publish_there_is_no_revision(server: Valkey) -> None:
    with bus(server.url) as ours, Listener(ours.announcements) as listener, server.client() as client:
        for noise in (b"", b"x", b"-1", b"\xff", b"1e9"):
            client.publish(ours.announcements._channels[0], noise)

        assert [listener.heard.get(timeout=TIMEOUT_S) for _ in range(5)] == [0] * 5


# --- the breaker ------------------------------------------------------------------------------------------------------


def asked_while_away(link: RedisLink, times: int) -> float:
    """Ask a Redis that is away many times; returns how long that took."""
    began = time.monotonic()
    for _ in range(times):
        with pytest.raises(Unavailable):
            link.ask(lambda client: client.ping())
    return time.monotonic() - began


def test_a_redis_that_hangs_costs_one_timeout_and_then_nothing_for_a_while(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_REST_S", 3_600.0)
    link = RedisLink(RedisAddress(server.url))
    link.ask(lambda client: client.ping())
    with server.hanging():
        took_s = asked_while_away(link, 200)
    link.close()

    assert took_s < 200 * 0.05 / 4


def test_twin_without_the_breaker_everybody_waits(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedisLink, "_pass_or_refuse", lambda _: None)
    link = RedisLink(RedisAddress(server.url))
    link.ask(lambda client: client.ping())
    with server.hanging():
        took_s = asked_while_away(link, 20)
    link.close()

    assert took_s > 20 * 0.05 * 0.9


def test_announcing_waits_for_nothing_even_while_redis_hangs(server: Valkey) -> None:
    with bus(server.url) as ours, server.hanging():
        announced = threading.Thread(target=lambda: any(map(ours.announce, range(1, 10_001))))
        announced.start()
        announced.join(5.0)

        assert not announced.is_alive()


def test_what_redis_refuses_is_unavailable_and_no_outage(server: Valkey) -> None:
    link = RedisLink(RedisAddress(server.url))
    with capture_logs() as logs, pytest.raises(Unavailable, match="Redis refuses"):
        link.ask(lambda client: client.execute_command("NOSUCH"))  # type: ignore[no-untyped-call]
    link.close()

    assert logs == []


def test_a_wrong_password_is_told_without_it(tmp_path: Path) -> None:
    with valkey(tmp_path, "--requirepass", "right-c4nary") as server:
        link = RedisLink(RedisAddress(f"redis://:wrong-c4nary@{server.address}"))
        with capture_logs() as logs, pytest.raises(Unavailable) as refused:
            link.ask(lambda client: client.ping())
        link.close()

    assert [log["event"] for log in logs] == ["redis_away"]
    assert "c4nary" not in f"{refused.value}{logs}"


# --- the snapshot storage ---------------------------------------------------------------------------------------------


def storage(server: Valkey, *installations: str) -> RedisSnapshotStorage:
    return RedisSnapshotStorage(
        RedisLink(RedisAddress(server.url), timeout_s=TIMEOUT_S),
        [f"gatekeeper:{name}" for name in installations or INSTALLATION],
    )


def test_before_anything_is_kept_there_is_nothing(server: Valkey) -> None:
    assert (storage(server).read(10), storage(server).read()) == (b"", b"")


def test_what_one_instance_keeps_another_finds_whatever_its_size(server: Valkey) -> None:
    for flags in (0, 3, 2_000):
        content = kept(flags=flags)
        put(storage(server), content)

        assert storage(server).read() == content
        assert storage(server).read(100) == content[:100]
    with server.client() as client:
        assert [key for key in client.keys("*") if b"snapshot" in key] == [storage(server)._keys[0].encode()]
        assert client.ttl(storage(server)._keys[0]) > 29 * 24 * 3600


def test_two_installations_on_one_redis_do_not_collide(server: Valkey) -> None:
    elsewhere = DataKeys(KeyRing.parse("data:" + "e" * 32))
    put(storage(server), kept(5))
    put(storage(server, *elsewhere.fingerprints), kept(9, keys=elsewhere))

    found = newest_stored([storage(server)], KEYS.data)

    assert found
    assert found.header.revision == 5
    with pytest.raises(SnapshotRefused, match="not written with the keys"):
        decode(storage(server, *elsewhere.fingerprints).read(), KEYS.data)


def test_what_an_older_key_sealed_is_found_and_goes_with_the_next_write(server: Valkey) -> None:
    put(storage(server, "old"), b"sealed with the old key")
    rotated = storage(server, "new", "old")
    before = rotated.read()
    put(rotated, b"sealed with the new key")

    assert before == b"sealed with the old key"
    assert (rotated.read(), storage(server, "old").read()) == (b"sealed with the new key", b"")


def test_while_one_writes_nobody_else_does(server: Valkey) -> None:
    with storage(server).locked() as first, storage(server).locked() as second:
        assert (first, second) == (True, False)
    with storage(server).locked() as again:
        assert again


def test_a_writer_who_took_too_long_replaces_nothing(server: Valkey) -> None:
    slow, quick = storage(server), storage(server)

    def overtaken() -> Iterator[bytes]:
        yield b"older"
        with server.client() as client:
            client.delete(slow._lock_key)
        put(quick, b"newer")

    with pytest.raises(Unavailable, match="took too long"), slow.locked():
        slow.write(overtaken())

    assert quick.read() == b"newer"


def test_who_reads_while_it_is_replaced_gets_one_of_both_whole(server: Valkey) -> None:
    contents = {kept(1, flags=1_000)}
    put(storage(server), *contents)
    stopping = threading.Event()

    def replace() -> None:
        # Sealed again each time, as every stored snapshot: no two are the same.
        while not stopping.is_set():
            content = kept(2, flags=1_000)
            contents.add(content)
            put(storage(server), content)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        seen = {storage(server).read() for _ in range(30)}
    finally:
        stopping.set()
        writer.join(TIMEOUT_S)

    assert seen <= {*contents, b""}
    assert seen & contents


def test_what_a_killed_writer_left_goes_by_itself(server: Valkey) -> None:
    left = storage(server)
    left._append(f"{left._keys[0]}:dead", b"half")

    with server.client() as client:
        assert 0 < client.pttl(f"{left._keys[0]}:dead") <= 30_000


def test_after_redis_lost_its_data_the_snapshot_can_be_stored_again(server: Valkey) -> None:
    put(storage(server), b"content")
    with server.client() as client:
        client.flushall()
    forgotten = storage(server).read()
    put(storage(server), b"again")

    assert (forgotten, storage(server).read()) == (b"", b"again")


# --- Sentinel ---------------------------------------------------------------------------------------------------------


def everything_works(url: str) -> None:
    with bus(url) as one, bus(url) as other, Listener(other.announcements) as listener:
        assert listener.hears(7, one.announce)
        put(one.snapshot, kept(7, flags=500))
        assert decode(other.snapshot.read(), KEYS.data)[0].revision == 7


def test_with_sentinels_everything_works_also_after_a_failover(tmp_path: Path) -> None:
    with watched_pair(tmp_path) as watched:
        everything_works(watched.url)
        with bus(watched.url) as one, bus(watched.url) as other, Listener(other.announcements) as listener:
            watched.primary.kill()
            watched.wait_for_promotion()

            assert listener.hears(8, one.announce)
            assert _eventually(lambda: _works(lambda: put(one.snapshot, kept(8))))
            assert decode(other.snapshot.read(), KEYS.data)[0].revision == 8


def test_over_a_unix_socket_everything_works(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with valkey(tmp_path / "server", "--unixsocket", str(socket)):
        everything_works(f"unix://{socket}")


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except Unavailable:
        return False
    return True


def _eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_tls_needs_a_trusted_certificate(server: Valkey, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    with terminated(certificate, server.port) as port:
        everything_works(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
        with bus(f"rediss://127.0.0.1:{port}") as untrusting, pytest.raises(Unavailable, match="certificate"):
            untrusting.snapshot.read()


def test_the_newest_of_revisions_that_are_committed_at_once_is_announced(server: Valkey) -> None:
    with bus(server.url) as ours, Listener(ours.announcements) as listener:
        for revision in (3, 9, 5):
            ours.announce(revision)
        heard = [listener.heard.get(timeout=TIMEOUT_S)]
        while 9 not in heard:
            heard.append(listener.heard.get(timeout=TIMEOUT_S))

    assert 9 in heard
