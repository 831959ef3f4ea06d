"""What holds for every mutation of segments alike: one revision and record each, rehearsals, etags, retries, roles."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper.v1.segment_pb2 import CONDITION_OPERATOR_EXISTS, Condition, Segment
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.store import members as member_store
from gatekeeper_grpc.store import segments as segment_store
from tests.rpc.asking import (
    SERVICE,
    UNAUTHENTICATED,
    Installation,
    Refusal,
    changed_since_read,
    contents,
    execute,
    installed,
    invalid,
    new_key,
    no_segment,
    outcome_of,
    query,
    race,
    refusal_of,
    send,
)

MEMBER = "anna"
RACERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentMutation:
    """An RPC that changes something, with a request that succeeds on a segment of which `MEMBER` is a member."""

    rpc: str
    example: Callable[[str], Any]
    resource: str
    change: str

    def ask(self, admin: AdminServiceStub, key: str, *, etag: str = "", **fields: object) -> Any:
        """Send the example for the segment `key`, with an etag where this RPC has it and other fields set."""
        request = self.example(key)
        if etag:
            (request.segment if self.rpc == "UpdateSegment" else request).etag = etag
        for name, value in fields.items():
            setattr(request, name, value)
        return send(admin, self.rpc, request)

    def refused(self, refusal: Refusal) -> Refusal:
        """Return a refusal as this RPC words it when nothing was applied: a stream tells how far it had come."""
        progress = {"applied_messages": "0", "applied_revision": "0"} if self.rpc == "AddSegmentMembers" else {}
        return Refusal(refusal.code, refusal.reason, {**refusal.metadata, **progress}, refusal.fields)


_EXAMPLES = (
    SegmentMutation(
        rpc="CreateSegment",
        example=lambda key: pb.CreateSegmentRequest(
            segment=Segment(key=f"{key}new", conditions=[Condition(attribute="a", operator=CONDITION_OPERATOR_EXISTS)])
        ),
        resource="segment",
        change="created",
    ),
    SegmentMutation(
        rpc="UpdateSegment",
        example=lambda key: pb.UpdateSegmentRequest(
            segment=Segment(key=key, description="changed"), update_mask=FieldMask(paths=["description"])
        ),
        resource="segment",
        change="updated",
    ),
    SegmentMutation(
        rpc="DeleteSegment",
        example=lambda key: pb.DeleteSegmentRequest(key=key),
        resource="segment",
        change="deleted",
    ),
    SegmentMutation(
        rpc="AddSegmentMembers",
        example=lambda key: pb.AddSegmentMembersRequest(segment_key=key, user_ids=["bob", MEMBER]),
        resource="members",
        change="updated",
    ),
    SegmentMutation(
        rpc="RemoveSegmentMembers",
        example=lambda key: pb.RemoveSegmentMembersRequest(segment_key=key, user_ids=["bob", MEMBER]),
        resource="members",
        change="updated",
    ),
)
MUTATIONS: Mapping[str, SegmentMutation] = MappingProxyType({mutation.rpc: mutation for mutation in _EXAMPLES})
EACH = pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
# Those that change a segment that is there, and take its etag.
ON_A_SEGMENT = pytest.mark.parametrize("mutation", _EXAMPLES[1:], ids=[mutation.rpc for mutation in _EXAMPLES[1:]])


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    with installed(postgres) as installation:
        yield installation


@pytest.fixture
def fresh(postgres: str) -> Iterator[Installation]:
    """An installation whose admin users a test may change."""
    with installed(postgres) as installation:
        yield installation


@pytest.fixture
def admin(installation: Installation) -> AdminServiceStub:
    return installation.admin


@pytest.fixture
def segment(admin: AdminServiceStub) -> Segment:
    return segment_to_mutate(admin, new_key())


@pytest.fixture
def request_id() -> str:
    return str(uuid4())


def segment_to_mutate(admin: AdminServiceStub, key: str) -> Segment:
    """Create a segment on which every mutation's example succeeds."""
    admin.CreateSegment(pb.CreateSegmentRequest(segment=Segment(key=key)))
    send(admin, "AddSegmentMembers", pb.AddSegmentMembersRequest(segment_key=key, user_ids=[MEMBER]))
    return admin.GetSegment(pb.GetSegmentRequest(key=key)).segment


def test_every_mutation_of_segments_is_in_the_table() -> None:
    mutating = {
        rpc.name for rpc in SERVICE.methods if "Segment" in rpc.name and "request_id" in rpc.input_type.fields_by_name
    }

    assert mutating == MUTATIONS.keys()


# --- One revision, one record ----------------------------------------------------------------------------------------

RECORDED = """
    SELECT revision, actor, action, a.resource_type, resource_key, c.resource_type, c.change_type, c.key
    FROM audit_log a FULL JOIN change_log c USING (revision) WHERE revision > %s ORDER BY seq
"""
HEAD = "SELECT audit_seq, audit_hash FROM revision_head"


@EACH
def test_a_mutation_is_the_next_revision_with_one_audit_entry_and_one_change(
    installation: Installation, segment: Segment, mutation: SegmentMutation
) -> None:
    before = installation.revision()

    response = mutation.ask(installation.admin, segment.key)

    key = f"{segment.key}new" if mutation.rpc == "CreateSegment" else segment.key
    audited = ("admin:editor", mutation.rpc, mutation.resource, key)
    changed = (mutation.resource, mutation.change, key)
    assert query(installation.dsn, RECORDED, before) == [(before + 1, *audited, *changed)]
    assert response.revision == installation.revision() == before + 1
    assert query(installation.dsn, HEAD) == [(response.audit_anchor.seq, response.audit_anchor.hash)]


@EACH
def test_a_mutation_that_fails_writes_nothing(
    installation: Installation, segment: Segment, mutation: SegmentMutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation has done all its own writing when the fault strikes: recording it."""

    def fault(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("gatekeeper_grpc.store.ledger._record", fault)
    before = contents(installation.dsn)

    refusal = refusal_of(lambda: mutation.ask(installation.admin, segment.key))

    assert (refusal.reason, contents(installation.dsn)) == ("INTERNAL", before)


DOCUMENT = "SELECT document FROM audit_documents JOIN audit_log USING (seq) WHERE revision = %s"
SUBJECTS = "SELECT user_id, subject_id::text FROM subjects WHERE user_id = ANY(%s)"


def document_of(installation: Installation, revision: int) -> Any:
    ((document,),) = query(installation.dsn, DOCUMENT, revision)
    return json.loads(document)


@EACH
def test_the_audit_entry_tells_the_change_reason(
    installation: Installation, segment: Segment, mutation: SegmentMutation
) -> None:
    reason = 'Because "they" said so — 因為 🎉'

    response = mutation.ask(installation.admin, segment.key, change_reason=reason)

    assert document_of(installation, response.revision)["change_reason"] == reason


def test_the_audit_log_tells_segments_in_full_before_and_after(installation: Installation, segment: Segment) -> None:
    revisions = {rpc: MUTATIONS[rpc].ask(installation.admin, segment.key).revision for rpc in SEGMENT_RPCS}

    documents = {rpc: document_of(installation, revision) for rpc, revision in revisions.items()}

    created, updated, deleted = (documents[rpc] for rpc in SEGMENT_RPCS)
    condition = {"attribute": "a", "operator": "EXISTS", "values": [], "negate": False}
    assert created["before"] is None
    assert created["after"].items() >= {"key": f"{segment.key}new", "conditions": [condition], "match": "ALL"}.items()
    assert [updated[side]["description"] for side in ("before", "after")] == ["", "changed"]
    assert (deleted["before"], deleted["after"]) == (updated["after"], None)


SEGMENT_RPCS = ("CreateSegment", "UpdateSegment", "DeleteSegment")


def test_the_audit_log_tells_members_as_deltas_by_subject_id(installation: Installation, segment: Segment) -> None:
    """Of two users one is a member already, so one is added; then both are removed."""
    added = MUTATIONS["AddSegmentMembers"].ask(installation.admin, segment.key)
    removed = MUTATIONS["RemoveSegmentMembers"].ask(installation.admin, segment.key)

    subjects = dict(query(installation.dsn, SUBJECTS, [MEMBER, "bob"]))
    assert document_of(installation, added.revision) == {"added": [subjects["bob"]], "change_reason": ""}
    assert document_of(installation, removed.revision)["removed"] == sorted(subjects.values())


# --- validate_only ---------------------------------------------------------------------------------------------------


def would_be(response: Any) -> Any:
    """Return an answer less what only a write can decide."""
    decided = type(response)()
    decided.CopyFrom(response)
    for field in ("revision", "audit_anchor"):
        decided.ClearField(field)
    if hasattr(decided, "segment"):
        for field in ("etag", "revision", "create_time", "update_time"):
            decided.segment.ClearField(field)
    return decided


@EACH
def test_validate_only_answers_what_would_be_and_writes_nothing(
    installation: Installation, segment: Segment, mutation: SegmentMutation
) -> None:
    before = contents(installation.dsn)

    rehearsed = mutation.ask(installation.admin, segment.key, validate_only=True)

    assert contents(installation.dsn) == before
    assert (rehearsed.revision, rehearsed.HasField("audit_anchor")) == (installation.revision(), False)
    assert would_be(rehearsed) == would_be(mutation.ask(installation.admin, segment.key))


def test_validate_only_of_an_update_answers_the_current_etag_revision_and_times(
    installation: Installation, segment: Segment
) -> None:
    expected = Segment()
    expected.CopyFrom(segment)
    expected.description = "changed"

    response = MUTATIONS["UpdateSegment"].ask(installation.admin, segment.key, validate_only=True)

    assert response == pb.UpdateSegmentResponse(segment=expected, revision=installation.revision())


def test_validate_only_of_a_creation_answers_no_etag_and_no_revision(
    installation: Installation, segment: Segment
) -> None:
    response = MUTATIONS["CreateSegment"].ask(installation.admin, segment.key, validate_only=True)

    assert (response.segment.etag, response.segment.revision) == ("", 0)


@pytest.mark.parametrize("validate_only", [True, False])
@ON_A_SEGMENT
def test_an_unknown_segment_is_refused_validated_or_not(
    admin: AdminServiceStub, mutation: SegmentMutation, validate_only: bool
) -> None:
    refusal = refusal_of(lambda: mutation.ask(admin, "nobody", validate_only=validate_only))

    assert refusal == mutation.refused(no_segment("nobody"))


# --- etag ------------------------------------------------------------------------------------------------------------


@ON_A_SEGMENT
def test_a_mutation_with_the_current_etag_succeeds(
    installation: Installation, segment: Segment, mutation: SegmentMutation
) -> None:
    response = mutation.ask(installation.admin, segment.key, etag=segment.etag)

    assert response.revision == installation.revision()


@pytest.mark.parametrize("validate_only", [True, False])
@ON_A_SEGMENT
def test_a_mutation_with_a_stale_etag_is_refused_naming_the_current_one_and_writes_nothing(
    installation: Installation, segment: Segment, mutation: SegmentMutation, validate_only: bool
) -> None:
    current = MUTATIONS["UpdateSegment"].ask(installation.admin, segment.key).segment
    before = contents(installation.dsn)

    refusal = refusal_of(
        lambda: mutation.ask(installation.admin, segment.key, etag=segment.etag, validate_only=validate_only)
    )

    assert refusal == mutation.refused(changed_since_read(current_etag=current.etag))
    assert contents(installation.dsn) == before


@ON_A_SEGMENT
def test_without_the_check_a_stale_etag_overwrites_what_its_sender_never_saw(
    installation: Installation, segment: Segment, mutation: SegmentMutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test before."""

    def unchecked(conn: Any, key: str, _etag: str) -> Any:
        return segment_store.find_segment(conn, key)

    for store in (segment_store, member_store):
        monkeypatch.setattr(store, "checked_segment", unchecked)
    MUTATIONS["UpdateSegment"].ask(installation.admin, segment.key)

    outcome = outcome_of(lambda: mutation.ask(installation.admin, segment.key, etag=segment.etag))

    assert not isinstance(outcome, Refusal)


# --- request_id ------------------------------------------------------------------------------------------------------


@EACH
def test_a_retry_gets_the_first_answer_and_changes_nothing(
    installation: Installation, segment: Segment, request_id: str, mutation: SegmentMutation
) -> None:
    first = mutation.ask(installation.admin, segment.key, request_id=request_id)
    before = contents(installation.dsn)

    again = mutation.ask(installation.admin, segment.key, request_id=request_id)

    assert (again, contents(installation.dsn)) == (first, before)


@EACH
def test_racing_retries_act_once_and_get_the_same_answer(
    installation: Installation, segment: Segment, request_id: str, mutation: SegmentMutation
) -> None:
    before = installation.revision()

    answers = race([partial(mutation.ask, installation.admin, segment.key, request_id=request_id)] * RACERS)

    assert answers == [answers[0]] * RACERS
    assert installation.revision() == before + 1


@EACH
def test_another_body_under_the_same_id_is_refused_and_changes_nothing(
    installation: Installation, segment: Segment, request_id: str, mutation: SegmentMutation
) -> None:
    mutation.ask(installation.admin, segment.key, request_id=request_id)
    before = contents(installation.dsn)

    refusal = refusal_of(
        lambda: mutation.ask(installation.admin, segment.key, request_id=request_id, change_reason="another")
    )

    assert (refusal, contents(installation.dsn)) == (mutation.refused(invalid("request_id")), before)


@ON_A_SEGMENT
def test_a_retry_is_recognised_before_its_etag_is_found_stale(
    admin: AdminServiceStub, segment: Segment, request_id: str, mutation: SegmentMutation
) -> None:
    first = mutation.ask(admin, segment.key, request_id=request_id, etag=segment.etag)
    outcome_of(lambda: MUTATIONS["UpdateSegment"].ask(admin, segment.key))

    assert mutation.ask(admin, segment.key, request_id=request_id, etag=segment.etag) == first


# --- Roles -----------------------------------------------------------------------------------------------------------

READS: Mapping[str, Callable[[str], Any]] = {
    "GetSegment": lambda key: pb.GetSegmentRequest(key=key),
    "ListSegments": lambda _key: pb.ListSegmentsRequest(),
    "ListSegmentMembers": lambda key: pb.ListSegmentMembersRequest(segment_key=key),
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("rpc", READS)
def test_every_role_reads(installation: Installation, segment: Segment, rpc: str, role: Role) -> None:
    admin = AdminServiceStub(installation.channels[role])

    assert send(admin, rpc, READS[rpc](segment.key)).revision == installation.revision()


@pytest.mark.parametrize("rpc", READS)
def test_nobody_reads_without_a_token(installation: Installation, segment: Segment, rpc: str) -> None:
    anonymous = AdminServiceStub(installation.channels[None])

    assert refusal_of(lambda: send(anonymous, rpc, READS[rpc](segment.key))) == UNAUTHENTICATED


@EACH
def test_whoever_is_kept_out_changes_nothing_and_an_admin_may_what_an_editor_may(
    installation: Installation, segment: Segment, mutation: SegmentMutation
) -> None:
    before = contents(installation.dsn)
    outcomes = [
        outcome_of(partial(mutation.ask, AdminServiceStub(installation.channels[caller]), segment.key))
        for caller in (None, Role.VIEWER)
    ]

    roles = {"role": "VIEWER", "required_role": "EDITOR"}
    denied = Refusal(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", roles)
    assert (outcomes, contents(installation.dsn)) == ([UNAUTHENTICATED, denied], before)
    highest = AdminServiceStub(installation.channels[Role.ADMIN])
    assert mutation.ask(highest, segment.key).revision == installation.revision()


def test_an_admin_user_who_was_disabled_is_stopped_in_the_next_mutation(fresh: Installation) -> None:
    key = segment_to_mutate(fresh.admin, new_key()).key
    execute(fresh.dsn, "UPDATE admin_user SET enabled = false WHERE username = 'editor'")
    before = contents(fresh.dsn)

    outcomes = {rpc: outcome_of(partial(mutation.ask, fresh.admin, key)) for rpc, mutation in MUTATIONS.items()}

    assert outcomes == {rpc: mutation.refused(UNAUTHENTICATED) for rpc, mutation in MUTATIONS.items()}
    assert contents(fresh.dsn) == before
