"""Odd input: bytes that are no message, messages that are too large, and generated requests."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import (
    NOT_A_MESSAGE,
    SEGMENT_KEYS,
    SERVICE,
    TIMEOUT_S,
    Installation,
    Refusal,
    created,
    installed,
    invalid,
    outcome_of,
    refusal_of,
    refused_by,
    send,
)
from tests.support.mutations import EACH_MUTATION, Mutation

pytestmark = pytest.mark.promise("D6")

FLAG_KEY = "known"


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    """An installation with the flag `FLAG_KEY`."""
    with installed(postgres) as installation:
        created(installation.admin, key=FLAG_KEY, enabled=True)
        yield installation


# --- Bytes that are no message ---------------------------------------------------------------------------------------


def send_bytes(installation: Installation, rpc: str, body: bytes) -> object:
    """Send any bytes for a request; on the wire, no shape of method differs from a stream."""
    call: grpc.StreamUnaryMultiCallable[bytes, bytes]
    call = installation.channels[Role.ADMIN].stream_unary(f"/{SERVICE.full_name}/{rpc}", None, None)
    return call(iter([body]), timeout=TIMEOUT_S)


# Which bytes are no message, and which text is not UTF-8: tests/unit/interceptors/test_body.py.
# Of a request without fields, protobuf passes over what it does not know.
@pytest.mark.parametrize("rpc", [rpc.name for rpc in SERVICE.methods if rpc.input_type.fields])
def test_bytes_that_are_no_message_are_refused(installation: Installation, rpc: str) -> None:
    before = installation.contents()

    assert refusal_of(lambda: send_bytes(installation, rpc, b"\x0b")) == refused_by(rpc, NOT_A_MESSAGE)
    assert installation.contents() == before


PLACEHOLDER = "placeholder"
TEXTS = {
    "a key": ("GetFlag", pb.GetFlagRequest(key=PLACEHOLDER)),
    "a tag": ("CreateFlag", pb.CreateFlagRequest(flag=Flag(key="a", tags=[PLACEHOLDER]))),
    "a change_reason": ("DeleteFlag", pb.DeleteFlagRequest(key=FLAG_KEY, change_reason=PLACEHOLDER)),
    "a path of a mask": (
        "UpdateFlag",
        pb.UpdateFlagRequest(flag=Flag(key=FLAG_KEY), update_mask=FieldMask(paths=[PLACEHOLDER])),
    ),
    "a user of a stream": (
        "ImportTargets",
        pb.ImportTargetsRequest(flag_key=FLAG_KEY, user_ids=[PLACEHOLDER], value=False),
    ),
}


@pytest.mark.parametrize("field", TEXTS.keys())
def test_text_that_is_not_utf_8_is_refused(installation: Installation, field: str) -> None:
    rpc, request = TEXTS[field]
    body = request.SerializeToString().replace(PLACEHOLDER.encode(), b"\xff".ljust(len(PLACEHOLDER), b"x"))
    before = installation.contents()

    assert refusal_of(lambda: send_bytes(installation, rpc, body)) == refused_by(rpc, NOT_A_MESSAGE)
    assert installation.contents() == before


@EACH_MUTATION
def test_a_message_above_4_mib_is_refused(installation: Installation, mutation: Mutation) -> None:
    request = mutation.request(FLAG_KEY, change_reason="x" * (4 << 20))
    before = installation.contents()

    refusal = refusal_of(lambda: send(installation.admin_as(Role.ADMIN), mutation.rpc, request))

    assert refusal == refused_by(mutation.rpc, invalid("request"))
    assert installation.contents() == before


# --- Whatever else ---------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
KEY_OR_TEXT = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True) | TEXT | st.just(FLAG_KEY)
FLAGS = st.builds(
    Flag,
    key=KEY_OR_TEXT,
    description=TEXT,
    enabled=st.booleans(),
    default_value=st.booleans(),
    rollout_percentage=st.integers(0, 100) | st.integers(-(2**31), 2**31 - 1),
    segment_targets=st.lists(
        st.builds(SegmentTarget, segment_key=KEY_OR_TEXT | st.sampled_from(SEGMENT_KEYS), value=st.booleans())
    ),
    tags=st.lists(TEXT, max_size=3),
    owner=TEXT,
    etag=TEXT,
    revision=st.integers(-(2**63), 2**63 - 1),
)
CARRIED = {
    "change_reason": TEXT,
    "validate_only": st.booleans(),
    "request_id": st.uuids().map(str) | st.just("") | TEXT,
}
CREATIONS = st.builds(pb.CreateFlagRequest, flag=FLAGS, **CARRIED)
ADDITIONS = st.builds(
    pb.AddTargetsRequest,
    flag_key=KEY_OR_TEXT,
    user_ids=st.lists(TEXT, max_size=5),
    value=st.booleans(),
    etag=st.just("") | TEXT,
    **CARRIED,
)
EXPECTED_FAILURES = {
    (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"),
    (grpc.StatusCode.NOT_FOUND, "FLAG_NOT_FOUND"),
    (grpc.StatusCode.NOT_FOUND, "SEGMENT_NOT_FOUND"),
    (grpc.StatusCode.ABORTED, "ETAG_MISMATCH"),
}


@pytest.mark.parametrize("rpc", ["CreateFlag", "AddTargets"])
@settings(max_examples=150, derandomize=True, database=None)
@given(data=st.data())
def test_whatever_is_sent_is_done_or_refused_for_a_documented_reason(
    installation: Installation, rpc: str, data: st.DataObject
) -> None:
    request = data.draw(CREATIONS if rpc == "CreateFlag" else ADDITIONS)

    outcome = outcome_of(lambda: send(installation.admin, rpc, request))

    assert not isinstance(outcome, Refusal) or (outcome.code, outcome.reason) in EXPECTED_FAILURES
