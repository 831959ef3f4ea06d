"""Configurations, from messages."""

import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.audit_pb2 import RESOURCE_TYPE_FLAG
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import Segment
from gatekeeper_grpc.domain.configuration import AppliedChange, Deletion, WantedUsers
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.flag import ON
from gatekeeper_grpc.domain.flag import SegmentTarget as DomainTarget
from gatekeeper_grpc.domain.mutation import ChangeType, ResourceType
from gatekeeper_grpc.wire.configuration import MAX_ENTRIES, applied_change_to_proto, configuration_from_proto


def test_a_configuration_keeps_what_it_says_and_where() -> None:
    wanted = configuration_from_proto(
        pb.ApplyConfigurationRequest(
            flags=[Flag(key="a", etag="e", segment_targets=[SegmentTarget(segment_key="s", value=True)])],
            segments=[Segment(key="s")],
            targets=[pb.ConfiguredTargets(flag_key="a", variant="on", user_ids=["ann"], remove_others=True)],
            members=[pb.ConfiguredMembers(segment_key="s", user_ids=["bob"])],
            flag_deletions=[pb.ConfigurationDeletion(key="b", etag="f")],
        )
    )

    (flag,) = wanted.flags
    assert (flag.field, flag.etag, flag.config.segment_targets) == (
        "flags[0]",
        "e",
        (DomainTarget(segment_key="s", variant=ON),),
    )
    assert wanted.segments[0].config.key == "s"
    assert wanted.targets == [
        WantedUsers(field="targets[0]", key="a", user_ids=("ann",), variant=ON, removes_others=True)
    ]
    assert wanted.members == [WantedUsers(field="members[0]", key="s", user_ids=("bob",))]
    assert wanted.flag_deletions == [Deletion(field="flag_deletions[0]", key="b", etag="f")]


BAD = {
    "members twice": (
        pb.ApplyConfigurationRequest(members=[pb.ConfiguredMembers(segment_key="s")] * 2),
        "members[1].segment_key",
    ),
    "a value twice": (
        pb.ApplyConfigurationRequest(targets=[pb.ConfiguredTargets(flag_key="a", value=True)] * 2),
        "targets[1].flag_key",
    ),
    "a segment to make and to delete": (
        pb.ApplyConfigurationRequest(
            segments=[Segment(key="s")], segment_deletions=[pb.ConfigurationDeletion(key="s")]
        ),
        "segment_deletions[0].key",
    ),
    "a bad key to delete": (
        pb.ApplyConfigurationRequest(flag_deletions=[pb.ConfigurationDeletion(key="?")]),
        "flag_deletions[0].key",
    ),
    "too many entries": (
        pb.ApplyConfigurationRequest(flag_deletions=[pb.ConfigurationDeletion(key="a")] * (MAX_ENTRIES + 1)),
        "flag_deletions",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_by_its_path(name: str) -> None:
    request, field = BAD[name]

    with pytest.raises(InvalidArgument) as raised:
        configuration_from_proto(request)

    assert raised.value.metadata["field"] == field


def test_a_change_has_the_names_and_counts_of_messages() -> None:
    change = AppliedChange(
        resource=ResourceType.FLAG,
        key="a",
        change=ChangeType.UPDATED,
        fields=("default_variant", "owner"),
        counts={"added": 2},
        revision=7,
    )

    assert applied_change_to_proto(change) == pb.ConfigurationChange(
        resource_type=RESOURCE_TYPE_FLAG,
        key="a",
        change_type=pb.CONFIGURATION_CHANGE_TYPE_UPDATED,
        fields=["default_value", "owner"],
        added_count=2,
        revision=7,
    )
