"""What `bench.peers` sends to each product, and how it reads answers (`bench.peers.protocols`).

Those of fast-feature 0.0.2 (OFREP) and of Unleash 7.5.1 in `answers/` came from a server. Those of flagd and Flipt were
written by the products' own packages for clients: openfeature-provider-flagd 0.6.1 and flipt 2.0.0.
"""

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from bench.peers.checks import Tally
from bench.peers.flags import User, flags_of
from bench.peers.messages import STRUCT, message_types
from bench.peers.protocols import (
    Empty,
    Flagd,
    FliptGrpc,
    FliptHttp,
    Gatekeeper,
    Ofrep,
    Protocol,
    Unleash,
    protocol_of,
)
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, EvaluateFlagsResponse

ANSWERS = Path(__file__).parent / "answers"
FLAGS = flags_of(20)
SWISS = User(4)  # Named, too.


def answer(name: str) -> bytes:
    return (ANSWERS / name).read_bytes()


@pytest.mark.parametrize(
    ("protocol", "name"), [(Ofrep(), "fast-feature-0.0.2-all.json"), (Unleash(), "unleash-7.5.1-all.json")]
)
def test_a_real_answer_about_all_flags_is_right(protocol: Protocol, name: str) -> None:
    tally = Tally()

    tally.add(FLAGS, SWISS, protocol.all_flags(FLAGS, SWISS).read(answer(name)))

    assert (tally.answers, tally.draws) == (1, 10)
    assert 0 < tally.trues < 10


@pytest.mark.parametrize(
    ("protocol", "name"),
    [(Flagd(), "flagd-provider-0.6.1-all.binpb"), (FliptHttp(), "flipt-client-2.0.0-all.json")],
)
def test_an_answer_of_the_products_own_package_is_read(protocol: Protocol, name: str) -> None:
    values = protocol.all_flags(FLAGS, SWISS).read(answer(name))

    assert (values["flag-0"], values["flag-1"]) == (True, False)
    assert "flag-2" not in values


@pytest.mark.parametrize(
    ("protocol", "index", "name"),
    [
        (Ofrep(), 17, "fast-feature-0.0.2-one.json"),
        (Flagd(), 17, "flagd-provider-0.6.1-one.binpb"),
        (FliptHttp(), 0, "flipt-client-2.0.0-one.json"),
    ],
)
def test_an_answer_about_one_flag_is_read(protocol: Protocol, index: int, name: str) -> None:
    call = protocol.one_flag(FLAGS[index], SWISS)

    assert call is not None
    assert call.read(answer(name)) == {FLAGS[index].key: True}


def test_a_disabled_flag_of_ofrep_has_no_value() -> None:
    body = json.dumps({"flags": [{"key": "a", "value": None}, {"key": "b"}, {"key": "c", "value": False}]})

    assert Ofrep().all_flags(FLAGS, SWISS).read(body.encode()) == {"c": False}


def test_flipt_reads_over_grpc_what_it_reads_over_http() -> None:
    kinds = {
        "BatchEvaluationResponse": {"responses": (2, "*EvaluationResponse")},
        "EvaluationResponse": {"boolean_response": (2, "Boolean"), "error_response": (4, "Error")},
        "Boolean": {"enabled": (1, "bool"), "request_id": (3, "string"), "flag_key": (6, "string")},
        "Error": {"flag_key": (1, "string")},
    }
    types = message_types("flipt.evaluation", kinds)
    one = types["Boolean"](enabled=True, request_id="id", flag_key="flag-0")
    responses = [{"boolean_response": one}, {"error_response": {"flag_key": "flag-2"}}]
    batch = types["BatchEvaluationResponse"](responses=responses)

    assert FliptGrpc().all_flags(FLAGS, SWISS).read(batch.SerializeToString()) == {"flag-0": True}
    assert FliptGrpc().one_flag(FLAGS[0], SWISS).read(one.SerializeToString()) == {"flag-0": True}


def test_gatekeeper_is_asked_for_all_or_for_one() -> None:
    all_of_them = EvaluateFlagsRequest.FromString(Gatekeeper().all_flags(FLAGS, SWISS).body or b"")
    one = EvaluateFlagsRequest.FromString(Gatekeeper().one_flag(FLAGS[3], SWISS).body or b"")

    assert ([*all_of_them.flag_keys], [*one.flag_keys]) == ([], ["flag-3"])
    assert dict(one.context.attributes) == {"country": "CH", "plan": "free"}
    assert all_of_them.context.user_id == one.context.user_id == "user-4"


def test_the_empty_handler_is_asked_the_same_and_not_judged() -> None:
    assert Empty().all_flags(FLAGS, SWISS)[:2] == Gatekeeper().all_flags(FLAGS, SWISS)[:2]
    assert not Empty().evaluates


@pytest.mark.parametrize("protocol", [Ofrep(), FliptHttp()])
def test_a_body_carries_user_and_attributes(protocol: Protocol) -> None:
    body = json.loads(protocol.all_flags(FLAGS, SWISS).body or b"")

    contexts = [body["context"]] if "context" in body else [request["context"] for request in body["requests"]]
    users = [body["context"]["targetingKey"]] if "context" in body else [each["entityId"] for each in body["requests"]]
    assert all({"country": "CH", "plan": "free"}.items() <= context.items() for context in contexts)
    assert set(users) == {"user-4"}


def test_unleash_gets_user_and_attributes_in_the_path() -> None:
    call = Unleash().all_flags(FLAGS, SWISS)
    query = parse_qs(urlsplit(call.path).query)

    assert call.body is None
    assert query == {"userId": ["user-4"], "properties[country]": ["CH"], "properties[plan]": ["free"]}
    assert Unleash().one_flag(FLAGS[0], SWISS) is None


@pytest.mark.parametrize(
    ("name", "scheme", "kind"),
    [
        ("flagd", "grpc", Flagd),
        ("ofrep", "http", Ofrep),
        ("flipt", "grpc", FliptGrpc),
        ("flipt", "http", FliptHttp),
        ("unleash", "http", Unleash),
    ],
)
def test_name_and_scheme_choose_the_protocol(name: str, scheme: str, kind: type[Protocol]) -> None:
    assert isinstance(protocol_of(name, scheme), kind)


@pytest.mark.parametrize(("name", "scheme"), [("flagd", "http"), ("unleash", "grpc"), ("other", "http")])
def test_an_unknown_protocol_is_refused(name: str, scheme: str) -> None:
    with pytest.raises(LookupError, match="is none of flagd grpc://"):
        protocol_of(name, scheme)


def test_described_messages_have_the_bytes_of_generated_ones() -> None:
    kinds = {
        "EvaluateFlagsRequest": {"context": (1, "EvaluationContext"), "flag_keys": (2, "*string")},
        "EvaluationContext": {"user_id": (1, "string"), "attributes": (2, STRUCT)},
        "EvaluateFlagsResponse": {"flags": (1, "*Entry"), "stale": (5, "bool")},
        "Entry": {"key": (1, "string"), "value": (2, "bool")},
    }
    types = message_types("gatekeeper.v1", kinds)
    request = types["EvaluateFlagsRequest"](context={"user_id": "a", "attributes": {"plan": "pro"}}, flag_keys=["x"])
    response = EvaluateFlagsResponse(flags={"x": True}, stale=True, revision=7)

    generated = EvaluateFlagsRequest.FromString(request.SerializeToString())
    described = types["EvaluateFlagsResponse"].FromString(response.SerializeToString())

    assert (generated.context.user_id, dict(generated.context.attributes)) == ("a", {"plan": "pro"})
    assert generated.flag_keys == ["x"]
    assert [(entry.key, entry.value) for entry in described.flags] == [("x", True)]
    assert described.stale
