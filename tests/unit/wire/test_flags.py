"""Flags on the wire: no field of an editor's is lost on the way in or out."""

from dataclasses import fields
from datetime import UTC, datetime

from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest, UpdateFlagRequest
from gatekeeper_client.v1.flag_pb2 import Flag as FlagMessage
from gatekeeper_grpc.domain.flag import ON, Flag, FlagConfig, SegmentTarget
from gatekeeper_grpc.wire.flags import flag_config_from_proto, flag_to_proto, flag_update_from_proto

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVER_DECIDES = {"create_time", "update_time", "etag", "revision"}
EDITOR_DECIDES = set(FlagMessage.DESCRIPTOR.fields_by_name) - SERVER_DECIDES - {"key"}
# Every field differs from its default.
CONFIG = FlagConfig(
    key="checkout",
    description="a",
    enabled=True,
    default_variant=ON,
    rollout_percentage=7,
    segment_targets=(SegmentTarget(segment_key="staff", variant=ON),),
    tags=("a", "b"),
    owner="team",
)


def message() -> FlagMessage:
    return flag_to_proto(Flag(flag_id=1, config=CONFIG, create_time=NOW, update_time=NOW, revision=3))


def test_every_field_of_a_flag_is_written() -> None:
    assert {field.name for field, _ in message().ListFields()} == set(FlagMessage.DESCRIPTOR.fields_by_name)


def test_a_created_flag_has_every_field_of_the_message() -> None:
    assert flag_config_from_proto(CreateFlagRequest(flag=message())) == CONFIG


def test_every_field_that_an_editor_decides_can_be_updated() -> None:
    update = flag_update_from_proto(
        UpdateFlagRequest(flag=message(), update_mask=FieldMask(paths=sorted(EDITOR_DECIDES)))
    )

    decided = {field.name: getattr(CONFIG, field.name) for field in fields(CONFIG) if field.name != "key"}
    assert update.changes == decided
