"""`request_id`: a request sent again gets the first answer and changes nothing, however it came to be sent again."""

from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.caller import Role
from tests.rpc.asking import (
    EACH_MUTATION,
    MUTATIONS,
    Installation,
    Mutation,
    created,
    flag_to_mutate,
    installed,
    invalid,
    new_key,
    no_flag,
    outcome_of,
    race,
    refusal_of,
)

RACERS = 8


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    with installed(postgres) as installation:
        yield installation


@pytest.fixture
def admin(installation: Installation) -> AdminServiceStub:
    return installation.admin


@pytest.fixture
def flag(admin: AdminServiceStub) -> Flag:
    return flag_to_mutate(admin)


@pytest.fixture
def request_id() -> str:
    return str(uuid4())


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off what the promises here rest on: that earlier answers are looked up."""
    monkeypatch.setattr("gatekeeper_grpc.store.ledger._earlier_answer", lambda *_: None)


@EACH_MUTATION
def test_a_retry_gets_the_first_answer_and_changes_nothing(
    installation: Installation, flag: Flag, request_id: str, mutation: Mutation
) -> None:
    first = mutation.ask(installation.admin, flag.key, request_id=request_id)
    before = installation.contents()

    again = mutation.ask(installation.admin, flag.key, request_id=request_id)

    assert (again, installation.contents()) == (first, before)


@pytest.mark.usefixtures("forgetful")
@EACH_MUTATION
def test_without_the_look_up_a_retry_gets_another_answer(
    admin: AdminServiceStub, flag: Flag, request_id: str, mutation: Mutation
) -> None:
    """The twin of the test before."""
    first = mutation.ask(admin, flag.key, request_id=request_id)

    assert outcome_of(lambda: mutation.ask(admin, flag.key, request_id=request_id)) != first


def answers_and_revisions(installation: Installation, act: Callable[[], object]) -> tuple[list[object], int]:
    """Let `RACERS` do the same thing at once; return their different outcomes, and how many revisions they made."""
    before = installation.revision()
    outcomes = race([lambda: outcome_of(act)] * RACERS)
    different = [outcome for place, outcome in enumerate(outcomes) if outcome not in outcomes[:place]]
    return different, installation.revision() - before


@EACH_MUTATION
def test_racing_retries_act_once_and_get_the_same_answer(
    installation: Installation, flag: Flag, request_id: str, mutation: Mutation
) -> None:
    answers, revisions = answers_and_revisions(
        installation, lambda: mutation.ask(installation.admin, flag.key, request_id=request_id)
    )

    assert (answers, revisions) == ([mutation.ask(installation.admin, flag.key, request_id=request_id)], 1)


@pytest.mark.usefixtures("forgetful")
@EACH_MUTATION
def test_without_the_look_up_racing_retries_get_different_answers(
    installation: Installation, flag: Flag, request_id: str, mutation: Mutation
) -> None:
    """The twin of the test before."""
    answers, _ = answers_and_revisions(
        installation, lambda: mutation.ask(installation.admin, flag.key, request_id=request_id)
    )

    assert len(answers) > 1


@EACH_MUTATION
def test_another_body_under_the_same_id_is_refused_and_changes_nothing(
    installation: Installation, flag: Flag, request_id: str, mutation: Mutation
) -> None:
    mutation.ask(installation.admin, flag.key, request_id=request_id)
    before = installation.contents()

    refusal = refusal_of(
        lambda: mutation.ask(installation.admin, flag.key, request_id=request_id, change_reason="another")
    )

    assert (refusal, installation.contents()) == (mutation.refused(invalid("request_id")), before)


def test_the_same_id_on_another_rpc_is_another_request(installation: Installation, flag: Flag, request_id: str) -> None:
    before = installation.revision()
    in_an_order_that_works = sorted(MUTATIONS, key=lambda rpc: rpc == "DeleteFlag")

    revisions = [
        MUTATIONS[rpc].ask(installation.admin, flag.key, request_id=request_id).revision
        for rpc in in_an_order_that_works
    ]

    assert revisions == [before + number for number in range(1, len(MUTATIONS) + 1)]


@pytest.mark.parametrize("rpc", ["UpdateFlag", "AddTargets", "RemoveTargets", "ImportTargets"])
def test_the_same_id_of_another_caller_is_another_request(
    installation: Installation, flag: Flag, request_id: str, rpc: str
) -> None:
    before = installation.revision()
    callers = [AdminServiceStub(installation.channels[role]) for role in (Role.EDITOR, Role.ADMIN)]

    revisions = [MUTATIONS[rpc].ask(caller, flag.key, request_id=request_id).revision for caller in callers]

    assert revisions == [before + 1, before + 2]


@pytest.mark.parametrize("rpc", [rpc for rpc in MUTATIONS if rpc != "CreateFlag"])
def test_a_failure_is_not_remembered(admin: AdminServiceStub, request_id: str, rpc: str) -> None:
    mutation, key = MUTATIONS[rpc], new_key()

    refusal = refusal_of(lambda: mutation.ask(admin, key, request_id=request_id))
    flag = created(admin, key=key)

    assert refusal == mutation.refused(no_flag(key))
    assert mutation.ask(admin, key, request_id=request_id).revision == flag.revision + 1


@EACH_MUTATION
def test_a_rehearsal_is_not_remembered(
    installation: Installation, flag: Flag, request_id: str, mutation: Mutation
) -> None:
    mutation.ask(installation.admin, flag.key, request_id=request_id, validate_only=True)
    before = installation.revision()

    assert mutation.ask(installation.admin, flag.key, request_id=request_id).revision == before + 1


@pytest.mark.parametrize("rpc", [rpc for rpc in MUTATIONS if rpc != "CreateFlag"])
def test_a_retry_is_recognised_before_its_etag_is_found_stale(
    admin: AdminServiceStub, flag: Flag, request_id: str, rpc: str
) -> None:
    mutation = MUTATIONS[rpc]
    first = mutation.ask(admin, flag.key, request_id=request_id, etag=flag.etag)
    outcome_of(lambda: MUTATIONS["UpdateFlag"].ask(admin, flag.key))

    assert mutation.ask(admin, flag.key, request_id=request_id, etag=flag.etag) == first


def test_a_retry_is_answered_when_the_flag_has_long_been_deleted(
    admin: AdminServiceStub, flag: Flag, request_id: str
) -> None:
    first = MUTATIONS["UpdateFlag"].ask(admin, flag.key, request_id=request_id)
    admin.DeleteFlag(pb.DeleteFlagRequest(key=flag.key))

    assert MUTATIONS["UpdateFlag"].ask(admin, flag.key, request_id=request_id) == first


AGES = {"a minute before a day": ("23:59:00", 0), "after a day": ("24:00:00", 1)}


@pytest.mark.parametrize(("age", "revisions"), AGES.values(), ids=AGES.keys())
def test_an_answer_is_remembered_for_24_hours(
    installation: Installation, flag: Flag, request_id: str, age: str, revisions: int
) -> None:
    mutation = MUTATIONS["UpdateFlag"]
    first = mutation.ask(installation.admin, flag.key, request_id=request_id)
    installation.execute(GROW_OLD, age, UUID(request_id))

    again = mutation.ask(installation.admin, flag.key, request_id=request_id)

    assert again.revision == installation.revision() == first.revision + revisions
    assert mutation.ask(installation.admin, flag.key, request_id=request_id) == again


GROW_OLD = "UPDATE idempotency_keys SET create_time = create_time - %s::interval WHERE request_id = %s"
