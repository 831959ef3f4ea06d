"""EraseUser: nothing is left of a person, and nothing else is lost."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.audit_pb2 import (
    AUDIT_FAULT_DOCUMENT_ALTERED,
    AUDIT_FAULT_DOCUMENT_MISSING,
    AUDIT_FAULT_EVIDENCE_ALTERED,
    AUDIT_FAULT_SUBJECT_ALTERED,
    RESOURCE_TYPE_FLAG,
)
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import REASON_DEFAULT, REASON_TARGETING_MATCH, EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_IN, Condition, Segment
from gatekeeper_grpc.domain.attribute_index import UserAttributes
from gatekeeper_grpc.domain.audit import hash_document
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from tests.support.clients import TIMEOUT_S, Refusal, denial, invalid, no_user, outcome_of, race, refusal_of, send
from tests.support.earlier_releases import accepting_any_name
from tests.support.servers import StartServer, connect, token_for
from tests.support.traces import BY_PLAN, DOCUMENTS_OF_A_LIFE, FLAGS, SEGMENTS, live, query, traces, user_with

pytestmark = pytest.mark.promise("D9")


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """An instance, and a person who has left traces there."""

    dsn: str
    data_dir: Path
    server: GatekeeperServer
    admin: AdminServiceStub
    person: str

    @property
    def ledger(self) -> Path:
        return self.data_dir / "erasures"

    def erase(self, user_id: str = "", **fields: object) -> pb.EraseUserResponse:
        request = pb.EraseUserRequest(user_id=user_id or self.person, **fields)  # type: ignore[arg-type]
        return self.admin.EraseUser(request, timeout=TIMEOUT_S)

    def refusal(self, user_id: str = "", **fields: object) -> Refusal:
        return refusal_of(lambda: self.erase(user_id, **fields))

    def contents(self) -> list[object]:
        """All that an erasure could change, in the database and outside it."""
        tables = ("revision_head", "subjects", "users", "targeted_users", "segment_members", "idempotency_keys")
        rows = [query(self.dsn, f"SELECT t::text FROM {table} AS t ORDER BY 1") for table in tables]
        rows.append(query(self.dsn, "SELECT * FROM audit_documents ORDER BY 1"))
        return [*rows, self.ledger.exists() and self.ledger.read_bytes()]


@pytest.fixture
def house(dsn: str, start_server: StartServer, tmp_path: Path) -> Iterator[House]:
    server = start_server(data_dir=tmp_path, refresh_interval_s=0.1)
    with connect(server, token=token_for(dsn, Role.ADMIN)) as channel:
        admin = AdminServiceStub(channel)
        person = f"person-{uuid4().hex}"
        live(admin, person)
        yield House(dsn=dsn, data_dir=tmp_path, server=server, admin=admin, person=person)


def verified(admin: AdminServiceStub) -> pb.VerifyAuditLogResponse:
    reports: list[pb.VerifyAuditLogResponse] = send(admin, "VerifyAuditLog", pb.VerifyAuditLogRequest())
    return reports[-1]


def test_nothing_is_left_of_an_erased_person(house: House) -> None:
    before = traces(house.dsn, house.person, files=house.data_dir)
    assert {"subjects.user_id", "users.attributes", "audit_documents.document"} <= set(before)
    assert {"idempotency_keys.result", "pg_dump"} <= set(before)

    erased = house.erase(change_reason="asked for it", request_id=str(uuid4()))

    assert traces(house.dsn, house.person, files=house.data_dir) == []
    assert (erased.targets_removed, erased.memberships_removed) == (2, 2)
    assert erased.documents_redacted == DOCUMENTS_OF_A_LIFE


def test_who_read_about_an_erased_person_stays_known_without_the_id(house: House) -> None:
    user = send(house.admin, "GetUser", pb.GetUserRequest(user_id=house.person)).user
    send(house.admin, "ListUsers", pb.ListUsersRequest(user_id_prefix=user.user_id))
    send(house.admin, "ListAuditEntries", pb.ListAuditEntriesRequest())
    send(house.admin, "ExportUserData", pb.ExportUserDataRequest(user_id=house.person))
    (found,) = query(house.dsn, "SELECT subject_id::text FROM subjects WHERE user_id = %s", house.person)

    house.erase()

    assert traces(house.dsn, house.person, files=house.data_dir) == []
    events = send(house.admin, "ListAuthEvents", pb.ListAuthEventsRequest()).auth_events
    kinds = [event.event for event in events if found[0] in event.subject_ids]
    assert kinds == ["user_exported", "audit_entries_listed", "users_listed", "user_read"]


def test_the_audit_log_verifies_and_counts_what_was_redacted(house: House) -> None:
    erased = house.erase()

    report = verified(house.admin)

    assert (report.complete, report.faulty_seq) == (True, 0)
    assert report.redacted_documents == erased.documents_redacted
    assert (report.verified.seq, report.verified.hash) == (erased.audit_anchor.seq, erased.audit_anchor.hash)


def test_every_instance_forgets_targets_memberships_and_attributes(house: House, start_server: StartServer) -> None:
    servers = (house.server, start_server(data_dir=house.data_dir, refresh_interval_s=0.1))
    for segment_key in (BY_PLAN, SEGMENTS[0]):
        flag = Flag(key=f"to-{segment_key}", segment_targets=[SegmentTarget(segment_key=segment_key, value=True)])
        flag.enabled = True
        send(house.admin, "CreateFlag", pb.CreateFlagRequest(flag=flag))
    enabled = pb.UpdateFlagRequest(flag=Flag(key=FLAGS[0], enabled=True), update_mask=FieldMask(paths=["enabled"]))
    revision = send(house.admin, "UpdateFlag", enabled).revision
    keys = [FLAGS[0], f"to-{BY_PLAN}", f"to-{SEGMENTS[0]}"]
    for server in servers:
        assert reasons(server, house.person, keys, revision) == [REASON_TARGETING_MATCH] * 3

    revision = house.erase().revision

    for server in servers:
        assert reasons(server, house.person, keys, revision) == [REASON_DEFAULT] * 3
        snapshot = server.cache.current()
        assert snapshot.targets.find(house.person) == snapshot.members.find(house.person) == {}
        assert UserAttributes(house.person, {}, snapshot.attributes).get("plan") is None


def reasons(server: GatekeeperServer, user_id: str, flag_keys: list[str], revision: int) -> list[int]:
    request = EvaluateFlagsRequest(
        context=EvaluationContext(user_id=user_id), flag_keys=flag_keys, include_details=True, min_revision=revision
    )
    with connect(server) as channel:
        details = EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S).details
    return [details[key].reason for key in flag_keys]


def test_others_keep_what_they_have(house: House) -> None:
    house.erase()

    targets = [send(house.admin, "ListTargets", pb.ListTargetsRequest(flag_key=key)).targets for key in FLAGS]
    assert [[target.user_id for target in each] for each in targets] == [["bob"], ["bob"]]
    request = pb.ListSegmentMembersRequest(segment_key=SEGMENTS[0])
    assert list(send(house.admin, "ListSegmentMembers", request).user_ids) == ["bob"]


# --- Who is named where -----------------------------------------------------------------------------------------------


def test_a_person_who_is_still_named_is_not_erased_and_nothing_is_written(house: House) -> None:
    flag = Flag(key="gamma", tags=["x", house.person])
    send(house.admin, "CreateFlag", pb.CreateFlagRequest(flag=flag))
    condition = Condition(
        attribute="id", operator=CONDITION_OPERATOR_IN, values=[Value(string_value=f"x {house.person}")]
    )
    send(house.admin, "CreateSegment", pb.CreateSegmentRequest(segment=Segment(key="named", conditions=[condition])))
    send(house.admin, "CreateUser", pb.CreateUserRequest(user=user_with("carl", boss=house.person)))
    before = house.contents()

    refused = house.refusal()

    named = {"flag_keys": "gamma", "segment_keys": "named", "user_ids": "carl"}
    assert refused == Refusal(grpc.StatusCode.FAILED_PRECONDITION, "USER_STILL_NAMED", named)
    assert house.contents() == before


@pytest.mark.parametrize("field", ["description", "owner"])
def test_a_flag_that_was_edited_names_nobody_any_more(house: House, field: str) -> None:
    send(house.admin, "CreateFlag", pb.CreateFlagRequest(flag=Flag(key="gamma", **{field: house.person})))  # type: ignore[arg-type]
    assert house.refusal().metadata == {"flag_keys": "gamma"}

    edited = pb.UpdateFlagRequest(flag=Flag(key="gamma"), update_mask=FieldMask(paths=[field]))
    send(house.admin, "UpdateFlag", edited)
    house.erase()

    assert traces(house.dsn, house.person, files=house.data_dir) == []


def test_the_reason_of_an_erasure_must_not_name_the_person(house: House) -> None:
    before = house.contents()

    assert house.refusal(change_reason=f"ticket 7: {house.person}") == invalid("change_reason")
    assert house.contents() == before


def test_ids_that_json_or_patterns_write_in_another_way_are_found(house: House) -> None:
    for user_id in ('quo"te\\d', "tab\there", "übermut", "a+b@c.d", "\x7f\x01", "sp ace", "(ann", "%_"):
        with accepting_any_name():
            send(house.admin, "CreateUser", pb.CreateUserRequest(user=user_with(user_id, self=user_id)))
        named = user_with("carl", boss=user_id)
        send(house.admin, "CreateUser", pb.CreateUserRequest(user=named, change_reason=f"by {user_id}"))
        assert house.refusal(user_id).metadata == {"user_ids": "carl"}, user_id
        send(house.admin, "DeleteUser", pb.DeleteUserRequest(user_id="carl"))

        assert house.erase(user_id).documents_redacted == 3, user_id


def test_one_whose_id_begins_that_of_another_is_erased_alone(house: House) -> None:
    for user_id in ("ann", "annette"):
        known = user_with(user_id, friend="annette")
        send(house.admin, "CreateUser", pb.CreateUserRequest(user=known, change_reason="annette asked"))

    assert house.erase("ann").documents_redacted == 1

    assert send(house.admin, "GetUser", pb.GetUserRequest(user_id="annette")).user.user_id == "annette"


# Words that the server writes: times, variants, operators, roles, kinds, names of fields and keys.
ORDINARY_IDS = ("11", "2026", "00", "on", "off", "IN", "ALL", "admin", "plan", "alpha", "friends", "flag", "key")


@pytest.mark.promise("F4")
@pytest.mark.parametrize("user_id", ORDINARY_IDS)
def test_an_ordinary_word_as_id_is_erased_without_harm_to_others(house: House, user_id: str) -> None:
    condition = Condition(attribute="plan", operator=CONDITION_OPERATOR_IN, values=[Value(string_value="pro")])
    send(house.admin, "CreateSegment", pb.CreateSegmentRequest(segment=Segment(key="on", conditions=[condition])))
    send(house.admin, "CreateUser", pb.CreateUserRequest(user=user_with(user_id)))
    before = dict(query(house.dsn, DOCUMENTS))
    own = max(before)

    preview, erased = house.erase(user_id, validate_only=True), house.erase(user_id)

    assert preview.documents_redacted == erased.documents_redacted == 1
    after = dict(query(house.dsn, DOCUMENTS))
    assert {seq for seq in before if after[seq] != before[seq]} == {own}
    assert verified(house.admin).complete


DOCUMENTS = "SELECT seq, convert_from(document, 'UTF8') FROM audit_documents"


@pytest.mark.promise("F4")
def test_only_what_names_the_person_is_replaced_in_a_document(house: House) -> None:
    query_flag = "SELECT convert_from(document, 'UTF8')::jsonb -> 'after' FROM audit_documents WHERE seq = %s"
    ((seq,),) = query(house.dsn, "SELECT seq FROM audit_log WHERE action = 'CreateFlag' AND resource_key = 'beta'")
    ((before,),) = query(house.dsn, query_flag, seq)

    house.erase()

    ((after,),) = query(house.dsn, query_flag, seq)
    assert after == {**before, "description": "breaks for [erased]"}


@pytest.mark.promise("F4")
def test_a_document_that_named_two_people_loses_one_after_the_other(house: House) -> None:
    for user_id in ("carl", "dora"):
        send(house.admin, "CreateUser", pb.CreateUserRequest(user=user_with(user_id)))
    flag = pb.CreateFlagRequest(flag=Flag(key="gamma"), change_reason="for carl and dora")
    send(house.admin, "CreateFlag", flag)

    erased = [house.erase(user_id).audit_anchor.seq for user_id in ("carl", "dora")]

    (entry,) = send(
        house.admin,
        "ListAuditEntries",
        pb.ListAuditEntriesRequest(resource_type=RESOURCE_TYPE_FLAG, resource_key="gamma"),
    ).audit_entries
    assert json.loads(entry.document)["change_reason"] == "for [erased] and [erased]"
    first, second = entry.redactions
    assert [first.erasure_seq, second.erasure_seq] == erased
    assert (first.old_hash, second.old_hash) == (entry.document_hash, first.new_hash)
    assert second.new_hash == hash_document(entry.salt, entry.document.encode())
    assert entry.redacted
    assert verified(house.admin).complete


ODD_IDS = (
    *(
        "alice\r",
        " ",
        "\t",
        "\n",
        "a  b",
        '"',
        "'",
        "\\",
        "\\n",
        "%",
        "{}",
        "[erased]",
        "erased",
        "ä",
        "\u0301",
        "\u202e",
    ),
    *(
        "\U0001f468\u200d\U0001f469",
        "İ",
        "ß",
        "\x01\x1f",
        "\x7f",
        "a" * 256,
        "é" * 128,
        "-",
        "?",
        "$1",
        "(?i)a",
        "^",
        "#",
    ),
    *(
        "\u2028",
        "\ufeff",
        "</script>",
        "null",
        "0",
        "-0",
        "1e5",
        "2026-11-28",
        "11:11",
        "\ue000",
        "\U0001d49c",
        "\u0663",
    ),
)


@pytest.mark.promise("F4")
def test_every_odd_id_that_is_stored_can_be_exported_and_erased(house: House) -> None:
    named = {user_id: f"x <{user_id}> y" for user_id in ODD_IDS}
    for user_id, reason in named.items():
        user = user_with(user_id, plan="pro")
        with accepting_any_name():
            send(house.admin, "CreateUser", pb.CreateUserRequest(user=user, change_reason=reason))

    for user_id in ODD_IDS:
        (exported, *_) = house.admin.ExportUserData(pb.ExportUserDataRequest(user_id=user_id), timeout=TIMEOUT_S)
        assert exported.user.user.user_id == user_id
        assert house.erase(user_id).documents_redacted >= 1, ascii(user_id)
        assert house.refusal(user_id) == no_user(user_id)
    assert verified(house.admin).complete


def test_a_login_tried_with_the_id_is_cleared(house: House) -> None:
    long_id = f"{house.person}-{'x' * 200}"
    send(house.admin, "CreateUser", pb.CreateUserRequest(user=user_with(long_id)))
    with connect(house.server) as channel:
        for username in (house.person, f"{house.person} ", long_id, "somebody"):
            request = LoginRequest(username=username, password="guessed")
            refusal_of(lambda: AuthServiceStub(channel).Login(request, timeout=TIMEOUT_S))  # noqa: B023
    house.erase(long_id)

    house.erase()

    assert traces(house.dsn, house.person, files=house.data_dir) == []
    events = query(house.dsn, "SELECT username FROM auth_events WHERE event = 'login_failed' ORDER BY event_id")
    assert [username for (username,) in events] == ["[erased]", "[erased] ", "[erased]", "somebody"]


def test_the_events_of_an_account_stay_though_a_person_has_its_name(house: House) -> None:
    ((account,),) = query(house.dsn, "SELECT username FROM admin_user LIMIT 1")
    send(house.admin, "CreateUser", pb.CreateUserRequest(user=user_with(account)))
    with connect(house.server) as channel:
        request = LoginRequest(username=account, password="guessed")
        refusal_of(lambda: AuthServiceStub(channel).Login(request, timeout=TIMEOUT_S))
    before = query(house.dsn, "SELECT * FROM auth_events ORDER BY event_id")

    house.erase(account)

    assert query(house.dsn, "SELECT * FROM auth_events ORDER BY event_id") == before


# --- What a superuser does to the proof -------------------------------------------------------------------------------


def exchange(house: House) -> None:
    with psycopg.connect(house.dsn) as superuser:
        superuser.execute("ALTER TABLE subjects DROP CONSTRAINT subjects_user_id_key")
        superuser.execute(
            "UPDATE subjects SET user_id = CASE user_id WHEN 'carl' THEN 'dora' ELSE 'carl' END"
            " WHERE user_id IN ('carl', 'dora')"
        )


def exchange_with_their_salts(house: House) -> None:
    with psycopg.connect(house.dsn) as superuser:
        superuser.execute("UPDATE subjects SET user_id = user_id || ' ' WHERE user_id IN ('carl', 'dora')")
        superuser.execute(
            "UPDATE subjects s SET user_id = rtrim(o.user_id), salt = o.salt FROM subjects o"
            " WHERE s.user_id <> o.user_id AND s.user_id IN ('carl ', 'dora ') AND o.user_id IN ('carl ', 'dora ')"
        )


def rename(house: House) -> None:
    with psycopg.connect(house.dsn) as superuser:
        superuser.execute("UPDATE subjects SET user_id = 'eve', salt = NULL WHERE user_id = 'carl'")


def forget_who_they_were(house: House) -> None:
    with psycopg.connect(house.dsn) as superuser:
        superuser.execute("ALTER TABLE subject_commitments DISABLE TRIGGER ALL")
        superuser.execute("DELETE FROM subject_commitments WHERE seq = (SELECT max(seq) FROM subject_commitments)")


def delete_document(action: str) -> Callable[[House], None]:
    def delete(house: House) -> None:
        with psycopg.connect(house.dsn) as superuser:
            superuser.execute(
                "DELETE FROM audit_documents WHERE seq = (SELECT max(seq) FROM audit_log WHERE action = %s)", (action,)
            )

    return delete


def claim_a_redaction(house: House) -> None:
    with psycopg.connect(house.dsn) as superuser:
        superuser.execute("ALTER TABLE audit_redactions DISABLE TRIGGER ALL")
        superuser.execute(
            "UPDATE audit_redactions SET new_hash = sha256('x') WHERE seq = (SELECT max(seq) FROM audit_redactions)"
        )


@pytest.mark.promise("D8")
@pytest.mark.parametrize(
    ("tamper", "action", "fault"),
    [
        pytest.param(delete_document("CreateFlag"), "CreateFlag", AUDIT_FAULT_DOCUMENT_MISSING, id="document"),
        pytest.param(delete_document("UpdateUser"), "UpdateUser", AUDIT_FAULT_DOCUMENT_MISSING, id="redacted document"),
        pytest.param(delete_document("EraseUser"), "EraseUser", AUDIT_FAULT_DOCUMENT_MISSING, id="the erasure's own"),
        pytest.param(claim_a_redaction, "UpdateUser", AUDIT_FAULT_DOCUMENT_ALTERED, id="redaction"),
        pytest.param(exchange, "AddTargets", AUDIT_FAULT_SUBJECT_ALTERED, id="two people"),
        pytest.param(exchange_with_their_salts, "AddTargets", AUDIT_FAULT_SUBJECT_ALTERED, id="two with their salts"),
        pytest.param(rename, "AddTargets", AUDIT_FAULT_SUBJECT_ALTERED, id="one renamed"),
        pytest.param(forget_who_they_were, "AddTargets", AUDIT_FAULT_EVIDENCE_ALTERED, id="commitments"),
    ],
)
def test_what_a_superuser_did_to_the_proof_is_named(
    house: House, tamper: Callable[[House], None], action: str, fault: int
) -> None:
    house.erase()
    targets = pb.AddTargetsRequest(flag_key=FLAGS[0], user_ids=["carl", "dora"], value=True)
    send(house.admin, "AddTargets", targets)
    assert verified(house.admin).complete

    tamper(house)

    report = verified(house.admin)
    ((seq,),) = query(house.dsn, "SELECT max(seq) FROM audit_log WHERE action = %s", action)
    assert (report.complete, report.faulty_seq, report.fault) == (False, seq, fault)


def test_whom_an_earlier_release_met_is_counted_as_not_comparable(house: House) -> None:
    assert (verified(house.admin).verified_subjects, verified(house.admin).incomparable_subjects) == (2, 0)
    with psycopg.connect(house.dsn) as earlier_release:
        earlier_release.execute("INSERT INTO subjects (user_id) VALUES ('carl'), ('dora')")
    send(house.admin, "AddTargets", pb.AddTargetsRequest(flag_key=FLAGS[0], user_ids=["carl"], value=True))

    report = verified(house.admin)

    assert (report.complete, report.verified_subjects, report.incomparable_subjects) == (True, 2, 2)


def test_of_an_erased_person_the_commitment_no_longer_says_anything(house: House) -> None:
    ((subject, salt),) = query(house.dsn, "SELECT subject_id, salt FROM subjects WHERE user_id = %s", house.person)

    house.erase()

    ((commitment,),) = query(house.dsn, "SELECT commitment FROM subject_commitments WHERE subject_id = %s", subject)
    assert commitment == hashlib.sha256(salt + house.person.encode()).digest()
    assert traces(house.dsn, salt.hex()) == []
    assert verified(house.admin).complete


# --- Asking again, asking first, asking for nobody, asking without the right ------------------------------------------


def test_a_retry_gets_the_answer_of_the_first_time(house: House) -> None:
    request_id = str(uuid4())
    first = house.erase(request_id=request_id)
    before = house.contents()

    assert house.erase(request_id=request_id) == first
    assert house.contents() == before


def test_a_retry_gets_the_first_answer_even_if_the_person_came_back(house: House) -> None:
    request_id = str(uuid4())
    first = house.erase(request_id=request_id)
    send(house.admin, "CreateUser", pb.CreateUserRequest(user=user_with(house.person)))
    send(house.admin, "CreateFlag", pb.CreateFlagRequest(flag=Flag(key="gamma", owner=house.person)))

    assert house.erase(request_id=request_id) == first


def test_validate_only_counts_and_writes_nothing(house: House) -> None:
    before = house.contents()

    preview = house.erase(validate_only=True)

    assert house.contents() == before
    assert not preview.HasField("audit_anchor")
    assert house.erase().documents_redacted == preview.documents_redacted == DOCUMENTS_OF_A_LIFE


def test_of_whom_nothing_is_held_nothing_is_erased(house: House) -> None:
    before = house.contents()

    assert house.refusal("nobody") == no_user("nobody")
    assert house.refusal("nobody", validate_only=True) == no_user("nobody")
    assert house.contents() == before


def test_a_second_erasure_finds_nobody(house: House) -> None:
    house.erase()

    assert house.refusal() == no_user(house.person)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.EDITOR], ids=lambda role: role.name)
def test_only_an_admin_erases(house: House, role: Role) -> None:
    with connect(house.server, token=token_for(house.dsn, role)) as channel:
        request = pb.EraseUserRequest(user_id=house.person)
        refused = refusal_of(lambda: AdminServiceStub(channel).EraseUser(request, timeout=TIMEOUT_S))

    assert refused == denial(role, Role.ADMIN)


def test_nobody_is_erased_who_cannot_be_remembered_as_erased(house: House) -> None:
    house.ledger.mkdir()
    before = query(house.dsn, "SELECT revision FROM revision_head")

    assert house.refusal().code is grpc.StatusCode.UNAVAILABLE

    assert query(house.dsn, "SELECT revision FROM revision_head") == before
    assert traces(house.dsn, house.person)


# --- Racing -----------------------------------------------------------------------------------------------------------


def test_who_is_added_while_being_erased_is_somebody_new_or_nobody(house: House) -> None:
    def add() -> object:
        targets = pb.AddTargetsRequest(flag_key=FLAGS[0], user_ids=[house.person], value=True)
        return send(house.admin, "AddTargets", targets).revision

    ((old,),) = query(house.dsn, "SELECT subject_id FROM subjects WHERE user_id = %s", house.person)
    for _ in range(5):
        *_, erased = race([add, add, add, lambda: outcome_of(house.erase)])
        assert isinstance(erased, pb.EraseUserResponse)
        stays = query(house.dsn, "SELECT subject_id FROM subjects WHERE user_id = %s", house.person)
        targeted = query(
            house.dsn, "SELECT user_id FROM targeted_users LEFT JOIN subjects USING (subject_id) ORDER BY 1"
        )
        assert {user_id for (user_id,) in targeted} == {"bob", *([house.person] if stays else [])}
        assert (old,) not in stays
        add()
        ((old,),) = query(house.dsn, "SELECT subject_id FROM subjects WHERE user_id = %s", house.person)
    assert verified(house.admin).complete
