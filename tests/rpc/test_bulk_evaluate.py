"""BulkEvaluateFlags over the wire: header first, order kept, errors in their place, one revision per stream."""

from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    BulkEvaluateFlagsResponse,
    BulkEvaluation,
    BulkEvaluationError,
    BulkEvaluationHeader,
    BulkEvaluationResult,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.selection import Decisions, Selection
from gatekeeper_grpc.domain.snapshot import Snapshot
from tests.support.clients import TIMEOUT_S, Installation, Refusal, created, installed, invalid, refusal_of, send
from tests.support.servers import StartServer, connect

pytestmark = pytest.mark.usefixtures("drawing")

USERS = ["anna", "bob", "ünï"]


@pytest.fixture(scope="module")
def house(postgres: str) -> Iterator[Installation]:
    """An installation that all tests share."""
    with installed(postgres) as installation:
        yield installation


def contexts(*user_ids: str) -> list[EvaluationContext]:
    return [EvaluationContext(user_id=user_id) for user_id in user_ids]


def of_users(*user_ids: str, **fields: Any) -> BulkEvaluateFlagsRequest:
    return BulkEvaluateFlagsRequest(contexts=contexts(*user_ids), **fields)


def stream(house: Installation, *requests: BulkEvaluateFlagsRequest) -> list[BulkEvaluateFlagsResponse]:
    """Send these messages and no more; return all answers."""
    stub = EvaluationServiceStub(house.channels[None])
    return list(stub.BulkEvaluateFlags(iter(requests), timeout=TIMEOUT_S))


class Conversation:
    """A stream in which a message is sent when the answer to the one before is here."""

    def __init__(self, house: Installation) -> None:
        self._requests: SimpleQueue[BulkEvaluateFlagsRequest | None] = SimpleQueue()
        requests: Iterable[Any] = iter(self._requests.get, None)
        stub = EvaluationServiceStub(house.channels[None])
        self._responses = stub.BulkEvaluateFlags(iter(requests), timeout=TIMEOUT_S)

    def begin(self, request: BulkEvaluateFlagsRequest) -> BulkEvaluationHeader:
        """Send the first message and return the header; its answer is left for `hear`."""
        self._requests.put(request)
        return next(self._responses).header

    def hear(self) -> list[BulkEvaluationResult]:
        return [*next(self._responses).batch.results]

    def ask(self, request: BulkEvaluateFlagsRequest) -> list[BulkEvaluationResult]:
        """Send a later message and return its answer."""
        self._requests.put(request)
        return self.hear()

    def end(self) -> list[BulkEvaluateFlagsResponse]:
        """Send no more, and return what still comes."""
        self._requests.put(None)
        return list(self._responses)


# --- What is answered ------------------------------------------------------------------------------------------------


def test_the_header_comes_first_and_values_follow_its_order(house: Installation) -> None:
    on, off = created(house.admin, enabled=True, default_value=True).key, created(house.admin).key

    header, answer = stream(house, of_users(*USERS, flag_keys=[on, "zz", off, "aa"]))

    assert header == BulkEvaluateFlagsResponse(
        header=BulkEvaluationHeader(
            flag_keys=[on, off], unknown_flag_keys=["zz", "aa"], revision=house.revision(), stale=False
        )
    )
    assert [*answer.batch.results] == [
        BulkEvaluationResult(user_id=user, evaluation=BulkEvaluation(values=[True, False])) for user in USERS
    ]


def test_without_keys_all_flags_are_evaluated_in_key_order(house: Installation) -> None:
    created(house.admin)
    stored = house.admin.ListFlags(pb.ListFlagsRequest(page_size=1_000), timeout=TIMEOUT_S)

    header, answer = stream(house, of_users("anna"))

    assert [*header.header.flag_keys] == [flag.key for flag in stored.flags]
    assert len(answer.batch.results[0].evaluation.values) == len(stored.flags)


def test_each_message_is_answered_in_order(house: Installation) -> None:
    conversation = Conversation(house)
    conversation.begin(of_users("anna", flag_keys=["unknown"]))
    answers = [
        conversation.hear(),
        conversation.ask(of_users("bob", "carol")),
        conversation.ask(of_users("anna")),
    ]

    assert [[result.user_id for result in results] for results in answers] == [["anna"], ["bob", "carol"], ["anna"]]
    assert conversation.end() == []


@pytest.mark.parametrize("position", [0, 1], ids=["in the first message", "in a later one"])
def test_no_contexts_get_an_answer_without_results(position: int, house: Installation) -> None:
    requests = [of_users("anna", flag_keys=["unknown"]), of_users("bob")]
    del requests[position].contexts[:]

    _, *answers = stream(house, *requests)

    assert [len(answer.batch.results) for answer in answers] == [1 - (position == 0), 1 - (position == 1)]


def test_a_stream_without_any_message_ends_without_an_answer(house: Installation) -> None:
    assert stream(house) == []


def test_later_messages_may_repeat_the_question(house: Installation) -> None:
    key, revision = created(house.admin).key, house.revision()
    question = {"flag_keys": [key], "min_revision": revision}

    answers = stream(house, of_users("anna", **question), of_users("bob", **question), of_users("carol"))

    assert [len(answer.batch.results) for answer in answers] == [0, 1, 1, 1]


def test_a_bad_context_gets_its_own_error_and_the_others_their_values(house: Installation) -> None:
    key = created(house.admin).key

    _, answer = stream(house, of_users("anna", "u" * 257, "", "a\0", "bob", flag_keys=[key]))

    bad_id = "must be 1 to 256 bytes of UTF-8 without NUL"
    assert [*answer.batch.results] == [
        BulkEvaluationResult(user_id="anna", evaluation=BulkEvaluation(values=[False])),
        BulkEvaluationResult(user_id="u" * 257, error=error("contexts[1].user_id", bad_id)),
        BulkEvaluationResult(user_id="", evaluation=BulkEvaluation(values=[False])),
        BulkEvaluationResult(user_id="a\0", error=error("contexts[3].user_id", bad_id)),
        BulkEvaluationResult(user_id="bob", evaluation=BulkEvaluation(values=[False])),
    ]


def error(field: str, description: str) -> BulkEvaluationError:
    return BulkEvaluationError(reason="INVALID_ARGUMENT", field=field, message=f"{field} {description}")


# --- What ends the stream --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        pytest.param(of_users(*["u"] * 5_001), "contexts", id="too many contexts"),
        pytest.param(of_users("anna", flag_keys=["a", "a"]), "flag_keys[1]", id="a key twice"),
        pytest.param(of_users("anna", flag_keys=["?"]), "flag_keys[0]", id="a malformed key"),
        pytest.param(of_users("anna", flag_keys=[f"k{n}" for n in range(1_001)]), "flag_keys", id="too many keys"),
        pytest.param(of_users("anna", min_revision=-1), "min_revision", id="a negative revision"),
    ],
)
def test_a_fault_of_the_first_message_ends_the_stream(
    request_: BulkEvaluateFlagsRequest, field: str, house: Installation
) -> None:
    assert refusal_of(lambda: stream(house, request_)) == invalid(field)


@pytest.mark.parametrize(
    ("later", "field"),
    [
        pytest.param(of_users("bob", flag_keys=["b"]), "flag_keys", id="other keys"),
        pytest.param(of_users("bob", flag_keys=["b", "a"]), "flag_keys", id="the same keys in another order"),
        pytest.param(of_users("bob", min_revision=7), "min_revision", id="another revision"),
        pytest.param(of_users(*["u"] * 5_001), "contexts", id="too many contexts"),
    ],
)
def test_a_bad_later_message_ends_the_stream_after_earlier_answers(
    later: BulkEvaluateFlagsRequest, field: str, house: Installation
) -> None:
    conversation = Conversation(house)
    conversation.begin(of_users("anna", flag_keys=["a", "b"]))

    assert [result.user_id for result in conversation.hear()] == ["anna"]
    assert refusal_of(lambda: conversation.ask(later)) == invalid(field)


def test_a_stream_with_a_min_revision_that_does_not_exist_is_refused(house: Installation) -> None:
    newest = house.revision()

    assert refusal_of(lambda: stream(house, of_users("anna", min_revision=newest + 1))) == Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        "REVISION_NOT_REACHED",
        {"min_revision": str(newest + 1), "revision": str(newest)},
    )


# --- Large answers ---------------------------------------------------------------------------------------------------

_MANY_FLAGS = """
    INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage, create_time, update_time, revision)
    SELECT 'flag-' || lpad(n::text, 4, '0'), true, CASE WHEN n % 3 = 0 THEN 'on' ELSE 'off' END, 0, now(), now(), 1
    FROM generate_series(0, 999) n
"""


def test_5000_users_by_1000_flags_come_in_messages_below_1_mib_in_order(start_server: StartServer, dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute(_MANY_FLAGS)
    with connect(start_server()) as channel:
        users = [f"user-{number}" for number in range(5_000)]
        _, *answers = EvaluationServiceStub(channel).BulkEvaluateFlags(iter([of_users(*users)]), timeout=200.0)

    results = [result for answer in answers for result in answer.batch.results]
    aligned = [number % 3 == 0 for number in range(1_000)]
    assert [result.user_id for result in results] == users
    assert all(result.evaluation.values == aligned for result in results)
    assert max(answer.ByteSize() for answer in answers) < 1 << 20


# --- One revision ----------------------------------------------------------------------------------------------------


def set_default(house: Installation, key: str, value: bool) -> int:
    flag, mask = Flag(key=key, default_value=value), FieldMask(paths=["default_value"])
    response: pb.UpdateFlagResponse = send(house.admin, "UpdateFlag", pb.UpdateFlagRequest(flag=flag, update_mask=mask))
    return response.revision


def values_while_somebody_flips_the_flag(house: Installation) -> tuple[bool, list[bool]]:
    """What the header's revision says of a flag, and what a stream answers while it changes after every message."""
    key = created(house.admin, enabled=True).key
    value_at = {set_default(house, key, value): value for value in (False, True)}
    conversation = Conversation(house)
    header = conversation.begin(of_users(*USERS, flag_keys=[key]))
    answers = conversation.hear()
    for number in range(10):
        set_default(house, key, number % 2 == 1)
        answers += conversation.ask(of_users(*USERS))
    conversation.end()
    return value_at[header.revision], [value for result in answers for value in result.evaluation.values]


def test_a_whole_stream_is_true_at_the_revision_of_its_header(house: Installation) -> None:
    announced, answered = values_while_somebody_flips_the_flag(house)

    assert answered == [announced] * 33


def test_twin_evaluating_each_message_at_the_newest_revision_mixes_answers(
    house: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_all = Snapshot.decide_all

    def at_the_newest(_snapshot: Snapshot, selection: Selection, *users: Any) -> Decisions:
        newest = house.server.cache.current()
        return decide_all(newest, newest.select([plan.key for plan in selection.plans]), *users)

    monkeypatch.setattr(Snapshot, "decide_all", at_the_newest)

    _, answered = values_while_somebody_flips_the_flag(house)

    assert set(answered) == {True, False}


def test_a_stream_continues_with_a_flag_that_is_deleted_during_it(house: Installation) -> None:
    key = created(house.admin, enabled=True, default_value=True).key
    conversation = Conversation(house)
    conversation.begin(of_users("anna", flag_keys=[key]))
    before = conversation.hear()
    send(house.admin, "DeleteFlag", pb.DeleteFlagRequest(key=key))

    assert [[*result.evaluation.values] for result in (*before, *conversation.ask(of_users("bob")))] == [[True], [True]]
