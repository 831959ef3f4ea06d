"""Bad input (promise D6): refused by name, nothing written, never UNKNOWN or INTERNAL."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper.v1.segment_pb2 import Segment
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import (
    SEGMENT_KEYS,
    SERVICE,
    Installation,
    Refusal,
    created,
    installed,
    invalid,
    new_key,
    refusal_of,
    refused_by,
    send,
)
from tests.support.mutations import EACH_MUTATION, Mutation

FLAG_KEY = "known"


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    """An installation with the flag `FLAG_KEY`."""
    with installed(postgres) as installation:
        created(installation.admin, key=FLAG_KEY, enabled=True)
        yield installation


def check_refused(installation: Installation, rpc: str, request: Any, refusal: Refusal) -> None:
    """Send a request that must be refused so, and must leave every table as it was."""
    before = installation.contents()

    assert (refusal_of(lambda: send(installation.admin_as(Role.ADMIN), rpc, request)), installation.contents()) == (
        refusal,
        before,
    )


# --- Keys and user ids, wherever they stand --------------------------------------------------------------------------

BAD_KEYS = {
    "empty": "",
    "129 characters": "x" * 129,
    "begins with a dot": ".a",
    "begins with a dash": "-a",
    "begins with an underscore": "_a",
    "space": "a b",
    "trailing line break": "a\n",
    "NUL": "a\0",
    "slash": "a/b",
    "per cent": "a%",
    "not ASCII": "é",
    "digits of another script": "a٣",
}
BAD_USER_IDS = {
    "empty": "",
    "257 bytes": "x" * 257,
    "257 bytes in 129 characters": "é" * 128 + "x",
    "NUL": "a\0b",
    "only NUL": "\0",
}
# Where a key stands in each request, and the request with a key there.
KEY_PLACES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "CreateFlag": ("flag.key", lambda key: pb.CreateFlagRequest(flag=Flag(key=key))),
    "GetFlag": ("key", lambda key: pb.GetFlagRequest(key=key)),
    "UpdateFlag": (
        "flag.key",
        lambda key: pb.UpdateFlagRequest(flag=Flag(key=key), update_mask=FieldMask(paths=["enabled"])),
    ),
    "DeleteFlag": ("key", lambda key: pb.DeleteFlagRequest(key=key)),
    "AddTargets": ("flag_key", lambda key: pb.AddTargetsRequest(flag_key=key, user_ids=["a"])),
    "RemoveTargets": ("flag_key", lambda key: pb.RemoveTargetsRequest(flag_key=key, user_ids=["a"])),
    "ListTargets": ("flag_key", lambda key: pb.ListTargetsRequest(flag_key=key)),
    "ImportTargets": ("flag_key", lambda key: pb.ImportTargetsRequest(flag_key=key, user_ids=["a"])),
    "CreateSegment": ("segment.key", lambda key: pb.CreateSegmentRequest(segment=Segment(key=key))),
    "GetSegment": ("key", lambda key: pb.GetSegmentRequest(key=key)),
    "UpdateSegment": (
        "segment.key",
        lambda key: pb.UpdateSegmentRequest(segment=Segment(key=key), update_mask=FieldMask(paths=["match"])),
    ),
    "DeleteSegment": ("key", lambda key: pb.DeleteSegmentRequest(key=key)),
    "AddSegmentMembers": ("segment_key", lambda key: pb.AddSegmentMembersRequest(segment_key=key, user_ids=["a"])),
    "RemoveSegmentMembers": (
        "segment_key",
        lambda key: pb.RemoveSegmentMembersRequest(segment_key=key, user_ids=["a"]),
    ),
    "ListSegmentMembers": ("segment_key", lambda key: pb.ListSegmentMembersRequest(segment_key=key)),
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS.keys())
@pytest.mark.parametrize("rpc", KEY_PLACES)
def test_a_bad_key_is_refused_wherever_it_stands(installation: Installation, rpc: str, key: str) -> None:
    field, request = KEY_PLACES[rpc]

    check_refused(installation, rpc, request(key), refused_by(rpc, invalid(field)))


def test_every_rpc_for_one_flag_or_segment_is_in_the_table_of_keys() -> None:
    of_keys = {rpc.name for rpc in SERVICE.methods if re.search("Flag|Target|Segment", rpc.name)}

    assert of_keys - {"ListFlags", "ListSegments"} == KEY_PLACES.keys()


TARGET_REQUESTS = {
    "AddTargets": (pb.AddTargetsRequest, 1_000),
    "RemoveTargets": (pb.RemoveTargetsRequest, 1_000),
    "ImportTargets": (pb.ImportTargetsRequest, 10_000),
}


@pytest.mark.parametrize("user_id", BAD_USER_IDS.values(), ids=BAD_USER_IDS.keys())
@pytest.mark.parametrize("rpc", TARGET_REQUESTS)
def test_a_bad_user_id_is_refused_and_so_are_the_good_ones_beside_it(
    installation: Installation, rpc: str, user_id: str
) -> None:
    request, _ = TARGET_REQUESTS[rpc]

    bad = request(flag_key=FLAG_KEY, user_ids=["anna", "bob", user_id, "carl"])

    check_refused(installation, rpc, bad, refused_by(rpc, invalid("user_ids[2]")))


@pytest.mark.parametrize("rpc", TARGET_REQUESTS)
def test_a_list_of_users_is_refused_when_empty_too_long_or_with_someone_twice(
    installation: Installation, rpc: str
) -> None:
    request, at_most = TARGET_REQUESTS[rpc]
    bad = {
        "user_ids": ([], [f"user-{number}" for number in range(at_most + 1)]),
        "user_ids[3]": (["a", "b", "c", "a", "b"],),
    }

    for field, lists in bad.items():
        for user_ids in lists:
            users = request(flag_key=FLAG_KEY, user_ids=user_ids)
            check_refused(installation, rpc, users, refused_by(rpc, invalid(field)))


# --- What a flag is made of ------------------------------------------------------------------------------------------


def aimed_at(*keys: str) -> list[SegmentTarget]:
    return [SegmentTarget(segment_key=key) for key in keys]


BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "long description": ({"description": "é" * 1_025}, "flag.description"),
    "NUL in the description": ({"description": "a\0"}, "flag.description"),
    "rollout below 0": ({"rollout_percentage": -1}, "flag.rollout_percentage"),
    "rollout above 100": ({"rollout_percentage": 101}, "flag.rollout_percentage"),
    "lowest rollout": ({"rollout_percentage": -(2**31)}, "flag.rollout_percentage"),
    "highest rollout": ({"rollout_percentage": 2**31 - 1}, "flag.rollout_percentage"),
    "33 tags": ({"tags": [f"t{number}" for number in range(33)]}, "flag.tags"),
    "empty tag": ({"tags": ["a", ""]}, "flag.tags[1]"),
    "long tag": ({"tags": ["é" * 65]}, "flag.tags[0]"),
    "NUL in a tag": ({"tags": ["a", "b\0"]}, "flag.tags[1]"),
    "tag twice": ({"tags": ["a", "b", "a"]}, "flag.tags[2]"),
    "long owner": ({"owner": "é" * 257}, "flag.owner"),
    "NUL in the owner": ({"owner": "\0"}, "flag.owner"),
    "65 segments": ({"segment_targets": aimed_at(*SEGMENT_KEYS, "another")}, "flag.segment_targets"),
    "segment twice": ({"segment_targets": aimed_at(*SEGMENT_KEYS[:2], SEGMENT_KEYS[0])}, "flag.segment_targets[2]"),
    "empty segment": ({"segment_targets": aimed_at("")}, "flag.segment_targets[0].segment_key"),
    "bad segment key": ({"segment_targets": aimed_at("a", "é")}, "flag.segment_targets[1].segment_key"),
}


@pytest.mark.parametrize(("fields", "field"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_a_flag_with_a_bad_field_is_not_created(installation: Installation, fields: dict[str, Any], field: str) -> None:
    request = pb.CreateFlagRequest(flag=Flag(key=new_key(), **fields))

    check_refused(installation, "CreateFlag", request, invalid(field))


@pytest.mark.parametrize(("fields", "field"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_a_bad_field_does_not_get_into_a_flag(installation: Installation, fields: dict[str, Any], field: str) -> None:
    request = pb.UpdateFlagRequest(flag=Flag(key=FLAG_KEY, **fields), update_mask=FieldMask(paths=fields))

    check_refused(installation, "UpdateFlag", request, invalid(field))


# --- What every mutation carries -------------------------------------------------------------------------------------

BAD_REQUEST_IDS = {
    "a word": "again",
    "too short": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b5",
    "too long": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b521",
    "without dashes": "6f1c1e9c2f0a4b7a9d7e0c6a1f6f0b52",
    "in braces": "{6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b52}",
    "as a URN": "urn:uuid:6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b52",
    "with a space for a digit": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b5 ",
    "with an underscore for a digit": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a_f6f0b52",
    "with a digit of another script": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b٣2",
    "with NUL": "6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b5\0",
}


@pytest.mark.parametrize("request_id", BAD_REQUEST_IDS.values(), ids=BAD_REQUEST_IDS.keys())
@EACH_MUTATION
def test_a_request_id_that_is_no_uuid_is_refused(
    installation: Installation, mutation: Mutation, request_id: str
) -> None:
    request = mutation.request(FLAG_KEY, request_id=request_id)

    check_refused(installation, mutation.rpc, request, mutation.refused(invalid("request_id")))


@pytest.mark.parametrize("reason", ["é" * 1_025, "a\0b"], ids=["1,025 characters", "NUL"])
@EACH_MUTATION
def test_a_bad_change_reason_is_refused(installation: Installation, mutation: Mutation, reason: str) -> None:
    request = mutation.request(FLAG_KEY, change_reason=reason)

    check_refused(installation, mutation.rpc, request, mutation.refused(invalid("change_reason")))


# --- Lists -----------------------------------------------------------------------------------------------------------

BAD_LISTS: dict[str, tuple[str, Any, str]] = {
    "flags, page size below 0": ("ListFlags", pb.ListFlagsRequest(page_size=-1), "page_size"),
    "flags, page size above 1,000": ("ListFlags", pb.ListFlagsRequest(page_size=1_001), "page_size"),
    "targets, page size below 0": ("ListTargets", pb.ListTargetsRequest(flag_key=FLAG_KEY, page_size=-1), "page_size"),
    "targets, page size above 1,000": (
        "ListTargets",
        pb.ListTargetsRequest(flag_key=FLAG_KEY, page_size=1_001),
        "page_size",
    ),
    "flags, NUL in a page token": ("ListFlags", pb.ListFlagsRequest(page_token="\0"), "page_token"),
    "targets, a word for a page token": (
        "ListTargets",
        pb.ListTargetsRequest(flag_key=FLAG_KEY, page_token="more"),
        "page_token",
    ),
    "prefix longer than any key": ("ListFlags", pb.ListFlagsRequest(key_prefix="x" * 129), "key_prefix"),
    "NUL in a prefix": ("ListFlags", pb.ListFlagsRequest(key_prefix="\0"), "key_prefix"),
    "owner longer than any": ("ListFlags", pb.ListFlagsRequest(owner="x" * 257), "owner"),
    "NUL in an owner": ("ListFlags", pb.ListFlagsRequest(owner="\0"), "owner"),
    "empty tag": ("ListFlags", pb.ListFlagsRequest(tags=[""]), "tags[0]"),
    "tag longer than any": ("ListFlags", pb.ListFlagsRequest(tags=["a", "x" * 65]), "tags[1]"),
    "NUL in a tag": ("ListFlags", pb.ListFlagsRequest(tags=["\0"]), "tags[0]"),
    "tag twice": ("ListFlags", pb.ListFlagsRequest(tags=["a", "a"]), "tags[1]"),
}


@pytest.mark.parametrize(("rpc", "listing", "field"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_bad_request_for_a_list_is_refused(installation: Installation, rpc: str, listing: Any, field: str) -> None:
    check_refused(installation, rpc, listing, invalid(field))
