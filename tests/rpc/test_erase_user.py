"""EraseUser: nothing is left of a person, and nothing else is lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Value

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper.v1.evaluation_pb2 import REASON_DEFAULT, REASON_TARGETING_MATCH, EvaluationContext
from gatekeeper.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper.v1.segment_pb2 import CONDITION_OPERATOR_IN, Condition, Segment
from gatekeeper_grpc.domain.attribute_index import UserAttributes
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from tests.support.clients import TIMEOUT_S, Refusal, denial, invalid, no_user, outcome_of, race, refusal_of, send
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
        rows.append(query(self.dsn, "SELECT seq FROM audit_documents ORDER BY 1"))
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
