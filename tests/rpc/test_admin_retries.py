"""`request_id`: a request sent again gets the first answer and changes nothing, however it came to be sent again."""

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import Installation, Refusal, invalid, outcome_of, race, refusal_of
from tests.support.mutations import EACH_MUTATION, EACH_WITH_ETAG, MUTATIONS, Mutation, acting_as, each
from tests.support.operators import enlisted

RACERS = 8
# Each way through the one mutation protocol: each kind of thing and of change, a hash that is made before the lock, an
# erasure. That every RPC goes through it is shown by retries one after the other. ChangePassword cannot race: it ends
# the session of its caller.
RACING = (
    "CreateFlag",
    "UpdateSegment",
    "DeleteUser",
    "ImportTargets",
    "CreateAdminUser",
    "RevokeClientKey",
    "EraseUser",
)
EACH_THAT_RACES = each(*(MUTATIONS[rpc] for rpc in RACING))


@pytest.fixture
def key(installation: Installation, mutation: Mutation) -> str:
    """The key of something on which the mutation succeeds."""
    return mutation.make(installation)


@pytest.fixture
def request_id() -> str:
    return str(uuid4())


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off what the promises here rest on: that earlier answers are looked up."""
    monkeypatch.setattr("gatekeeper_grpc.store.mutations._find_result", lambda *_: None)


def contents_but_sessions(installation: Installation) -> dict[str, list[str]]:
    """Everything held but sessions: the caller of a second request may begin another one for it."""
    return installation.contents(but="refresh_tokens")


@EACH_MUTATION
def test_a_retry_gets_the_first_answer_and_changes_nothing(
    installation: Installation, key: str, request_id: str, mutation: Mutation
) -> None:
    first = mutation.ask(installation, key, request_id=request_id)
    before = contents_but_sessions(installation)

    again = mutation.ask(installation, key, request_id=request_id)

    assert (again, contents_but_sessions(installation)) == (first, before)


@pytest.mark.usefixtures("forgetful")
@EACH_MUTATION
def test_twin_without_the_stored_answer_a_retry_gets_another_one(
    installation: Installation, key: str, request_id: str, mutation: Mutation
) -> None:
    """The twin of the test before."""
    first = mutation.ask(installation, key, request_id=request_id)

    assert outcome_of(lambda: mutation.ask(installation, key, request_id=request_id)) != first


def answers_and_revisions(installation: Installation, act: Callable[[], object]) -> tuple[list[object], int]:
    """Let `RACERS` do the same thing at once; return their different outcomes, and how many revisions they made."""
    before = installation.revision()
    outcomes = race([lambda: outcome_of(act)] * RACERS)
    different = [outcome for position, outcome in enumerate(outcomes) if outcome not in outcomes[:position]]
    return different, installation.revision() - before


@EACH_THAT_RACES
def test_racing_retries_act_once_and_get_the_same_answer(
    installation: Installation, key: str, request_id: str, mutation: Mutation
) -> None:
    answers, revisions = answers_and_revisions(
        installation, lambda: mutation.ask(installation, key, request_id=request_id)
    )

    assert (answers, revisions) == ([mutation.ask(installation, key, request_id=request_id)], 1)


@pytest.mark.usefixtures("forgetful")
@EACH_THAT_RACES
def test_twin_without_the_stored_answer_racing_retries_differ(
    installation: Installation, key: str, request_id: str, mutation: Mutation
) -> None:
    """The twin of the test before."""
    answers, _ = answers_and_revisions(installation, lambda: mutation.ask(installation, key, request_id=request_id))

    assert len(answers) > 1


@EACH_MUTATION
def test_another_body_under_the_same_id_is_refused_and_changes_nothing(
    installation: Installation, key: str, request_id: str, mutation: Mutation
) -> None:
    mutation.ask(installation, key, request_id=request_id)
    before = contents_but_sessions(installation)

    refusal = refusal_of(lambda: mutation.ask(installation, key, request_id=request_id, change_reason="another"))

    assert (refusal, contents_but_sessions(installation)) == (mutation.refused(invalid("request_id")), before)


def test_the_same_id_on_another_rpc_is_another_request(installation: Installation, request_id: str) -> None:
    keys = {rpc: mutation.make(installation) for rpc, mutation in MUTATIONS.items()}
    before = installation.revision()

    revisions = [
        mutation.ask(installation, keys[rpc], request_id=request_id).revision for rpc, mutation in MUTATIONS.items()
    ]

    assert revisions == [before + number for number in range(1, len(MUTATIONS) + 1)]


@each(*(mutation for mutation in MUTATIONS.values() if mutation.change == "updated" and not mutation.is_for_oneself))
def test_the_same_id_of_another_caller_is_another_request(
    installation: Installation, key: str, request_id: str, mutation: Mutation
) -> None:
    another = acting_as(installation, enlisted(installation, role=Role.ADMIN.value).username)
    mutation.ask(installation, key, request_id=request_id)

    outcome = outcome_of(
        lambda: mutation.ask(installation, key, caller=another, request_id=request_id, change_reason="another")
    )

    assert not isinstance(outcome, Refusal)


@EACH_MUTATION
def test_a_failure_is_not_remembered(
    installation: Installation, key: str, request_id: str, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("out of luck")

    before = installation.revision()
    with monkeypatch.context() as patch:
        patch.setattr("gatekeeper_grpc.store.mutations._record", fault)
        refusal_of(lambda: mutation.ask(installation, key, request_id=request_id))

    assert mutation.ask(installation, key, request_id=request_id).revision == before + 1


@EACH_MUTATION
def test_a_rehearsal_is_not_remembered(
    installation: Installation, key: str, request_id: str, mutation: Mutation
) -> None:
    mutation.ask(installation, key, request_id=request_id, validate_only=True)
    before = installation.revision()

    assert mutation.ask(installation, key, request_id=request_id).revision == before + 1


@EACH_WITH_ETAG
def test_a_retry_is_recognised_before_its_etag_is_found_stale(
    installation: Installation, key: str, request_id: str, mutation: Mutation
) -> None:
    etag = mutation.kind.etag(installation, key)
    first = mutation.ask(installation, key, request_id=request_id, etag=etag)
    outcome_of(lambda: mutation.kind.updated(installation, key))

    assert mutation.ask(installation, key, request_id=request_id, etag=etag) == first


@each(MUTATIONS["UpdateFlag"])
def test_a_retry_is_answered_when_the_flag_has_long_been_deleted(
    installation: Installation, key: str, request_id: str, mutation: Mutation
) -> None:
    first = mutation.ask(installation, key, request_id=request_id)
    MUTATIONS["DeleteFlag"].ask(installation, key)

    assert mutation.ask(installation, key, request_id=request_id) == first


AGES = {"a minute before a day": ("23:59:00", 0), "after a day": ("24:00:00", 1)}


@pytest.mark.parametrize(("age", "revisions"), AGES.values(), ids=AGES.keys())
@each(MUTATIONS["UpdateFlag"])
def test_an_answer_is_remembered_for_24_hours(
    installation: Installation, key: str, request_id: str, mutation: Mutation, *, age: str, revisions: int
) -> None:
    first = mutation.ask(installation, key, request_id=request_id)
    installation.execute(GROW_OLD, age, UUID(request_id))
    installation.execute("UPDATE feature_flags SET description = 'as before' WHERE key = %s", key)

    again = mutation.ask(installation, key, request_id=request_id)

    assert again.revision == installation.revision() == first.revision + revisions
    assert mutation.ask(installation, key, request_id=request_id) == again


GROW_OLD = "UPDATE idempotency_keys SET create_time = create_time - %s::interval WHERE request_id = %s"
