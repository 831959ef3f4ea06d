"""The hash of an audit entry: exactly the one that audit.proto defines, although a fast path computes it."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper_grpc.domain.audit import GENESIS_HASH, AuditEntry, hash_document, hash_entry

# PostgreSQL stores no NUL and no lone surrogates.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
hashes = st.binary(min_size=32, max_size=32)
numbers = st.integers(min_value=0, max_value=2**53 - 1)
entries = st.builds(
    AuditEntry,
    seq=numbers,
    format=st.integers(min_value=0, max_value=2**15 - 1),
    revision=numbers,
    create_time=st.datetimes(timezones=st.just(UTC)),
    actor=texts,
    action=texts,
    environment=texts,
    resource_type=texts,
    resource_key=texts,
    document_hash=hashes,
    prev_hash=hashes,
    evidence_hash=st.none() | hashes,
)

EXAMPLE = AuditEntry(
    seq=1,
    revision=1,
    create_time=datetime(2026, 11, 23, 7, 46, 16, 5, tzinfo=UTC),
    actor='admin:"bob"',
    action="UpdateFlag",
    environment="",
    resource_type="flag",
    resource_key="new_checkout",
    document_hash=bytes(range(32)),
    prev_hash=GENESIS_HASH,
)


@given(entries)
def test_an_entry_is_hashed_as_the_canonical_json_of_its_fields(entry: AuditEntry) -> None:
    canonical = rfc8785.dumps(
        {
            "action": entry.action,
            "actor": entry.actor,
            "create_time": entry.create_time.isoformat(timespec="microseconds"),
            "document_hash": entry.document_hash.hex(),
            "environment": entry.environment,
            "format": entry.format,
            "prev_hash": entry.prev_hash.hex(),
            "resource_key": entry.resource_key,
            "resource_type": entry.resource_type,
            "revision": entry.revision,
            "seq": entry.seq,
            **({} if entry.evidence_hash is None else {"evidence_hash": entry.evidence_hash.hex()}),
        }
    )

    assert hash_entry(entry) == hashlib.sha256(canonical).digest()


def test_the_hash_of_an_entry_never_changes() -> None:
    canonical = (
        r'{"action":"UpdateFlag","actor":"admin:\"bob\"","create_time":"2026-11-23T07:46:16.000005+00:00",'
        f'"document_hash":"{bytes(range(32)).hex()}","environment":"","format":1,"prev_hash":"{"0" * 64}",'
        '"resource_key":"new_checkout","resource_type":"flag","revision":1,"seq":1}'
    )

    assert hash_entry(EXAMPLE) == hashlib.sha256(canonical.encode()).digest()


def test_the_hash_does_not_depend_on_the_zone_that_a_time_is_read_in() -> None:
    paris = timezone(timedelta(hours=1))
    moved = {name: getattr(EXAMPLE, name) for name in AuditEntry.__slots__}
    moved["create_time"] = EXAMPLE.create_time.astimezone(paris)

    assert hash_entry(AuditEntry(**moved)) == hash_entry(EXAMPLE)


def test_a_document_is_hashed_after_its_salt() -> None:
    assert hash_document(b"salt", b"{}") == hashlib.sha256(b"salt{}").digest()
