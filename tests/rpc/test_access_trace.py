"""Who reads what is stored about people is recorded, with whom and when, before anything is shown."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from psycopg import sql

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1 import auth_service_pb2, evaluation_service_pb2
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.store import access_trace, users
from tests.support.access_events import REFUSING, SERVING, events, subject_of
from tests.support.clients import TIMEOUT_S, Installation, Refusal, installed, invalid, refusal_of, send
from tests.support.mutations import MUTATIONS
from tests.support.traces import FLAGS, SEGMENTS, live

pytestmark = pytest.mark.promise("D11")

PERSON, OTHER = "person-17", "bob"
SERVICES = {
    "AdminService": pb.DESCRIPTOR,
    "AuthService": auth_service_pb2.DESCRIPTOR,
    "EvaluationService": evaluation_service_pb2.DESCRIPTOR,
}

# --- No RPC is forgotten ----------------------------------------------------------------------------------------------

# By message: the fields that hold what is stored about people, or name people of whom something is stored.
PERSONAL = {
    "User": {"user_id", "attributes"},
    "Target": {"user_id", "variant"},
    "ListSegmentMembersResponse": {"user_ids"},
    "ExportedUser": {"user_id", "named_by_segments"},
    "ExportedTarget": {"flag_key", "variant"},
    "ExportedMemberships": {"segment_keys"},
    "AuditEntry": {"document", "resource_key"},
    "UsersEntry": {"value"},
}
# The other texts: of flags, segments, accounts and credentials, of the log itself, or what the caller sent.
IMPERSONAL = {
    "User": {"etag"},
    "ExportedUser": {"subject_id"},
    "UsersEntry": {"key"},
    "AuditEntry": {
        *("action", "actor", "environment", "resource_type", "salt"),
        *("hash", "prev_hash", "document_hash", "evidence_hash"),
    },
    "AuditRedaction": {"new_hash", "old_hash"},
    "AuditAnchor": {"hash"},
    "AuditCheckpoint": {"public_key", "signature"},
    "VerifyAuditLogResponse": {"message"},
    "Flag": {"key", "description", "owner", "tags", "etag"},
    "DecisionCount": {"variant"},
    "UnknownFlagKey": {"key"},
    "FlagChange": {"flag_key"},
    "SegmentTarget": {"segment_key", "variant"},
    "Segment": {"key", "description", "etag"},
    "Condition": {"attribute", "values"},
    "AdminUser": {"username", "etag"},
    "Session": {"session_id", "username", "address"},
    "AuthEvent": {"actor", "event", "peer", "subject_id", "subject_ids", "username"},
    "ClientKey": {"key_id", "name"},
    "CreateClientKeyResponse": {"secret"},
    "ApiToken": {"token_id", "name", "username"},
    "CreateApiTokenResponse": {"secret"},
    "LoginResponse": {"access_token", "refresh_token"},
    "RefreshTokenResponse": {"access_token", "refresh_token"},
    "ApplyConfigurationResponse": {"apply_id"},
    # Whose attributes are compared has been recorded, see test_apply_configuration.py.
    "ConfigurationChange": {"key", "fields"},
    "EvaluateFlagsResponse": {"unknown_flag_keys"},
    "FlagsEntry": {"key"},
    "DetailsEntry": {"key"},
    "EvaluationDetail": {"segment_key", "variant"},
    "BulkEvaluationHeader": {"flag_keys", "unknown_flag_keys"},
    "BulkEvaluationResult": {"user_id"},
    "BulkEvaluationError": {"field", "message", "reason"},
    # Who would be targeted has been recorded, see test_preview_flag_change.py.
    "PreviewRow": {"user_id"},
}
# Mutations show what they wrote, and are in the audit log. Those that write nothing are not: see below.
WRITTEN = {"CreateUser", "UpdateUser"}

READS: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        "GetUser": ("user_read", {"user_id": PERSON}),
        "ListUsers": ("users_listed", {}),
        "ListTargets": ("targets_listed", {"flag_key": FLAGS[0]}),
        "ListSegmentMembers": ("members_listed", {"segment_key": SEGMENTS[0]}),
        "ListAuditEntries": ("audit_entries_listed", {}),
        "ExportUserData": ("user_exported", {"user_id": PERSON}),
    }
)
"""By RPC that shows what is stored about people: the event that records it, and a request about the person."""


def texts(message: Descriptor, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """Every field of a message, and of the messages in it, that can hold text."""
    for field in message.fields:
        inner = field.message_type
        if inner is not None and inner.file.package != "google.protobuf":
            if inner.full_name not in above:
                yield from texts(inner, above | {inner.full_name})
        elif (inner is not None and inner.name in ("Struct", "Value")) or field.type in (
            FieldDescriptor.TYPE_STRING,
            FieldDescriptor.TYPE_BYTES,
        ):
            yield message.name, field.name


SHOWN = {
    method.name: {(message, field) for message, field in texts(method.output_type) if field != "next_page_token"}
    for name, file in SERVICES.items()
    for method in file.services_by_name[name].methods
}


def named(table: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    return {(message, field) for message, fields in table.items() for field in fields}


def test_of_every_text_in_a_response_it_is_known_whether_it_is_personal() -> None:
    shown = set().union(*SHOWN.values())

    assert shown <= named(PERSONAL) | named(IMPERSONAL)
    assert shown >= named(PERSONAL)
    assert not named(PERSONAL) & named(IMPERSONAL)


def test_every_rpc_that_shows_personal_data_is_recorded_or_a_mutation() -> None:
    assert {rpc for rpc, shown in SHOWN.items() if shown & named(PERSONAL)} == READS.keys() | WRITTEN
    assert MUTATIONS.keys() >= WRITTEN


# --- What is recorded -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lived(postgres: str) -> Iterator[Installation]:
    """An installation in which a person has left traces."""
    with installed(postgres) as installation:
        live(installation.admin, PERSON)
        yield installation


def ask(installation: Installation, rpc: str, role: Role = Role.ADMIN, **more: Any) -> Any:
    _, fields = READS[rpc]
    return send(installation.admin_as(role), rpc, getattr(pb, f"{rpc}Request")(**{**fields, **more}))


@pytest.mark.parametrize("rpc", READS)
def test_a_read_is_recorded_with_reader_person_and_time(lived: Installation, rpc: str) -> None:
    kind, _ = READS[rpc]
    before = len(events(lived, event=kind, user_id=PERSON))
    ((admin_id, began),) = lived.query("SELECT admin_id, clock_timestamp() FROM admin_user WHERE role = 'admin'")

    ask(lived, rpc)

    latest, *earlier = events(lived, event=kind, user_id=PERSON)
    assert len(earlier) == before
    assert latest.actor == f"admin:{latest.username}#{admin_id}"
    assert latest.peer.startswith("ipv4:127.0.0.1:")
    assert latest.create_time.ToDatetime(tzinfo=began.tzinfo) >= began
    assert subject_of(lived, PERSON) in latest.subject_ids
    assert latest.subject_count == len(latest.subject_ids)
    assert latest.subject_id == (latest.subject_ids[0] if latest.subject_count == 1 else "")
    assert PERSON not in str(latest)


def test_only_who_is_on_the_page_is_recorded(lived: Installation) -> None:
    ask(lived, "ListTargets", page_size=1)

    (latest, *_) = events(lived, event="targets_listed")
    assert list(latest.subject_ids) == [subject_of(lived, min(PERSON, OTHER))]


@pytest.mark.parametrize("validate_only", [True, False], ids=["a preview", "without a change"])
def test_an_update_that_writes_nothing_is_recorded_as_a_read(lived: Installation, *, validate_only: bool) -> None:
    before = len(events(lived, event="user_read"))
    user, mask = User(user_id=PERSON), FieldMask(paths=["attributes.nothing"])
    user.attributes["nothing"] = "new"
    if not validate_only:
        send(lived.admin, "UpdateUser", pb.UpdateUserRequest(user=user, update_mask=mask))
    assert len(events(lived, event="user_read")) == before

    request = pb.UpdateUserRequest(user=user, update_mask=mask, validate_only=validate_only)
    shown = send(lived.admin, "UpdateUser", request)

    assert "email" in shown.user.attributes.fields
    latest, *earlier = events(lived, event="user_read")
    assert (latest.subject_id, len(earlier)) == (subject_of(lived, PERSON), before)
    assert latest.actor.startswith("admin:editor")


def test_a_user_who_is_not_there_is_not_recorded(lived: Installation) -> None:
    before = events(lived)

    refusal_of(lambda: ask(lived, "GetUser", user_id="nobody"))

    assert events(lived) == before


def test_no_role_reads_unrecorded(lived: Installation) -> None:
    before = len(events(lived, event="user_read"))

    for role in Role:
        ask(lived, "GetUser", role)

    assert len(events(lived, event="user_read")) == before + len(Role)


def test_events_can_be_found_by_the_person_though_a_page_names_50(lived: Installation) -> None:
    many = [f"many-{number:03}" for number in range(60)]
    request = pb.AddTargetsRequest(flag_key=FLAGS[1], user_ids=many, value=True)
    send(lived.admin, "AddTargets", request)
    ask(lived, "ListTargets", flag_key=FLAGS[1])

    (latest, *_) = events(lived, event="targets_listed", user_id=many[-1])
    assert (len(latest.subject_ids), latest.subject_count) == (50, 62)
    assert events(lived, user_id="nobody") == []
    assert refusal_of(lambda: events(lived, user_id="nul\0")) == invalid("user_id")


# --- Nothing is shown unrecorded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rpc", READS)
def test_what_cannot_be_recorded_is_not_shown(lived: Installation, rpc: str) -> None:
    lived.execute(REFUSING)
    try:
        refused = refusal_of(lambda: ask(lived, rpc))
        flag = send(lived.admin, "GetFlag", pb.GetFlagRequest(key=FLAGS[0])).flag
    finally:
        lived.execute(SERVING)

    assert refused.code is not grpc.StatusCode.OK
    assert flag.key == FLAGS[0]


def test_twin_without_the_record_the_read_is_shown(lived: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "record_access", lambda *_arguments: None)
    before = len(events(lived, event="user_read"))
    lived.execute(REFUSING)
    try:
        shown = ask(lived, "GetUser").user
    finally:
        lived.execute(SERVING)

    assert (shown.user_id, len(events(lived, event="user_read"))) == (PERSON, before)


def test_on_a_database_that_accepts_no_writes_people_are_not_shown(postgres: str) -> None:
    with installed(postgres) as installation:
        live(installation.admin, PERSON)
        ((name,),) = installation.query("SELECT current_database()")
        with psycopg.connect(postgres, autocommit=True) as other:
            refuse = "ALTER DATABASE {} SET default_transaction_read_only = on"
            other.execute(sql.SQL(refuse).format(sql.Identifier(name)))
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

        refused = refusal_of(lambda: ask(installation, "GetUser"))
        flag = send(installation.admin, "GetFlag", pb.GetFlagRequest(key=FLAGS[0])).flag

    assert (refused.code, flag.key) == (grpc.StatusCode.UNAVAILABLE, FLAGS[0])


def test_who_reads_too_much_in_a_day_is_refused_and_others_are_not(
    lived: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_trace, "MAX_TRACE_BYTES_PER_DAY", 600)
    monkeypatch.setattr(access_trace, "_BUDGET", access_trace._Budget())

    for _ in range(2):
        ask(lived, "GetUser", Role.VIEWER)
    refused = refusal_of(lambda: ask(lived, "GetUser", Role.VIEWER))

    quota = {"quota": "access_trace", "limit": "600"}
    assert refused == Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", quota)
    assert ask(lived, "GetUser", Role.EDITOR).user.user_id == PERSON
    stub = lived.admin_as(Role.VIEWER)
    assert stub.GetFlag(pb.GetFlagRequest(key=FLAGS[0]), timeout=TIMEOUT_S).flag.key == FLAGS[0]
