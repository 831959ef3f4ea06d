"""What all mutations share, from a request to an intent."""

from contextvars import copy_context
from uuid import UUID

import pytest

from gatekeeper_client.v1.admin_service_pb2 import DeleteFlagRequest
from gatekeeper_grpc.domain.caller import Caller, Role, set_current_caller
from gatekeeper_grpc.domain.errors import InvalidArgument, Unauthenticated
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.wire.intents import intent_from_proto

pytestmark = pytest.mark.promise("D6")

CALLER = Caller(admin_id=1, username="anna", role=Role.EDITOR, token_epoch=0)
REQUEST_ID = "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b52"


def intent(request: DeleteFlagRequest) -> Intent:
    """Convert on behalf of `CALLER`, in a context of its own as grpcio does."""

    def convert() -> Intent:
        set_current_caller(CALLER)
        return intent_from_proto(request)

    return copy_context().run(convert)


def refused_fields(request: DeleteFlagRequest) -> list[str]:
    with pytest.raises(InvalidArgument) as refused:
        intent(request)
    return [violation.field for violation in refused.value.violations]


def test_an_intent_says_who_what_and_why() -> None:
    said = intent(DeleteFlagRequest(key="a", change_reason="why", validate_only=True, request_id=REQUEST_ID))

    assert (said.actor, said.action, said.change_reason, said.validate_only, said.request_id) == (
        "admin:anna#1",
        "DeleteFlag",
        "why",
        True,
        UUID(REQUEST_ID),
    )


def test_without_a_caller_there_is_no_intent() -> None:
    with pytest.raises(Unauthenticated):
        copy_context().run(intent_from_proto, DeleteFlagRequest())


def test_without_a_request_id_a_request_has_no_fingerprint() -> None:
    said = intent(DeleteFlagRequest(key="a"))

    assert (said.request_id, said.request_hash) == (None, b"")


def test_the_fingerprint_tells_one_body_from_another() -> None:
    first, again, other = (
        intent(DeleteFlagRequest(key=key, request_id=REQUEST_ID)).request_hash for key in ("a", "a", "b")
    )

    assert first == again != other


def test_a_request_id_is_read_in_either_case() -> None:
    assert intent(DeleteFlagRequest(request_id=REQUEST_ID.upper())).request_id == UUID(REQUEST_ID)


BAD_REQUEST_IDS = {
    "a word": "again",
    "too short": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b5",
    "too long": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b521",
    "without dashes": "6f1c1e9c2f0a4b7a9d7e0c6a1f6f0b52",  # pragma: allowlist secret
    "in braces": "{6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b52}",
    "as a URN": "urn:uuid:6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b52",
    "with a space for a digit": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b5 ",
    "with an underscore for a digit": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a_f6f0b52",
    "with a digit of another script": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b٣2",
    "with NUL": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b5\0",
    "with a line break after it": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b52\n",
}


@pytest.mark.parametrize("request_id", BAD_REQUEST_IDS.values(), ids=BAD_REQUEST_IDS.keys())
def test_a_request_id_that_is_no_uuid_is_refused(request_id: str) -> None:
    assert refused_fields(DeleteFlagRequest(request_id=request_id)) == ["request_id"]


@pytest.mark.parametrize("reason", ["é" * 1_025, "a\0b"], ids=["1,025 characters", "NUL"])
def test_a_bad_change_reason_is_refused(reason: str) -> None:
    assert refused_fields(DeleteFlagRequest(change_reason=reason)) == ["change_reason"]


def test_a_change_reason_of_1024_characters_is_kept() -> None:
    assert intent(DeleteFlagRequest(change_reason="é" * 1_024)).change_reason == "é" * 1_024
