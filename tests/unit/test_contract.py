"""What the protos promise to every client, beyond what buf checks: kept numbers, fixed words, options, widths."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.wire.flags import flag_config_from_proto, targets_from_proto

PROTOS = Path(__file__).parents[2] / "protos"
FILES = sorted((PROTOS / "gatekeeper" / "v1").glob("*.proto"))
MAX_LINE_CHARS = 100
# For the environment, in every message alike.
ENVIRONMENT_NUMBER = 20
OPTIONS = ("csharp_namespace", "go_package", "java_outer_classname", "java_package", "php_namespace", "ruby_package")
WORDS = ("REQUIRED", "OUTPUT_ONLY")
# Of a resource, what the server decides.
DECIDED = {"create_time", "update_time", "revision", "member_count", "admin_id", "key_id", "token_id", "revoke_time"}
RESOURCES = {"Flag", "Segment", "User", "AdminUser", "ClientKey", "ApiToken"}


@cache
def files() -> list[FileDescriptorProto]:
    """The protos with their comments, as plain protoc reads them."""
    command: list[str | Path] = [sys.executable, "-m", "grpc_tools.protoc", "-I", PROTOS, "--include_source_info"]
    done = subprocess.run([*command, "-o/dev/stdout", *FILES], check=True, capture_output=True)
    return [*FileDescriptorSet.FromString(done.stdout).file]


def messages() -> dict[str, DescriptorProto]:
    return {message.name: message for file in files() for message in file.message_type}


def comments() -> dict[str, str]:
    """The comment of each field, as "Message.field"."""
    found = {}
    for file in files():
        for location in file.source_code_info.location:
            match [*location.path]:
                case [4, message, 2, field]:
                    owner = file.message_type[message]
                    text = " ".join(location.leading_comments.split())
                    found[f"{owner.name}.{owner.field[field].name}"] = text
    return found


def test_no_message_uses_or_reserves_the_number_of_the_environment() -> None:
    for name, message in messages().items():
        assert ENVIRONMENT_NUMBER not in {field.number for field in message.field}, name
        # A number taken out of `reserved` later is a breaking change to buf.
        assert not message.reserved_range, name
        assert not message.reserved_name, name


def test_each_file_names_the_package_of_each_language() -> None:
    missing = [(file.name, option) for file in files() for option in OPTIONS if not getattr(file.options, option)]

    assert not missing
    assert all(file.options.java_multiple_files for file in files())
    assert len({file.options.java_outer_classname for file in files()}) == len(files())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_line_is_longer_than_100_characters(path: Path) -> None:
    long = [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > MAX_LINE_CHARS]

    assert not long


def test_what_is_required_or_output_only_is_said_in_fixed_words() -> None:
    other = re.compile(r"\b(?:required|output[- ]only|OUTPUT ONLY|Required)\b")
    text = {name: comment for name, comment in comments().items() if other.search(comment)}

    assert not text
    assert {word for word in WORDS for comment in comments().values() if word in comment} == {*WORDS}


def test_a_field_is_never_both_required_and_decided_by_the_server() -> None:
    said = {name: {word for word in WORDS if f"{word}." in text} for name, text in comments().items()}
    decided = {
        f"{name}.{field.name}" for name in RESOURCES for field in messages()[name].field if field.name in DECIDED
    }

    assert {name for name in decided if said[name] != {"OUTPUT_ONLY"}} == set()
    requests = {name for name in said if "Request." in name and "OUTPUT_ONLY" in said[name]}
    assert requests == set()


def test_all_counts_have_one_width() -> None:
    counts = {
        f"{name}.{field.name}": field.type
        for name, message in messages().items()
        for field in message.field
        if re.search(r"_count$|^(?:verified|redacted|applied|incomparable)_|_(?:removed|redacted)$", field.name)
        and field.type in (FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.TYPE_INT64)
    }

    assert len(counts) > 10
    assert {name for name, width in counts.items() if width != FieldDescriptorProto.TYPE_INT64} == set()


@pytest.mark.parametrize(
    ("message", "oneof", "fields"),
    [
        *(
            (name, "served", ["value", "variant"])
            for name in ("Target", "SegmentTarget", "AddTargetsRequest", "ImportTargetsRequest", "ExportedTarget")
        ),
        ("BulkEvaluateFlagsResponse", "content", ["header", "batch"]),
        ("BulkEvaluationResult", "outcome", ["evaluation", "error"]),
        ("EvaluationContext", "_user_id", ["user_id"]),
    ],
)
def test_what_can_only_be_decided_before_a_release_is_decided(message: str, oneof: str, fields: list[str]) -> None:
    (index,) = [number for number, group in enumerate(messages()[message].oneof_decl) if group.name == oneof]

    grouped = [f.name for f in messages()[message].field if f.HasField("oneof_index") and f.oneof_index == index]
    assert grouped == fields


def add(**served: Any) -> admin.AddTargetsRequest:
    return admin.AddTargetsRequest(flag_key="beta", user_ids=["anna"], **served)


@pytest.mark.parametrize("request_type", [admin.AddTargetsRequest, admin.ImportTargetsRequest])
def test_targets_take_a_value_or_the_variant_of_the_same(request_type: type) -> None:
    variants = [
        targets_from_proto(request_type(flag_key="beta", user_ids=["anna"], **served)).variant
        for served in ({"value": False}, {"variant": "off"}, {"value": True}, {"variant": "on"})
    ]

    assert variants == ["off", "off", "on", "on"]


@pytest.mark.parametrize(
    ("served", "field"), [({}, "value"), ({"variant": ""}, "variant"), ({"variant": "ON"}, "variant")]
)
def test_targets_without_a_known_variant_are_refused_by_name(served: dict[str, Any], field: str) -> None:
    flag = Flag(key="beta", segment_targets=[SegmentTarget(segment_key="a", value=True), SegmentTarget(**served)])

    with pytest.raises(InvalidArgument) as of_request:
        targets_from_proto(add(**served))
    with pytest.raises(InvalidArgument) as of_flag:
        flag_config_from_proto(admin.CreateFlagRequest(flag=flag))

    assert [violation.field for violation in of_request.value.violations] == [field]
    assert [violation.field for violation in of_flag.value.violations] == [f"flag.segment_targets[1].{field}"]
    assert '"on" or "off"' in str(of_request.value)
