"""The hash that makes the audit log provable: canonical, complete, chained."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_grpc.domain.audit import GENESIS_HASH, AuditEntry, hash_document, hash_entry, read_document

ENTRY = AuditEntry(
    seq=1,
    revision=7,
    create_time=datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=UTC),
    actor="admin:änna",
    action="UpdateFlag",
    environment="",
    resource_type="flag",
    resource_key="new_checkout",
    document_hash=bytes(range(32)),
    prev_hash=GENESIS_HASH,
)

# What any other program would have to hash: the format is public, and verifiable without this code.
CANONICAL = (
    '{"action":"UpdateFlag","actor":"admin:änna","create_time":"2026-01-31T12:00:00.000005+00:00",'
    # pragma: allowlist nextline secret
    '"document_hash":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","environment":"","format":1,'
    '"prev_hash":"0000000000000000000000000000000000000000000000000000000000000000",'
    '"resource_key":"new_checkout","resource_type":"flag","revision":7,"seq":1}'
)


def test_an_entry_is_hashed_as_the_documented_bytes() -> None:
    assert hash_entry(ENTRY) == hashlib.sha256(CANONICAL.encode()).digest()


CHANGES: list[dict[str, Any]] = [
    {"seq": 2},
    {"revision": 8},
    {"create_time": ENTRY.create_time + timedelta(microseconds=1)},
    {"actor": "admin:bob"},
    {"action": "DeleteFlag"},
    {"environment": "staging"},
    {"resource_type": "segment"},
    {"resource_key": "old_checkout"},
    {"document_hash": bytes(32)},
    {"prev_hash": bytes(range(32))},
    {"evidence_hash": bytes(32)},
    {"format": 2},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_no_field_can_change_without_changing_the_hash(change: dict[str, Any]) -> None:
    assert hash_entry(replace(ENTRY, **change)) != hash_entry(ENTRY)


def test_every_field_is_covered_by_the_test_above() -> None:
    assert {name for change in CHANGES for name in change} == {*AuditEntry.__dataclass_fields__}


texts = st.text(st.characters(codec="utf-8"))


@settings(max_examples=200)
@given(
    actor=texts,
    key=texts,
    seq=st.integers(1, 2**53 - 1),
    seconds=st.integers(0, 10**9),
    evidence=st.none() | st.binary(min_size=32, max_size=32),
)
def test_any_entry_is_hashed_in_its_rfc_8785_form(
    actor: str, key: str, seq: int, seconds: int, evidence: bytes | None
) -> None:
    time = datetime.fromtimestamp(seconds, tz=UTC)
    entry = replace(ENTRY, actor=actor, resource_key=key, seq=seq, create_time=time, evidence_hash=evidence)
    fields = {name: getattr(entry, name) for name in AuditEntry.__dataclass_fields__}
    if evidence is None:
        del fields["evidence_hash"]
    fields |= {name: value.hex() for name, value in fields.items() if isinstance(value, bytes)}
    fields["create_time"] = entry.create_time.isoformat(timespec="microseconds")

    assert hash_entry(entry) == hashlib.sha256(rfc8785.dumps(fields)).digest()


def test_changing_an_early_entry_changes_the_hash_of_the_last() -> None:
    def last_hash(first: AuditEntry) -> bytes:
        prev_hash = hash_entry(first)
        for seq in range(2, 5):
            prev_hash = hash_entry(replace(ENTRY, seq=seq, prev_hash=prev_hash))
        return prev_hash

    assert last_hash(replace(ENTRY, actor="admin:mallory")) != last_hash(ENTRY)


def test_a_document_is_hashed_with_its_salt() -> None:
    salt, document = b"0123456789abcdef", b'{"after":null}'

    assert hash_document(salt, document) == hashlib.sha256(salt + document).digest()
    assert hash_document(bytes(16), document) != hash_document(salt, document)


@pytest.mark.parametrize("number", [5, 2**53 - 1, 2.0**53, 1e16, -1e16, 1e20, 1e21, 1e22, 0.5])
def test_a_document_reads_back_as_what_was_written(number: float) -> None:
    written = rfc8785.dumps({"value": number})

    read = read_document(written)

    assert (read, rfc8785.dumps(read)) == ({"value": number}, written)


def test_twin_plain_json_reads_a_large_double_as_an_unwritable_integer() -> None:
    with pytest.raises(rfc8785.IntegerDomainError):
        rfc8785.dumps(json.loads(rfc8785.dumps({"value": 1e16})))
