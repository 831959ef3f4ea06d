"""A large message parsed in portions is the same message, or the same refusal, and no portion takes long."""

import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message

from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest
from gatekeeper_grpc.interceptors import body as body_module
from gatekeeper_grpc.interceptors.body import MessageParser
from gatekeeper_grpc.interceptors.message_portions import MAX_FIELDS, PORTION_BYTES, parse_in_portions, portions_of

pytestmark = pytest.mark.promise("F6")

LARGEST_CONTEXT = 20 << 10


def bulk_message(users: int = 3_000) -> BulkEvaluateFlagsRequest:
    request = BulkEvaluateFlagsRequest(flag_keys=["a", "b"], min_revision=7)
    for number in range(users):
        context = request.contexts.add(user_id=f"user-{number}")
        context.attributes["name"] = "n" * (number % 1_000)
    return request


def outcome(parse: Any, body: bytes) -> object:
    try:
        return parse(body).SerializeToString(deterministic=True)
    except DecodeError:
        return DecodeError


def in_portions(body: bytes) -> Any:
    return parse_in_portions(body, BulkEvaluateFlagsRequest(), sleep=lambda _: None)


def test_no_portion_is_much_larger_than_128_kib() -> None:
    body = bulk_message().SerializeToString()

    portions = [*portions_of(body)]

    assert b"".join(portions) == body
    assert len(portions) == len(body) // PORTION_BYTES + 1
    assert max(map(len, portions)) < PORTION_BYTES + LARGEST_CONTEXT


def test_others_get_the_interpreter_between_two_portions() -> None:
    body = bulk_message().SerializeToString()
    pauses: list[float] = []

    parse_in_portions(body, BulkEvaluateFlagsRequest(), sleep=pauses.append)

    assert len(pauses) == len([*portions_of(body)])


def test_a_damaged_message_is_the_same_message_or_refusal_as_in_one_piece() -> None:
    chance, whole = random.Random(7), bulk_message(1_000).SerializeToString()
    seen = set()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.choice((0, 1, 3))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        body = bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])

        expected = outcome(BulkEvaluateFlagsRequest.FromString, body)
        assert outcome(in_portions, body) == expected
        seen.add(expected is DecodeError)

    assert seen == {True, False}


def test_a_message_of_tiny_fields_is_not_searched_to_its_end() -> None:
    tiny = BulkEvaluateFlagsRequest(flag_keys=[""]).SerializeToString()
    numbers = BulkEvaluateFlagsRequest(min_revision=1).SerializeToString()

    assert [len(portion) for portion in portions_of(tiny * 1_000_000)] == [2_000_000]
    endless = b"\x0a" + b"\xff" * (1 << 20)
    assert [*portions_of(endless)] == [endless]
    assert len([*portions_of(numbers * 1_000_000)]) == 1
    assert MAX_FIELDS * len(tiny) < PORTION_BYTES


def test_a_call_parses_a_large_message_in_portions_and_a_small_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[int] = []

    def counted(body: bytes, message: Message) -> Message:
        cut.append(len(body))
        return parse_in_portions(body, message)

    monkeypatch.setattr(body_module, "parse_in_portions", counted)
    parse = MessageParser(parse=BulkEvaluateFlagsRequest.FromString, max_bytes=4 << 20)
    large, small = bulk_message(), bulk_message(10)

    assert parse(large.SerializeToString()) == large
    assert parse(small.SerializeToString()) == small
    assert cut == [large.ByteSize()]
