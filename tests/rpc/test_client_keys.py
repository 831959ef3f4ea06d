"""The client key RPCs: what they do, every way in which they refuse, and who sees a secret."""

import hashlib
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.client_key_pb2 import (
    CLIENT_KEY_TYPE_BEARER,
    CLIENT_KEY_TYPE_SIGNING,
    RATE_TIER_HIGH,
    RATE_TIER_STANDARD,
    RATE_TIER_UNLIMITED,
    ClientKey,
)
from tests.support.clients import (
    TIMEOUT_S,
    Installation,
    installed,
    invalid,
    refusal_of,
)
from tests.support.operators import manager
from tests.support.servers import KEYS
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("D5", "D7")


def create(installation: Installation, *, expire: datetime | None = None, **fields: Any) -> pb.CreateClientKeyResponse:
    key = ClientKey(
        name=fields.pop("name", "checkout"),
        tier=fields.pop("tier", RATE_TIER_HIGH),
        type=fields.pop("type", CLIENT_KEY_TYPE_SIGNING),
    )
    if expire is not None:
        key.expire_time.FromDatetime(expire)
    return manager(installation).CreateClientKey(
        pb.CreateClientKeyRequest(**{"client_key": key, **fields}), timeout=TIMEOUT_S
    )


def revoke(installation: Installation, key_id: str, **fields: Any) -> pb.RevokeClientKeyResponse:
    return manager(installation).RevokeClientKey(pb.RevokeClientKeyRequest(key_id=key_id, **fields), timeout=TIMEOUT_S)


def listed(installation: Installation) -> dict[str, ClientKey]:
    page = manager(installation).ListClientKeys(pb.ListClientKeysRequest(page_size=1000), timeout=TIMEOUT_S)
    assert page.revision == installation.revision()
    return {key.key_id: key for key in page.client_keys}


def live(installation: Installation, key_id: str) -> bool:
    """Tell whether this instance would verify a signature with the key, right now."""
    return installation.server.client_keys.find(key_id) is not None


def tomorrow() -> datetime:
    return datetime.now(UTC) + timedelta(days=1)


@pytest.mark.parametrize("tier", [RATE_TIER_STANDARD, RATE_TIER_HIGH, RATE_TIER_UNLIMITED])
@pytest.mark.parametrize("expires", [False, True])
def test_create_shows_the_key_and_its_secret_and_the_key_is_good_at_once(
    installation: Installation, tier: Any, expires: bool
) -> None:
    response = create(installation, name="Kasse 全員", tier=tier, expire=tomorrow() if expires else None)

    key = response.client_key
    assert re.fullmatch(r"ck_[0-9a-f]{20}", key.key_id)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", response.secret)
    assert (key.name, key.tier, key.revision) == ("Kasse 全員", tier, response.revision)
    assert [key.HasField(name) for name in ("expire_time", "revoke_time", "last_used_time")] == [expires, False, False]
    assert listed(installation)[key.key_id] == key
    assert live(installation, key.key_id)


def test_the_secret_of_a_bearer_key_is_stored_as_a_hash_and_names_the_key(installation: Installation) -> None:
    response = create(installation, type=CLIENT_KEY_TYPE_BEARER)

    key, found = response.client_key, installation.server.client_keys.find(response.client_key.key_id)
    assert re.fullmatch(r"cb_[0-9a-f]{20}", key.key_id)
    assert re.fullmatch(rf"gkc_{key.key_id[3:]}_[A-Za-z0-9_-]{{43}}", response.secret)
    assert (key.type, listed(installation)[key.key_id]) == (CLIENT_KEY_TYPE_BEARER, key)
    assert found is not None
    assert found.secret == hashlib.sha256(response.secret.encode()).digest()


BAD_CREATES: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": ""}, "client_key.name"),
    "long name": ({"name": "x" * 129}, "client_key.name"),
    "NUL in name": ({"name": "\0"}, "client_key.name"),
    "no type": ({"type": 0}, "client_key.type"),
    "unknown type": ({"type": 77}, "client_key.type"),
    "no tier": ({"tier": 0}, "client_key.tier"),
    "unknown tier": ({"tier": 77}, "client_key.tier"),
    "expired": ({"expire": datetime.now(UTC)}, "client_key.expire_time"),
    "bad request id": ({"request_id": "mine"}, "request_id"),
    "long reason": ({"change_reason": "x" * 1025}, "change_reason"),
}


@pytest.mark.parametrize(("fields", "field"), BAD_CREATES.values(), ids=BAD_CREATES.keys())
@pytest.mark.parametrize("validate_only", [False, True])
def test_create_refuses_and_names_the_field(
    installation: Installation, fields: dict[str, Any], field: str, validate_only: bool
) -> None:
    before = installation.contents()

    assert refusal_of(lambda: create(installation, **fields, validate_only=validate_only)) == invalid(field)
    assert installation.contents() == before


@pytest.mark.parametrize("seconds", [2**62, -(2**62)])
def test_create_refuses_a_time_that_is_none(installation: Installation, seconds: int) -> None:
    key = ClientKey(name="x", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING, expire_time=Timestamp(seconds=seconds))
    refusal = refusal_of(lambda: manager(installation).CreateClientKey(pb.CreateClientKeyRequest(client_key=key)))

    assert refusal == invalid("client_key.expire_time")


def test_retry_after_the_key_expired_still_gets_the_secret(installation: Installation) -> None:
    request_id, soon = str(uuid4()), datetime.now(UTC) + timedelta(seconds=3)
    first = create(installation, request_id=request_id, expire=soon)
    assert eventually(lambda: not live(installation, first.client_key.key_id))

    assert create(installation, request_id=request_id, expire=soon) == first


def test_revoked_key_is_not_good_at_once_and_for_good(installation: Installation) -> None:
    key = create(installation).client_key

    first = revoke(installation, key.key_id)
    second = revoke(installation, key.key_id)

    assert first.client_key.HasField("revoke_time")
    assert first.client_key.revision == first.revision == key.revision + 1
    assert second.client_key.revoke_time == first.client_key.revoke_time
    assert listed(installation)[key.key_id] == second.client_key
    assert not live(installation, key.key_id)


def test_revocation_that_only_validates_leaves_the_key_good(installation: Installation) -> None:
    key = create(installation).client_key
    before = installation.contents()

    response = revoke(installation, key.key_id, validate_only=True)

    assert response.client_key.HasField("revoke_time")
    assert response.client_key.revision == key.revision
    assert installation.contents() == before
    assert live(installation, key.key_id)


@pytest.mark.parametrize("key_id", ["", "x" * 129, "\0"])
def test_revoke_refuses_what_is_no_id(installation: Installation, key_id: str) -> None:
    assert refusal_of(lambda: revoke(installation, key_id)) == invalid("key_id")


def test_list_is_in_pages_by_key_id(installation: Installation) -> None:
    made = {create(installation).client_key.key_id for _ in range(3)}
    found, token = [], ""
    while True:
        request = pb.ListClientKeysRequest(page_size=2, page_token=token)
        page = manager(installation).ListClientKeys(request, timeout=TIMEOUT_S)
        found += [key.key_id for key in page.client_keys]
        token = page.next_page_token
        if not token:
            break

    assert found == sorted(found)
    assert made <= set(found)


@pytest.mark.parametrize(("fields", "field"), [({"page_size": -1}, "page_size"), ({"page_token": "x"}, "page_token")])
def test_list_refuses_bad_pages(installation: Installation, fields: dict[str, Any], field: str) -> None:
    stub = manager(installation)
    assert refusal_of(lambda: stub.ListClientKeys(pb.ListClientKeysRequest(**fields))) == invalid(field)


def test_secret_is_in_the_one_reply_and_nowhere_else_in_the_clear(
    postgres: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with installed(postgres) as installation, capture_logs() as structured:
        created = create(installation, request_id=str(uuid4()), change_reason="for the till")
        revoked = revoke(installation, created.client_key.key_id, request_id=str(uuid4()))
        keys = listed(installation)
        rows = installation.contents()
        documents = [bytes(row[0]) for row in installation.query("SELECT document FROM audit_documents")]
        ((sealed,),) = installation.query("SELECT secret FROM client_keys")

    seen = f"{structured} {caplog.text} {capfd.readouterr()} {revoked} {keys} {rows} {documents}"
    assert created.client_key.key_id in seen
    assert created.secret not in seen
    assert created.secret.encode().hex() not in seen
    assert KEYS.data.open(bytes(sealed)).decode() == created.secret
