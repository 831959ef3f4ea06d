"""The flag: valid by construction, named by its etag, the same after a trip through its document."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.etag import etag
from gatekeeper_grpc.domain.flag import (
    VARIANTS,
    Flag,
    FlagConfig,
    SegmentTarget,
    flag_document,
    flag_from_document,
)
from tests.support.flags import EPOCH, flag, on_for


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"key": "a"}, id="shortest key"),
        pytest.param({"key": "Z" * 128}, id="longest key"),
        pytest.param({"key": "0.A_b-9"}, id="every kind of character"),
        pytest.param({"description": "ü" * 1_024}, id="longest description"),
        pytest.param({"rollout_percentage": 0}, id="nobody"),
        pytest.param({"rollout_percentage": 100}, id="everybody"),
        pytest.param({"segment_targets": on_for(*(f"s{n}" for n in range(64)))}, id="most segments"),
        pytest.param({"tags": tuple(f"t{n}" for n in range(32))}, id="most tags"),
        pytest.param({"tags": ("ü" * 64,)}, id="longest tag"),
        pytest.param({"owner": "ü" * 256}, id="longest owner"),
    ],
)
def test_a_config_within_the_limits_is_accepted(config: dict[str, Any]) -> None:
    fields = {"key": "flag", **config}

    assert FlagConfig(**fields) == replace(FlagConfig(key=fields["key"]), **fields)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        pytest.param({"key": ""}, "flag.key", id="no key"),
        pytest.param({"key": "a" * 129}, "flag.key", id="key too long"),
        pytest.param({"key": "-a"}, "flag.key", id="key begins with a dash"),
        pytest.param({"key": "a\n"}, "flag.key", id="key ends with a newline"),
        pytest.param({"key": "ä"}, "flag.key", id="key is not ASCII"),
        pytest.param({"description": "x" * 1_025}, "flag.description", id="description too long"),
        pytest.param({"description": "\0"}, "flag.description", id="NUL in the description"),
        pytest.param({"rollout_percentage": -1}, "flag.rollout_percentage", id="rollout below 0"),
        pytest.param({"rollout_percentage": 101}, "flag.rollout_percentage", id="rollout above 100"),
        pytest.param({"rollout_percentage": -(2**31)}, "flag.rollout_percentage", id="lowest rollout"),
        pytest.param({"rollout_percentage": 2**31 - 1}, "flag.rollout_percentage", id="highest rollout"),
        pytest.param(
            {"segment_targets": on_for(*(f"s{n}" for n in range(65)))}, "flag.segment_targets", id="65 segments"
        ),
        pytest.param(
            {"segment_targets": on_for("a", "?")}, "flag.segment_targets[1].segment_key", id="bad segment key"
        ),
        pytest.param({"segment_targets": on_for("")}, "flag.segment_targets[0].segment_key", id="empty segment key"),
        pytest.param({"segment_targets": on_for("a", "a")}, "flag.segment_targets[1]", id="segment twice"),
        pytest.param({"tags": tuple(f"t{n}" for n in range(33))}, "flag.tags", id="33 tags"),
        pytest.param({"tags": ("a", "")}, "flag.tags[1]", id="empty tag"),
        pytest.param({"tags": ("x" * 65,)}, "flag.tags[0]", id="tag too long"),
        pytest.param({"tags": ("a", "b\0")}, "flag.tags[1]", id="NUL in a tag"),
        pytest.param({"tags": ("a", "b", "a")}, "flag.tags[2]", id="tag twice"),
        pytest.param({"owner": "x" * 257}, "flag.owner", id="owner too long"),
        pytest.param({"owner": "\0"}, "flag.owner", id="NUL in the owner"),
    ],
)
def test_a_config_beyond_a_limit_is_refused_and_the_field_named(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        FlagConfig(**{"key": "flag", **config})

    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        pytest.param(("flag", 1, 7), True, id="same state"),
        pytest.param(("flag", 1, 8), False, id="changed"),
        pytest.param(("flag", 2, 7), False, id="deleted and created again"),
        pytest.param(("segment", 1, 7), False, id="another kind"),
        pytest.param(("flag", 17, 7), False, id="digits moved from the revision to the id"),
    ],
)
def test_an_etag_names_one_state_of_one_resource(other: tuple[str, int, int], *, same: bool) -> None:
    assert (etag("flag", 1, 7) == etag(*other)) is same


def test_an_etag_is_16_opaque_characters() -> None:
    assert (len(flag().etag), flag().etag.isdigit()) == (16, False)


flags = st.builds(
    Flag,
    flag_id=st.integers(1, 2**63 - 1),
    config=st.builds(
        FlagConfig,
        key=st.just("flag"),
        description=st.text(st.characters(exclude_characters="\0", codec="utf-8")),
        enabled=st.booleans(),
        default_variant=st.sampled_from(VARIANTS),
        rollout_percentage=st.integers(0, 100),
        segment_targets=st.lists(
            st.builds(SegmentTarget, segment_key=st.sampled_from("abc"), variant=st.sampled_from(VARIANTS)),
            unique_by=lambda target: target.segment_key,
        ).map(tuple),
        tags=st.lists(st.sampled_from(["ui", "ünï", "beta"]), unique=True).map(tuple),
        owner=st.sampled_from(["", "team-a"]),
    ),
    create_time=st.just(EPOCH),
    update_time=st.timedeltas(timedelta(0), timedelta(days=9_999)).map(lambda age: EPOCH + age),
    revision=st.integers(1, 2**53),
)


@settings(max_examples=50)
@given(flags)
def test_a_flag_survives_its_document_and_json(stored: Flag) -> None:
    assert flag_from_document(json.loads(json.dumps(flag_document(stored)))) == stored
