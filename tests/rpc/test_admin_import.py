"""ImportTargets: each message whole or not at all, in order, and an honest account of how far it came."""

from collections.abc import Iterator
from threading import Event
from uuid import uuid4

import grpc
import psycopg
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_grpc.cache.refresher import Refresher
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.store.mutations import CHANNEL
from tests.support.clients import (
    TIMEOUT_S,
    Installation,
    Refusal,
    created,
    invalid,
    no_flag,
    refusal_of,
    targets_of,
)


@pytest.fixture
def admin(installation: Installation) -> AdminServiceStub:
    return installation.admin


@pytest.fixture
def key(admin: AdminServiceStub) -> str:
    """The key of an enabled flag without targets."""
    return created(admin, enabled=True).key


def import_(admin: AdminServiceStub, *messages: pb.ImportTargetsRequest) -> pb.ImportTargetsResponse:
    return admin.ImportTargets(iter(messages), timeout=TIMEOUT_S)


def message(
    key: str, *users: str, value: bool = True, request_id: str = "", validate_only: bool = False
) -> pb.ImportTargetsRequest:
    return pb.ImportTargetsRequest(
        flag_key=key, user_ids=users, value=value, request_id=request_id, validate_only=validate_only
    )


def test_each_message_is_one_revision_and_the_answer_adds_them_up(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    before = installation.revision()

    response = import_(
        admin, message(key, "a", "b"), message(key, "b", "c", value=False), message(key, "a", "b", "c", "d")
    )

    assert response == pb.ImportTargetsResponse(
        revision=before + 3,
        applied_messages=3,
        added_count=4,
        moved_count=3,
        audit_anchor=installation.audit_anchor(),
    )
    assert targets_of(admin, key) == dict.fromkeys("abcd", True)
    recorded = (
        "SELECT revision, resource_key FROM audit_log WHERE action = 'ImportTargets' AND revision > %s ORDER BY seq"
    )
    assert installation.query(recorded, before) == [(before + number, key) for number in (1, 2, 3)]


def test_messages_may_be_for_different_flags(admin: AdminServiceStub, key: str) -> None:
    other = created(admin).key

    import_(admin, message(key, "a"), message(other, "b", value=False), message(key, "c"))

    assert (targets_of(admin, key), targets_of(admin, other)) == ({"a": True, "c": True}, {"b": False})


def test_an_import_without_messages_answers_the_current_revision(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    assert import_(admin) == pb.ImportTargetsResponse(revision=installation.revision())


def test_a_message_of_10_000_users_is_evaluated_once_it_is_answered(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    response = import_(admin, message(key, *(f"user-{number}" for number in range(10_000))))

    assert response.added_count == 10_000
    assert [installation.evaluate(key, f"user-{number}").variant for number in (0, 9_999, 10_000)] == [
        "on",
        "on",
        "off",
    ]


def bad(key: str) -> dict[str, tuple[pb.ImportTargetsRequest, Refusal]]:
    """Build messages that cannot be applied, each with why."""
    return {
        "unknown flag": (message("nobody", "a"), no_flag("nobody")),
        "too many users": (message(key, *map(str, range(10_001))), invalid("user_ids")),
        "no users": (message(key), invalid("user_ids")),
        "a bad user after good ones": (message(key, "y", "z", "\0"), invalid("user_ids[2]")),
    }


@pytest.mark.parametrize("fault", bad("").keys())
def test_a_message_that_fails_keeps_those_before_it_and_none_after_it(
    installation: Installation, admin: AdminServiceStub, key: str, fault: str
) -> None:
    failing, refusal = bad(key)[fault]
    before = installation.revision()

    refused = refusal_of(lambda: import_(admin, message(key, "a"), message(key, "b"), failing, message(key, "c")))

    assert refused == refusal.after(applied_messages=2, applied_revision=before + 2)
    assert (targets_of(admin, key), installation.revision()) == ({"a": True, "b": True}, before + 2)
    assert installation.evaluate(key, "b").variant == "on"


def test_an_import_that_cannot_be_shown_says_how_far_it_came(
    installation: Installation, admin: AdminServiceStub, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(_refresher: Refresher, _revision: int) -> None:
        raise Unavailable("not visible")

    monkeypatch.setattr(Refresher, "refresh_after_write", hidden)
    before = installation.revision()

    refusal = refusal_of(lambda: import_(admin, message(key, "a"), message(key, "b")))

    unavailable = Refusal(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", {})
    assert refusal == unavailable.after(applied_messages=2, applied_revision=before + 2)


def test_a_call_sent_again_after_a_failure_applies_only_what_was_missing(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    later = f"{key}later"
    messages = [message(flag, user, request_id=str(uuid4())) for flag, user in ((key, "a"), (key, "b"), (later, "c"))]
    refusal_of(lambda: import_(admin, *messages))
    created(admin, key=later)
    before = installation.revision()

    response = import_(admin, *messages)

    assert response == pb.ImportTargetsResponse(
        revision=before + 1, applied_messages=3, added_count=3, audit_anchor=installation.audit_anchor()
    )
    assert installation.revision() == before + 1


def test_the_answer_names_the_newest_revision_after_a_retried_message(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    old = message(key, "a", request_id=str(uuid4()))
    import_(admin, old)
    created(admin)

    assert import_(admin, message(key, "b"), old).revision == installation.revision()


def test_validate_only_holds_for_its_message_alone(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    before = installation.revision()

    response = import_(admin, message(key, "a"), message(key, "b", validate_only=True), message(key, "c"))

    assert (response.revision, targets_of(admin, key)) == (before + 2, {"a": True, "c": True})


def test_an_import_that_its_client_cancels_leaves_whole_messages_only(
    installation: Installation, admin: AdminServiceStub, key: str
) -> None:
    two_applied, third_sent, over = Event(), Event(), Event()

    def messages() -> Iterator[pb.ImportTargetsRequest]:
        yield batch(key, 0)
        yield batch(key, 1)
        two_applied.wait(TIMEOUT_S)
        yield batch(key, 2)
        third_sent.set()
        over.wait(TIMEOUT_S)

    before = installation.revision()
    with psycopg.connect(installation.dsn, autocommit=True) as conn:
        conn.execute(f"LISTEN {CHANNEL}")
        call = admin.ImportTargets.future(messages())
        list(conn.notifies(timeout=TIMEOUT_S, stop_after=2))
    two_applied.set()
    third_sent.wait(TIMEOUT_S)
    call.cancel()
    over.set()

    ((users, messages_applied),) = installation.query(APPLIED, before)
    assert (users, messages_applied) in ((1_000, 2), (1_500, 3))
    assert call.code() is grpc.StatusCode.CANCELLED


APPLIED = """
    SELECT (SELECT count(*) FROM targeted_users JOIN change_log ON subject_id = ANY(subjects) WHERE revision > head),
           (SELECT count(*) FROM audit_log WHERE revision > head)
    FROM (VALUES (%s)) AS known (head)
"""


def batch(key: str, number: int) -> pb.ImportTargetsRequest:
    return message(key, *(f"{key}{number}-{user}" for user in range(500)))
