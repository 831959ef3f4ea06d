"""CreateFlag, GetFlag, UpdateFlag, DeleteFlag: what they do to a flag, and every way in which they refuse."""

from collections.abc import Callable

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import REASON_SPLIT, REASON_STATIC, REASON_TARGETING_MATCH
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget, Target
from tests.support.clients import (
    SEGMENT_KEYS,
    Installation,
    already_exists,
    changed_since_read,
    created,
    invalid,
    new_key,
    no_flag,
    no_segment,
    refusal_of,
)

SERVER_DECIDES = ("create_time", "update_time", "etag", "revision")
UPDATABLE = tuple(name for name in Flag.DESCRIPTOR.fields_by_name if name not in ("key", *SERVER_DECIDES))


def bare_flag(key: str) -> Flag:
    return Flag(key=key)


def rich_flag(key: str, *, etag: str = "") -> Flag:
    """Build a flag with something else than the default in every field that an editor decides."""
    return Flag(
        key=key,
        etag=etag,
        description="The new checkout — für alle, 全員 🎉",
        enabled=True,
        default_value=True,
        rollout_percentage=25,
        segment_targets=[
            SegmentTarget(segment_key=SEGMENT_KEYS[7], value=True),
            SegmentTarget(segment_key=SEGMENT_KEYS[3], value=False),
        ],
        tags=["zeta", "alpha"],
        owner="team-payments",
    )


def largest_flag(key: str) -> Flag:
    """Build a flag that is at every limit there is, and beyond none."""
    return Flag(
        key=key.ljust(128, "x"),
        description="\U0001f389" * 1_024,
        rollout_percentage=100,
        segment_targets=[SegmentTarget(segment_key=segment_key, value=False) for segment_key in SEGMENT_KEYS],
        tags=[f"{number:02}" + "é" * 62 for number in range(32)],
        owner="é" * 256,
    )


def decided_by_editor(flag: Flag) -> Flag:
    """Return the flag without what the server decides."""
    config = Flag()
    config.CopyFrom(flag)
    for field in SERVER_DECIDES:
        config.ClearField(field)  # type: ignore[arg-type] # One of its fields.
    return config


def got(installation: Installation, key: str) -> pb.GetFlagResponse:
    return installation.admin.GetFlag(pb.GetFlagRequest(key=key))


def updated(installation: Installation, flag: Flag, *paths: str) -> pb.UpdateFlagResponse:
    return installation.admin.UpdateFlag(pb.UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=paths)))


def recreated(installation: Installation, flag: Flag) -> Flag:
    installation.admin.DeleteFlag(pb.DeleteFlagRequest(key=flag.key))
    return installation.admin.CreateFlag(pb.CreateFlagRequest(flag=flag)).flag


def targets_of(installation: Installation, key: str) -> list[Target]:
    return list(installation.admin.ListTargets(pb.ListTargetsRequest(flag_key=key)).targets)


@pytest.mark.parametrize("build", [rich_flag, bare_flag, largest_flag])
def test_create_keeps_what_the_editor_decided(installation: Installation, build: Callable[[str], Flag]) -> None:
    flag = build(new_key())

    response = installation.admin.CreateFlag(pb.CreateFlagRequest(flag=flag))

    assert decided_by_editor(response.flag) == flag
    assert got(installation, flag.key) == pb.GetFlagResponse(flag=response.flag, revision=response.revision)


def test_create_returns_the_flag_with_time_revision_and_etag(installation: Installation) -> None:
    before = Timestamp()
    before.GetCurrentTime()

    response = installation.admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=new_key())))

    assert before.ToDatetime() <= response.flag.create_time.ToDatetime()
    assert response.flag.update_time == response.flag.create_time
    assert response.flag.revision == response.revision == installation.revision()
    assert response.flag.etag


def test_create_ignores_what_only_the_server_decides(installation: Installation) -> None:
    long_ago = Timestamp(seconds=1)
    sent = Flag(key=new_key(), create_time=long_ago, update_time=long_ago, etag="mine", revision=99_999)

    flag = installation.admin.CreateFlag(pb.CreateFlagRequest(flag=sent)).flag

    assert long_ago not in (flag.create_time, flag.update_time)
    assert (flag.etag != "mine", flag.revision) == (True, installation.revision())


def test_create_refuses_a_key_that_is_taken(installation: Installation) -> None:
    flag = created(installation.admin)

    assert refusal_of(lambda: created(installation.admin, key=flag.key)) == already_exists(flag_key=flag.key)
    assert got(installation, flag.key).flag == flag


def test_create_refuses_a_segment_that_does_not_exist_and_creates_nothing(installation: Installation) -> None:
    targets = [
        SegmentTarget(segment_key=SEGMENT_KEYS[0], value=False),
        SegmentTarget(segment_key="nobody", value=False),
    ]
    key = new_key()

    refusal = refusal_of(lambda: created(installation.admin, key=key, segment_targets=targets))

    assert refusal == no_segment("nobody")
    assert refusal_of(lambda: got(installation, key)) == no_flag(key)


def test_keys_are_case_sensitive(installation: Installation) -> None:
    lower = created(installation.admin, key=f"{new_key()}beta", description="lower")
    upper = created(installation.admin, key=lower.key.replace("beta", "Beta"), description="upper")

    assert [got(installation, flag.key).flag.description for flag in (lower, upper)] == ["lower", "upper"]


def test_get_refuses_a_key_that_no_flag_has(installation: Installation) -> None:
    assert refusal_of(lambda: got(installation, "nobody")) == no_flag("nobody")


@pytest.mark.parametrize("path", UPDATABLE)
def test_update_changes_the_field_in_the_mask_and_no_other(installation: Installation, path: str) -> None:
    before = created(installation.admin)
    expected = decided_by_editor(before)
    FieldMask(paths=[path]).MergeMessage(rich_flag(before.key), expected)

    after = updated(installation, rich_flag(before.key), path).flag

    assert decided_by_editor(after) == expected != decided_by_editor(before)
    assert got(installation, before.key).flag == after


@pytest.mark.parametrize("path", UPDATABLE)
def test_update_sets_a_masked_field_that_was_not_sent_to_its_default(installation: Installation, path: str) -> None:
    rich = installation.admin.CreateFlag(pb.CreateFlagRequest(flag=rich_flag(new_key()))).flag
    expected = decided_by_editor(rich)
    expected.ClearField(path)  # type: ignore[arg-type] # One of its fields.

    after = updated(installation, Flag(key=rich.key), path).flag

    assert decided_by_editor(after) == expected


@pytest.mark.parametrize("paths", [UPDATABLE, (*UPDATABLE, *UPDATABLE)], ids=["each path once", "each path twice"])
def test_update_changes_all_fields_of_the_mask_at_once(installation: Installation, paths: tuple[str, ...]) -> None:
    flag = rich_flag(created(installation.admin).key)

    assert decided_by_editor(updated(installation, flag, *paths).flag) == flag


def test_update_keeps_the_creation_time_and_renews_time_revision_and_etag(
    installation: Installation,
) -> None:
    before = created(installation.admin)

    response = updated(installation, Flag(key=before.key, enabled=True), "enabled")

    after = response.flag
    assert after.create_time == before.create_time
    assert after.update_time.ToDatetime() > before.update_time.ToDatetime()
    assert after.revision == response.revision > before.revision
    assert after.etag != before.etag


BAD_MASKS = {
    "absent": ((), "update_mask"),
    "unknown path": (("colour",), "update_mask.paths[0]"),
    "empty path": (("",), "update_mask.paths[0]"),
    "everything": (("*",), "update_mask.paths[0]"),
    "the key": (("key",), "update_mask.paths[0]"),
    "create_time": (("create_time",), "update_mask.paths[0]"),
    "update_time": (("update_time",), "update_mask.paths[0]"),
    "etag": (("etag",), "update_mask.paths[0]"),
    "revision": (("revision",), "update_mask.paths[0]"),
    "nested in the request": (("flag.enabled",), "update_mask.paths[0]"),
    "nested in a field": (("segment_targets.value",), "update_mask.paths[0]"),
    "an element": (("segment_targets[0]",), "update_mask.paths[0]"),
    "as JSON writes it": (("defaultValue",), "update_mask.paths[0]"),
    "of another case": (("Enabled",), "update_mask.paths[0]"),
    "with a space": (("enabled ",), "update_mask.paths[0]"),
    "bad after good": (("enabled", "owner", "colour"), "update_mask.paths[2]"),
}


@pytest.mark.parametrize(("paths", "field"), BAD_MASKS.values(), ids=BAD_MASKS.keys())
def test_update_refuses_a_mask_with_any_other_path_and_changes_nothing(
    installation: Installation, paths: tuple[str, ...], field: str
) -> None:
    before = got(installation, created(installation.admin).key)

    assert refusal_of(lambda: updated(installation, rich_flag(before.flag.key), *paths)) == invalid(field)
    assert got(installation, before.flag.key) == before


def test_update_refuses_an_unknown_flag(installation: Installation) -> None:
    assert refusal_of(lambda: updated(installation, Flag(key="nobody"), "enabled")) == no_flag("nobody")


def test_update_refuses_an_unknown_segment_and_keeps_those_it_had(
    installation: Installation,
) -> None:
    before = created(installation.admin, segment_targets=[SegmentTarget(segment_key=SEGMENT_KEYS[0], value=False)])
    wanted = Flag(key=before.key, segment_targets=[SegmentTarget(segment_key="nobody", value=False)])

    assert refusal_of(lambda: updated(installation, wanted, "segment_targets")) == no_segment("nobody")
    assert got(installation, before.key).flag == before


def test_update_refuses_an_earlier_etag_and_names_the_current_one(installation: Installation) -> None:
    first = created(installation.admin)
    second = updated(installation, Flag(key=first.key, enabled=True), "enabled").flag

    refusal = refusal_of(lambda: updated(installation, rich_flag(first.key, etag=first.etag), *UPDATABLE))

    assert refusal == changed_since_read(current_etag=second.etag)
    assert got(installation, first.key).flag == second


def test_delete_removes_the_flag(installation: Installation) -> None:
    flag = created(installation.admin)

    response = installation.admin.DeleteFlag(pb.DeleteFlagRequest(key=flag.key, etag=flag.etag))

    assert response.revision == flag.revision + 1
    assert refusal_of(lambda: got(installation, flag.key)) == no_flag(flag.key)


def test_delete_refuses_an_unknown_flag(installation: Installation) -> None:
    assert refusal_of(lambda: installation.admin.DeleteFlag(pb.DeleteFlagRequest(key="nobody"))) == no_flag("nobody")


def test_a_flag_created_under_a_freed_key_has_none_of_the_old_targets(installation: Installation) -> None:
    flag = created(installation.admin, enabled=True)
    installation.admin.AddTargets(pb.AddTargetsRequest(flag_key=flag.key, user_ids=["anna"], value=True))
    before = installation.evaluate(flag.key, "anna").reason

    recreated(installation, flag)

    assert (before, installation.evaluate(flag.key, "anna").reason) == (REASON_TARGETING_MATCH, REASON_STATIC)
    assert targets_of(installation, flag.key) == []


def test_a_flag_created_under_a_freed_key_keeps_all_buckets(installation: Installation) -> None:
    flag = created(installation.admin, enabled=True, rollout_percentage=50)
    users = [f"user-{number}" for number in range(50)]
    before = [installation.evaluate(flag.key, user) for user in users]

    recreated(installation, flag)

    assert [installation.evaluate(flag.key, user) for user in users] == before
    assert {detail.reason for detail in before} == {REASON_SPLIT}


def test_a_flag_created_under_a_freed_key_has_another_etag(installation: Installation) -> None:
    old = created(installation.admin)

    new = recreated(installation, old)

    assert refusal_of(lambda: updated(installation, old, "enabled")) == changed_since_read(current_etag=new.etag)


def test_every_change_of_a_flag_is_evaluated_by_the_time_it_is_answered(installation: Installation) -> None:
    flag, seen = Flag(key=new_key(), default_value=True), []
    changes: tuple[Callable[[], object], ...] = (
        lambda: installation.admin.CreateFlag(pb.CreateFlagRequest(flag=flag)),
        lambda: updated(installation, Flag(key=flag.key), "default_value"),
        lambda: installation.admin.DeleteFlag(pb.DeleteFlagRequest(key=flag.key)),
    )

    for change in changes:
        change()
        seen.append(installation.evaluate(flag.key, "anna").variant)

    assert seen == ["on", "off", ""]
