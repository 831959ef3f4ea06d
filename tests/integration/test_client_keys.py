"""Client keys between the database and the memory of an instance: what is good, what was used, what a fault does."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.auth.client_keys import ClientKeyCache, new_client_key
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.domain.client_key import ClientKeyConfig, RateTier
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.store.client_keys import ClientKeyStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database

DATA_KEYS = DataKeys(KeyRing.parse("data:" + "d" * 32))


class Keys:
    """A store of client keys, and an instance that holds the good ones."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = ClientKeyStore(database, MutationRunner(database, DATA_KEYS), DATA_KEYS)
        self.now = datetime.now(UTC)
        self.cache = ClientKeyCache(self.store, DATA_KEYS.open, clock=lambda: self.now)

    def create(self, *, expire_time: datetime | None = None) -> tuple[str, str]:
        config = ClientKeyConfig(name="till", tier=RateTier.HIGH, expire_time=expire_time)
        new, intent = new_client_key(config.type), Intent(caller=None, action="CreateClientKey")
        self.store.create(config, key_id=new.key_id, secret=new.secret, kept=new.kept, intent=intent)
        return new.key_id, new.secret

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        with self.database.read() as conn:
            return conn.execute(query).fetchall()


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


def test_refresh_holds_what_is_good_with_its_secret_and_tier(keys: Keys) -> None:
    key_id, secret = keys.create()
    keys.cache.refresh()

    found = keys.cache.find(key_id)

    assert found is not None
    assert (found.secret.decode(), found.tier) == (secret, RateTier.HIGH)
    assert secret not in repr(found)


def test_key_ceases_to_be_good_when_it_expires_without_a_refresh(keys: Keys) -> None:
    key_id, _ = keys.create(expire_time=keys.now + timedelta(seconds=60))
    keys.cache.refresh()
    before = keys.cache.find(key_id)

    keys.now += timedelta(seconds=60)

    assert before is not None
    assert keys.cache.find(key_id) is None


def test_revocation_elsewhere_acts_with_the_next_refresh(keys: Keys) -> None:
    key_id, _ = keys.create()
    keys.cache.refresh()
    keys.store.revoke(key_id, Intent(caller=None, action="RevokeClientKey"))

    keys.cache.refresh()

    assert keys.cache.find(key_id) is None


def test_secret_that_cannot_be_opened_is_reported_and_harms_no_other_key(keys: Keys) -> None:
    (bad, _), (good, _) = keys.create(), keys.create()
    with keys.database.write() as conn:
        conn.execute("UPDATE client_keys SET secret = secret || 'x' WHERE key_id = %(bad)s", {"bad": bad})

    with capture_logs() as logs:
        keys.cache.refresh()

    assert keys.cache.find(bad) is None
    assert keys.cache.find(good) is not None
    assert [(line["event"], line["key_id"]) for line in logs] == [("client_key_not_opened", bad)]


def test_database_that_is_away_leaves_the_keys_as_they_were(keys: Keys) -> None:
    key_id, _ = keys.create()
    keys.cache.refresh()
    keys.database.close()

    keys.cache.refresh_after_write()

    assert keys.cache.find(key_id) is not None


def test_uses_are_written_in_one_batch_and_the_latest_wins(keys: Keys) -> None:
    (first, _), (second, _) = keys.create(), keys.create()
    head = keys.rows("SELECT * FROM revision_head")
    for key_id in (first, second, first, "ck_gone"):
        keys.now += timedelta(seconds=1)
        keys.cache.uses.note(key_id)
    keys.cache.uses.flush()
    latest = dict(keys.rows("SELECT key_id, last_used_time FROM client_keys"))

    keys.store.record_uses({first: keys.now - timedelta(hours=1)})

    assert latest == {first: keys.now - timedelta(seconds=1), second: keys.now - timedelta(seconds=2)}
    assert dict(keys.rows("SELECT key_id, last_used_time FROM client_keys")) == latest
    assert keys.rows("SELECT * FROM revision_head") == head


def test_nothing_used_is_nothing_written(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Mapping[str, datetime]] = []
    monkeypatch.setattr(keys.store, "record_uses", written.append)

    keys.cache.uses.flush()

    assert written == []
