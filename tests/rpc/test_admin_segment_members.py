"""AddSegmentMembers, RemoveSegmentMembers, ListSegmentMembers: who is a member, what is counted, what evaluation makes
of it; and of a stream each message whole or not at all, with an honest account of how far it came.
"""

from collections.abc import Iterator
from threading import Event, Semaphore
from uuid import uuid4

import grpc
import psycopg
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import (
    REASON_DEFAULT,
    REASON_TARGETING_MATCH,
    EvaluationContext,
    EvaluationDetail,
)
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import SegmentTarget
from gatekeeper_client.v1.segment_pb2 import Segment
from gatekeeper_grpc.domain.commands import MemberEdit
from gatekeeper_grpc.domain.mutation import Intent, Written
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.members import MemberStore
from gatekeeper_grpc.store.mutations import CHANNEL
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from gatekeeper_grpc.transport.admission import PoolName
from tests.support.clients import (
    TIMEOUT_S,
    Installation,
    Refusal,
    created,
    invalid,
    new_key,
    no_segment,
    refusal_of,
)
from tests.support.servers import KEYS, connect, settings_for_tests
from tests.support.waiting import eventually

USERS_IN_ORDER = ["10", "9", "A", "Zoë", "a", "zo", "é", "я", "ﬀ", "\U0001f389"]


@pytest.fixture
def admin(installation: Installation) -> AdminServiceStub:
    return installation.admin


@pytest.fixture
def key(admin: AdminServiceStub) -> str:
    """The key of a segment without members and conditions."""
    return admin.CreateSegment(pb.CreateSegmentRequest(segment=Segment(key=new_key()))).segment.key


@pytest.fixture
def flag(admin: AdminServiceStub, key: str) -> str:
    """The key of a flag that is on for the segment."""
    return created(admin, enabled=True, segment_targets=[SegmentTarget(segment_key=key, value=True)]).key


def add(admin: AdminServiceStub, *messages: pb.AddSegmentMembersRequest) -> pb.AddSegmentMembersResponse:
    return admin.AddSegmentMembers(iter(messages), timeout=TIMEOUT_S)


def message(key: str, *users: str, request_id: str = "", validate_only: bool = False) -> pb.AddSegmentMembersRequest:
    return pb.AddSegmentMembersRequest(
        segment_key=key, user_ids=users, request_id=request_id, validate_only=validate_only
    )


def remove(admin: AdminServiceStub, key: str, *users: str) -> pb.RemoveSegmentMembersResponse:
    return admin.RemoveSegmentMembers(pb.RemoveSegmentMembersRequest(segment_key=key, user_ids=users))


def members_of(admin: AdminServiceStub, key: str) -> list[str]:
    page = admin.ListSegmentMembers(pb.ListSegmentMembersRequest(segment_key=key, page_size=1_000))
    return list(page.user_ids)


# --- Adding, removing, listing ---------------------------------------------------------------------------------------

ADDITIONS = {
    "new ones": ([], ["a", "b"], 2, ["a", "b"]),
    "the same again": (["a"], ["a"], 0, ["a"]),
    "some of each": (["a", "x"], ["a", "b", "c"], 2, ["a", "b", "c", "x"]),
}


@pytest.mark.parametrize(("before", "users", "added", "after"), ADDITIONS.values(), ids=ADDITIONS.keys())
def test_adding_members_counts_who_is_new(
    installation: Installation, key: str, *, before: list[str], users: list[str], added: int, after: list[str]
) -> None:
    admin = installation.admin
    for user in before:
        add(admin, message(key, user))

    response = add(admin, message(key, *users))

    assert (response.revision, response.applied_messages) == (installation.revision(), 1)
    assert (response.added_count, members_of(admin, key)) == (added, after)


REMOVALS = {
    "all": (["a", "b"], 2, []),
    "some": (["a"], 1, ["b"]),
    "some, and some who were not": (["a", "zoe"], 1, ["b"]),
    "none": (["zoe"], 0, ["a", "b"]),
}


@pytest.mark.parametrize(("users", "removed", "after"), REMOVALS.values(), ids=REMOVALS.keys())
def test_removing_members_counts_who_was_one(
    installation: Installation, key: str, users: list[str], removed: int, after: list[str]
) -> None:
    admin = installation.admin
    add(admin, message(key, "a", "b"))

    response = remove(admin, key, *users)

    assert (response.revision, response.removed_count) == (installation.revision(), removed)
    assert members_of(admin, key) == after


def test_members_of_one_segment_are_not_those_of_another(admin: AdminServiceStub, key: str) -> None:
    other = admin.CreateSegment(pb.CreateSegmentRequest(segment=Segment(key=new_key()))).segment.key
    add(admin, message(key, "anna"), message(other, "anna", "bob"))

    remove(admin, other, "anna")

    assert (members_of(admin, key), members_of(admin, other)) == (["anna"], ["bob"])


def test_every_edit_of_members_is_evaluated_by_the_time_it_is_answered(
    installation: Installation, admin: AdminServiceStub, key: str, flag: str
) -> None:
    seen = []
    for edit in (lambda: add(admin, message(key, "anna", "bob")), lambda: remove(admin, key, "anna")):
        edit()
        seen += [installation.evaluate(flag, user) for user in ("anna", "bob")]

    is_in = EvaluationDetail(value=True, variant="on", reason=REASON_TARGETING_MATCH, segment_key=key)
    is_out = EvaluationDetail(value=False, variant="off", reason=REASON_DEFAULT)
    assert seen == [is_in, is_in, is_out, is_in]


def test_an_edit_of_members_keeps_etag_revision_and_time_of_the_segment(admin: AdminServiceStub, key: str) -> None:
    expected = admin.GetSegment(pb.GetSegmentRequest(key=key)).segment
    expected.member_count = 1

    add(admin, message(key, "anna", "bob"))
    remove(admin, key, "bob")

    assert admin.GetSegment(pb.GetSegmentRequest(key=key)).segment == expected


@pytest.mark.parametrize("page_size", [1, 3, 10, 0])
def test_pages_of_members_together_are_all_of_them_in_byte_order(
    installation: Installation, admin: AdminServiceStub, key: str, page_size: int
) -> None:
    add(admin, message(key, *reversed(USERS_IN_ORDER)))
    request = pb.ListSegmentMembersRequest(segment_key=key, page_size=page_size)
    users: list[str] = []
    while True:
        page = admin.ListSegmentMembers(request)
        assert page.revision == installation.revision()
        users += page.user_ids
        request.page_token = page.next_page_token
        if not request.page_token:
            break

    assert users == USERS_IN_ORDER


BAD_USERS: dict[str, tuple[list[str], str]] = {
    "none": ([], "user_ids"),
    "an empty one": (["a", ""], "user_ids[1]"),
    "a long one": (["x" * 257], "user_ids[0]"),
    "one with NUL": (["a", "b", "\0"], "user_ids[2]"),
    "one twice": (["a", "b", "a"], "user_ids[2]"),
    "1,001": ([str(number) for number in range(1_001)], "user_ids"),
}


@pytest.mark.parametrize(("users", "field"), BAD_USERS.values(), ids=BAD_USERS.keys())
def test_bad_users_are_refused_and_nobody_is_removed(
    admin: AdminServiceStub, key: str, users: list[str], field: str
) -> None:
    add(admin, message(key, "a"))

    assert refusal_of(lambda: remove(admin, key, *users)) == invalid(field)
    assert members_of(admin, key) == ["a"]


def test_members_of_an_unknown_segment_are_not_an_empty_list(admin: AdminServiceStub) -> None:
    assert refusal_of(lambda: members_of(admin, "nobody")) == no_segment("nobody")


@pytest.mark.parametrize("field", ["segment_key", "page_size", "page_token"])
def test_a_bad_listing_is_refused(admin: AdminServiceStub, key: str, field: str) -> None:
    bad = {"segment_key": "a key", "page_size": 1_001, "page_token": "made-up"}
    request = pb.ListSegmentMembersRequest(**{"segment_key": key, field: bad[field]})  # type: ignore[arg-type]

    assert refusal_of(lambda: admin.ListSegmentMembers(request)) == invalid(field)


def test_another_instance_sees_member_edits_without_a_whole_load(
    installation: Installation, admin: AdminServiceStub, key: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: SnapshotStore) -> Snapshot:
        raise AssertionError("loads everything")

    other = GatekeeperServer(settings_for_tests(), dsn=installation.dsn, keys=KEYS)
    other.start()
    monkeypatch.setattr(SnapshotStore, "load", load)
    seen = []
    try:
        for edit in (lambda: add(admin, message(key, "anna", "bob")), lambda: remove(admin, key, "anna")):
            edit()
            seen += [evaluated_now(installation, flag, user, on=other) for user in ("anna", "bob", "cleo")]
    finally:
        other.stop()

    assert seen == [True, True, False, False, True, False]


# --- The stream ------------------------------------------------------------------------------------------------------


def test_each_message_is_one_revision_and_the_answer_adds_them_up(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    before = installation.revision()

    response = add(admin, message(key, "a", "b"), message(key, "b", "c"), message(key, "a", "b", "c", "d"))

    totals = (response.revision, response.applied_messages, response.added_count)
    assert (totals, members_of(admin, key)) == ((before + 3, 3, 4), ["a", "b", "c", "d"])
    recorded = (
        "SELECT revision, seq, hash FROM audit_log WHERE action = 'AddSegmentMembers' AND revision > %s ORDER BY 1"
    )
    entries = installation.query(recorded, before)
    assert [revision for revision, _, _ in entries] == [before + number for number in (1, 2, 3)]
    assert (response.audit_anchor.seq, response.audit_anchor.hash) == entries[-1][1:]


def test_a_stream_without_messages_answers_the_current_revision(
    installation: Installation, admin: AdminServiceStub
) -> None:
    assert add(admin) == pb.AddSegmentMembersResponse(revision=installation.revision())


def test_a_message_takes_10_000_users(installation: Installation, admin: AdminServiceStub, key: str, flag: str) -> None:
    response = add(admin, message(key, *(f"user-{number}" for number in range(10_000))))

    assert response.added_count == 10_000
    assert [installation.evaluate(flag, f"user-{number}").value for number in (0, 9_999, 10_000)] == [True, True, False]


def bad(key: str) -> dict[str, tuple[pb.AddSegmentMembersRequest, Refusal]]:
    """Build messages that cannot be applied, each with why."""
    return {
        "unknown segment": (message("nobody", "a"), no_segment("nobody")),
        "bad key": (message("a key", "a"), invalid("segment_key")),
        "too many users": (message(key, *map(str, range(10_001))), invalid("user_ids")),
        "no users": (message(key), invalid("user_ids")),
        "a bad user after good ones": (message(key, "y", "z", "\0"), invalid("user_ids[2]")),
        "a bad request id": (message(key, "y", request_id="x"), invalid("request_id")),
    }


@pytest.mark.parametrize("fault", bad("").keys())
def test_a_message_that_fails_keeps_those_before_it_and_none_after_it(
    installation: Installation, admin: AdminServiceStub, key: str, flag: str, fault: str
) -> None:
    failing, refusal = bad(key)[fault]
    before = installation.revision()

    refused = refusal_of(lambda: add(admin, message(key, "a"), message(key, "b"), failing, message(key, "c")))

    progress = {"applied_messages": "2", "applied_revision": str(before + 2)}
    assert refused == Refusal(refusal.code, refusal.reason, {**refusal.metadata, **progress}, refusal.fields)
    assert (members_of(admin, key), installation.revision()) == (["a", "b"], before + 2)
    assert installation.evaluate(flag, "b").value


def test_a_call_sent_again_after_a_failure_applies_only_what_was_missing(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    later = f"{key}later"
    messages = [message(name, user, request_id=str(uuid4())) for name, user in ((key, "a"), (key, "b"), (later, "c"))]
    refusal_of(lambda: add(admin, *messages))
    admin.CreateSegment(pb.CreateSegmentRequest(segment=Segment(key=later)))
    before = installation.revision()

    response = add(admin, *messages)

    assert (response.revision, response.applied_messages, response.added_count) == (before + 1, 3, 3)
    assert installation.revision() == before + 1


def test_the_answer_names_the_newest_revision_after_a_retried_message(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    old = message(key, "a", request_id=str(uuid4()))
    add(admin, old)

    response = add(admin, message(key, "b"), old)

    ((seq, hash_),) = installation.query("SELECT audit_seq, audit_hash FROM revision_head")
    anchor = response.audit_anchor
    assert (response.revision, anchor.seq, anchor.hash) == (installation.revision(), seq, hash_)


def test_validate_only_holds_for_its_message_alone(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    before = installation.revision()

    response = add(admin, message(key, "a"), message(key, "b", validate_only=True), message(key, "c"))

    assert (response.revision, members_of(admin, key)) == (before + 2, ["a", "c"])


BATCHES, BATCH = 5, 10_000


def test_a_cancelled_stream_leaves_whole_messages_that_are_evaluated(
    installation: Installation, admin: AdminServiceStub, key: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client hangs up while the third of five messages is being applied: nobody would learn of that one."""
    begun, over = Semaphore(0), Event()
    apply = MemberStore.add

    def tell_and_apply(store: MemberStore, edit: MemberEdit, intent: Intent) -> Written[int]:
        begun.release()
        return apply(store, edit, intent)

    def batches() -> Iterator[pb.AddSegmentMembersRequest]:
        for number in range(3):
            yield message(key, *(f"{number}-{user}" for user in range(BATCH)))
        over.wait(TIMEOUT_S)
        for number in range(3, BATCHES):
            yield message(key, *(f"{number}-{user}" for user in range(BATCH)))

    monkeypatch.setattr(MemberStore, "add", tell_and_apply)
    with psycopg.connect(installation.dsn, autocommit=True) as conn:
        conn.execute(f"LISTEN {CHANNEL}")
        call = admin.AddSegmentMembers.future(batches())
        assert all(begun.acquire(timeout=TIMEOUT_S) for _ in range(3))
        call.cancel()
        over.set()
        list(conn.notifies(timeout=TIMEOUT_S, stop_after=2))
    assert eventually(lambda: installation.server.pools[PoolName.ADMIN_STREAMS].in_flight == 0)

    assert call.code() is grpc.StatusCode.CANCELLED
    assert installation.query(MEMBERS_BY_MESSAGE, key) == [(str(number), BATCH) for number in range(2)]
    last_users = [f"{number}-{BATCH - 1}" for number in range(BATCHES)]
    seen = [evaluated_now(installation, flag, user, on=installation.server) for user in last_users]
    assert seen == [True, True, False, False, False]


MEMBERS_BY_MESSAGE = """
    SELECT split_part(user_id, '-', 1), count(*) FROM segment_members JOIN segments USING (segment_id)
    JOIN subjects USING (subject_id) WHERE key = %s GROUP BY 1 ORDER BY 1
"""


def evaluated_now(installation: Installation, flag: str, user_id: str, *, on: GatekeeperServer) -> bool:
    """Evaluate on an instance, as soon as it serves the revision that the database has."""
    assert on.cache.wait_for_revision(installation.revision(), timeout_s=TIMEOUT_S)
    request = EvaluateFlagsRequest(context=EvaluationContext(user_id=user_id), flag_keys=[flag])
    with connect(on) as channel:
        return EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S).flags[flag]
