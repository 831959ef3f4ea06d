"""ExportUserData: everything that is held about a person, in parts that a program can read."""

import json
from collections.abc import Iterator
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EQUALS, Condition, Segment
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.store import exports
from tests.support.clients import Installation, denial, installed, invalid, refusal_of, send
from tests.support.traces import FLAGS, SEGMENTS, live


@pytest.fixture(scope="module")
def person() -> str:
    return f"person-{uuid4().hex}"


@pytest.fixture(scope="module")
def lived(postgres: str, person: str) -> Iterator[Installation]:
    """An installation in which a person has left traces, and that no test changes."""
    with installed(postgres) as installation:
        live(installation.admin, person)
        yield installation


@pytest.fixture
def installation(postgres: str, person: str) -> Iterator[Installation]:
    """The same for a test alone."""
    with installed(postgres) as installation:
        live(installation.admin, person)
        yield installation


def export(installation: Installation, user_id: str) -> list[pb.ExportUserDataResponse]:
    admin = installation.admin_as(Role.ADMIN)
    return send(admin, "ExportUserData", pb.ExportUserDataRequest(user_id=user_id))  # type: ignore[no-any-return]


def test_it_tells_first_who_it_is_then_everything(lived: Installation, person: str) -> None:
    first, *parts = export(lived, person)

    assert first.user.user_id == first.user.user.user_id == person
    assert str(UUID(first.user.subject_id)) == first.user.subject_id
    assert dict(first.user.user.attributes.items()) == {"plan": "pro", "email": f"{person}@example.com"}
    targets, memberships, *entries = parts
    assert [(target.flag_key, target.value) for target in targets.targets.targets] == [(key, True) for key in FLAGS]
    assert list(memberships.memberships.segment_keys) == list(SEGMENTS)
    actions = [part.audit_entry.action for part in entries]
    assert actions == [
        *("CreateFlag", "CreateFlag", "UpdateFlag", "AddTargets", "AddTargets"),
        *("AddSegmentMembers", "AddSegmentMembers", "CreateUser", "UpdateUser"),
    ]


def test_every_audit_entry_that_names_the_person_is_in_it(lived: Installation, person: str) -> None:
    first, *parts = export(lived, person)

    rows = lived.query(
        "SELECT seq, resource_key, convert_from(document, 'UTF8') FROM audit_log JOIN audit_documents USING (seq)"
    )
    naming = [seq for seq, key, text in rows if any(name in key + text for name in (person, first.user.subject_id))]
    assert [part.audit_entry.seq for part in parts if part.HasField("audit_entry")] == sorted(naming)


def test_it_is_machine_readable_and_true_at_one_revision(lived: Installation, person: str) -> None:
    parts = export(lived, person)

    assert {part.revision for part in parts} == {lived.revision()}
    for part in parts:
        (kind,) = MessageToDict(part).keys() - {"revision"}
        assert kind in {"user", "targets", "memberships", "auditEntry"}
        if kind == "auditEntry":
            json.loads(part.audit_entry.document)


def test_it_names_nobody_else(lived: Installation, person: str) -> None:
    parts = export(lived, person)

    assert "bob" not in str(parts)
    assert {user_id for part in parts for user_id in part.audit_entry.users.values()} == {person}


def test_it_stays_at_its_revision_while_others_write(
    installation: Installation, person: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = exports._known

    def created_while_reading(conn: psycopg.Connection, user_id: str) -> object:
        send(installation.admin, "RemoveTargets", pb.RemoveTargetsRequest(flag_key=FLAGS[0], user_ids=[person]))
        return known(conn, user_id)

    before = installation.revision()
    monkeypatch.setattr(exports, "_known", created_while_reading)
    parts = export(installation, person)

    assert {part.revision for part in parts} == {before}
    assert [target.flag_key for target in parts[1].targets.targets] == list(FLAGS)


def test_all_segments_that_name_the_person_are_told(installation: Installation, person: str) -> None:
    condition = Condition(attribute="id", operator=CONDITION_OPERATOR_EQUALS, values=[Value(string_value=person)])
    for number in range(25):
        segment = Segment(key=f"named-{number:02}", conditions=[condition])
        send(installation.admin, "CreateSegment", pb.CreateSegmentRequest(segment=segment))

    first, *_ = export(installation, person)

    assert list(first.user.named_by_segments) == [f"named-{number:02}" for number in range(25)]


def test_about_whom_nothing_is_held_one_message_says_so(lived: Installation) -> None:
    (only,) = export(lived, "nobody")

    assert only.user == pb.ExportedUser(user_id="nobody")
    assert only.revision == lived.revision()


def test_who_is_only_a_target_is_not_a_known_user(lived: Installation) -> None:
    first, *_ = export(lived, "bob")

    assert first.user.subject_id
    assert not first.user.HasField("user")


def test_more_than_1000_targets_and_memberships_come_in_several_messages(installation: Installation) -> None:
    installation.execute(_MANY)

    _, *parts = export(installation, "popular")

    assert [len(part.targets.targets) for part in parts[:2]] == [1000, 5]
    assert [len(part.memberships.segment_keys) for part in parts[2:4]] == [1000, 5]
    keys = [target.flag_key for part in parts[:2] for target in part.targets.targets]
    assert keys == [f"many-{number:04}" for number in range(1005)]
    assert len(parts) == 4


_MANY = """
    WITH subject AS (INSERT INTO subjects (user_id) VALUES ('popular') RETURNING subject_id),
    flags AS (
        INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage,
                                   create_time, update_time, revision)
        SELECT 'many-' || lpad(n::text, 4, '0'), true, 'off', 0, now(), now(), 0 FROM generate_series(0, 1004) AS n
        RETURNING flag_id
    ), groups AS (
        INSERT INTO segments (key, match, create_time, update_time, revision)
        SELECT 'many-' || lpad(n::text, 4, '0'), 'ALL', now(), now(), 0 FROM generate_series(0, 1004) AS n
        RETURNING segment_id
    ), targets AS (
        INSERT INTO targeted_users (flag_id, subject_id, variant) SELECT flag_id, subject_id, 'on' FROM flags, subject
    )
    INSERT INTO segment_members (segment_id, subject_id) SELECT segment_id, subject_id FROM groups, subject
"""


@pytest.mark.parametrize("user_id", ["bob", "nobody"])
def test_who_exported_whose_data_is_recorded_without_the_user_id(installation: Installation, user_id: str) -> None:
    first, *_ = export(installation, user_id)

    events = send(installation.admin_as(Role.ADMIN), "ListAuthEvents", pb.ListAuthEventsRequest(event="user_exported"))
    (event,) = events.auth_events
    assert event.subject_id == first.user.subject_id
    assert (bool(event.username), event.peer[:15]) == (True, "ipv4:127.0.0.1:")
    assert user_id not in str(event)
    assert bool(event.subject_id) is (user_id == "bob")


def test_an_export_that_cannot_be_recorded_is_refused(installation: Installation, person: str) -> None:
    installation.execute("ALTER TABLE auth_events ADD CONSTRAINT full_up CHECK (event <> 'user_exported') NOT VALID")

    refused = refusal_of(lambda: export(installation, person))

    assert refused.code is not grpc.StatusCode.OK


@pytest.mark.parametrize("role", [Role.VIEWER, Role.EDITOR], ids=lambda role: role.name)
def test_only_an_admin_exports(lived: Installation, person: str, role: Role) -> None:
    request = pb.ExportUserDataRequest(user_id=person)
    refused = refusal_of(lambda: send(lived.admin_as(role), "ExportUserData", request))

    assert refused == denial(role, Role.ADMIN)


@pytest.mark.parametrize("user_id", ["", "x" * 257, "nul\0"], ids=["empty", "too long", "NUL"])
def test_an_id_that_nobody_can_have_is_refused(lived: Installation, user_id: str) -> None:
    assert refusal_of(lambda: export(lived, user_id)) == invalid("user_id")
