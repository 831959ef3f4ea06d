"""The columns of flags."""

from dataclasses import fields

from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.store import flags


def test_every_field_of_a_flag_is_stored() -> None:
    assert {*flags._FIELDS, "segment_targets"} == {field.name for field in fields(FlagConfig)}
