"""The samples of docs/clients build with plain tools, and do against a real server what they say."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_SIGNING, RATE_TIER_HIGH, ClientKey
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EQUALS, Condition, Segment
from tests.support.processes import Gatekeeper, serving
from tests.support.samples import PROTOS, ROOT, SAMPLES, go_sample, java_classes, node_sample, run

FLAG = "sample"
PRINTED = [
    "value true on REASON_TARGETING_MATCH",
    "error INVALID_ARGUMENT INVALID_ARGUMENT flag_keys[0]",
    "signed 20",
    f"token {FLAG}",
    "watching",
    f"changed {FLAG}",
]


@pytest.fixture(scope="module")
def gatekeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatekeeper]:
    with serving(tmp_path_factory.mktemp("samples") / "data", "--demo") as started:
        with started.admin() as admin:
            make_flag(admin)
        yield started


def make_flag(admin: AdminServiceStub) -> None:
    """A flag that is on for those whose plan is pro: an attribute that got lost makes it false."""
    condition = Condition(attribute="plan", operator=CONDITION_OPERATOR_EQUALS, values=[Value(string_value="pro")])
    admin.CreateSegment(pb.CreateSegmentRequest(segment=Segment(key="pro", conditions=[condition])))
    targets = [SegmentTarget(segment_key="pro", value=True)]
    admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=FLAG, enabled=True, segment_targets=targets)))


def variables(gatekeeper: Gatekeeper, admin: AdminServiceStub) -> dict[str, str]:
    key = ClientKey(name="sample", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING)
    created = admin.CreateClientKey(pb.CreateClientKeyRequest(client_key=key))
    return {
        **os.environ,
        "PROTOS": str(PROTOS),
        "ADDRESS": f"127.0.0.1:{gatekeeper.port}",
        "KEY_ID": created.client_key.key_id,
        "KEY_SECRET": created.secret,
        "ADMIN_PASSWORD": (gatekeeper.data_dir / "admin_password").read_text().strip(),
    }


def change(admin: AdminServiceStub) -> None:
    now = admin.GetFlag(pb.GetFlagRequest(key=FLAG)).flag
    flag, mask = Flag(key=FLAG, description=now.description + "!"), FieldMask(paths=["description"])
    flag.default_value = not now.default_value
    mask.paths.append("default_value")
    admin.UpdateFlag(pb.UpdateFlagRequest(flag=flag, update_mask=mask))


def printed_by(command: list[Any], gatekeeper: Gatekeeper) -> list[str]:
    """Run a sample; the flag changes as soon as it watches."""
    lines = []
    with gatekeeper.admin() as admin:
        env = variables(gatekeeper, admin)
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with process:
            assert process.stdout
            assert process.stderr
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if lines[-1] == "watching":
                    change(admin)
            errors = process.stderr.read()
    assert process.returncode == 0, errors
    return lines


def test_the_python_sample_does_what_it_says(gatekeeper: Gatekeeper) -> None:
    assert printed_by([sys.executable, SAMPLES / "python" / "sample.py"], gatekeeper) == PRINTED


def test_the_python_sample_runs_with_the_oldest_dependencies(gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    client = tmp_path / "client"
    shutil.copytree(ROOT / "clients" / "python", client)
    python = tmp_path / "venv" / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--python", sys.executable, tmp_path / "venv", cwd=tmp_path)
    of_the_sample = ["grpcio-status>=1.60", "googleapis-common-protos>=1.62"]
    run(uv, "pip", "install", "--resolution", "lowest", "--python", python, client, *of_the_sample, cwd=tmp_path)
    imports = "import gatekeeper_client.watching, google.protobuf, grpc"
    versions = "assert (grpc.__version__, google.protobuf.__version__) == ('1.60.0', '4.25.0')"
    run(python, "-c", f"{imports}; {versions}", cwd=tmp_path)

    assert printed_by([python, SAMPLES / "python" / "sample.py"], gatekeeper) == PRINTED


def test_the_go_sample_builds_with_plain_protoc_and_does_what_it_says(gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    folder = go_sample(tmp_path)
    run("go", "vet", "./...", cwd=folder)
    run("go", "build", "-o", "sample", ".", cwd=folder)

    assert printed_by([folder / "sample"], gatekeeper) == PRINTED


def test_the_java_sample_builds_with_plain_protoc_and_does_what_it_says(gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    built = java_classes(tmp_path)

    assert printed_by(["java", "-cp", built, "Sample"], gatekeeper) == PRINTED


def test_the_node_sample_does_what_it_says(gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    folder = node_sample(tmp_path)

    assert printed_by(["node", folder / "sample.js"], gatekeeper) == PRINTED


def test_twin_a_plain_object_as_attributes_loses_them_in_node(gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    sample = node_sample(tmp_path) / "sample.js"
    sample.write_text(sample.read_text().replace("attributes: struct(attributes)", "attributes"))

    with gatekeeper.admin() as admin:
        default = admin.GetFlag(pb.GetFlagRequest(key=FLAG)).flag.default_value

    assert (
        printed_by(["node", sample], gatekeeper)[0] == f"value {str(default).lower()} {variant(default)} REASON_DEFAULT"
    )


def variant(value: bool) -> str:
    return "on" if value else "off"
