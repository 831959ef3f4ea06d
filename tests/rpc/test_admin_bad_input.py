"""Bad input: refused by the name of its field, nothing written, never UNKNOWN or INTERNAL.

Each RPC is shown to refuse one bad value in each place. Which values are bad is shown where they are checked: in
tests/unit/domain/test_limits.py, test_flag.py and test_segment.py, and in tests/unit/wire.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import Segment
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

pytestmark = pytest.mark.promise("D6")

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

# Where a key stands in each request, and the request with a key there.
KEY_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "CreateFlag": ("flag.key", lambda key: pb.CreateFlagRequest(flag=Flag(key=key))),
    "GetFlag": ("key", lambda key: pb.GetFlagRequest(key=key)),
    "UpdateFlag": (
        "flag.key",
        lambda key: pb.UpdateFlagRequest(flag=Flag(key=key), update_mask=FieldMask(paths=["enabled"])),
    ),
    "PreviewFlagChange": (
        "flag.key",
        lambda key: pb.PreviewFlagChangeRequest(flag=Flag(key=key), update_mask=FieldMask(paths=["enabled"])),
    ),
    "GetFlagUsage": ("key", lambda key: pb.GetFlagUsageRequest(key=key)),
    "DeleteFlag": ("key", lambda key: pb.DeleteFlagRequest(key=key)),
    "AddTargets": ("flag_key", lambda key: pb.AddTargetsRequest(flag_key=key, user_ids=["a"], value=False)),
    "RemoveTargets": ("flag_key", lambda key: pb.RemoveTargetsRequest(flag_key=key, user_ids=["a"])),
    "ListTargets": ("flag_key", lambda key: pb.ListTargetsRequest(flag_key=key)),
    "ImportTargets": ("flag_key", lambda key: pb.ImportTargetsRequest(flag_key=key, user_ids=["a"], value=False)),
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
    "ApplyConfiguration": ("flags[0].key", lambda key: pb.ApplyConfigurationRequest(flags=[Flag(key=key)])),
    "ListSegmentMembers": ("segment_key", lambda key: pb.ListSegmentMembersRequest(segment_key=key)),
}


# PostgreSQL would refuse NUL with an error of its own; an empty key could pass for "not given".
@pytest.mark.parametrize("key", ["", "a\0"], ids=["empty", "NUL"])
@pytest.mark.parametrize("rpc", KEY_FIELDS)
def test_a_bad_key_is_refused_by_every_rpc_that_takes_one(installation: Installation, rpc: str, key: str) -> None:
    field, request = KEY_FIELDS[rpc]

    check_refused(installation, rpc, request(key), refused_by(rpc, invalid(field)))


def test_every_rpc_for_one_flag_or_segment_is_in_the_table_of_keys() -> None:
    of_keys = {rpc.name for rpc in SERVICE.methods if re.search("Flag|Target|Segment", rpc.name)}

    assert of_keys - {"ListFlags", "ListUnknownFlagKeys", "ListSegments"} == KEY_FIELDS.keys() - {"ApplyConfiguration"}


TARGET_REQUESTS = {
    "AddTargets": (pb.AddTargetsRequest, 1_000),
    "RemoveTargets": (pb.RemoveTargetsRequest, 1_000),
    "ImportTargets": (pb.ImportTargetsRequest, 10_000),
}


@pytest.mark.parametrize("rpc", TARGET_REQUESTS)
def test_one_bad_user_id_refuses_the_good_ones_of_its_list_too(installation: Installation, rpc: str) -> None:
    request, _ = TARGET_REQUESTS[rpc]

    bad = request(flag_key=FLAG_KEY, user_ids=["anna", "bob", "a\0b", "carl"])

    check_refused(installation, rpc, bad, refused_by(rpc, invalid("user_ids[2]")))


@pytest.mark.parametrize("rpc", TARGET_REQUESTS)
def test_a_list_of_users_is_refused_if_empty_too_long_or_with_a_repetition(
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


def segment_targets(*keys: str) -> list[SegmentTarget]:
    return [SegmentTarget(segment_key=key, value=False) for key in keys]


BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "description": ({"description": "é" * 1_025}, "flag.description"),
    "rollout": ({"rollout_percentage": 2**31 - 1}, "flag.rollout_percentage"),
    "tags": ({"tags": ["a", "b\0"]}, "flag.tags[1]"),
    "owner": ({"owner": "\0"}, "flag.owner"),
    "segment targets": (
        {"segment_targets": segment_targets("a", "é")},
        "flag.segment_targets[1].segment_key",
    ),
    "a segment twice": (
        {"segment_targets": segment_targets(*SEGMENT_KEYS[:2], SEGMENT_KEYS[0])},
        "flag.segment_targets[2]",
    ),
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


@EACH_MUTATION
def test_a_request_id_that_is_no_uuid_is_refused(installation: Installation, mutation: Mutation) -> None:
    # Python's own UUID type would accept it.
    request = mutation.request(FLAG_KEY, request_id="6f1c1e9c2f0a4b7a9d7e0c6a1f6f0b52")

    check_refused(installation, mutation.rpc, request, mutation.refused(invalid("request_id")))


@EACH_MUTATION
def test_a_bad_change_reason_is_refused(installation: Installation, mutation: Mutation) -> None:
    request = mutation.request(FLAG_KEY, change_reason="a\0b")

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
