"""`gatekeeper serve --demo` on a machine that has nothing yet."""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gatekeeper_client.v1.admin_service_pb2 import (
    ChangePasswordRequest,
    DeleteFlagRequest,
    GetFlagRequest,
    ListFlagsRequest,
)
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.support.processes import TIMEOUT_S, Gatekeeper, copied, serving

ALICE = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))
TOOLS = Path(sys.executable).parent  # buf is among them, grpcurl is not.


@pytest.fixture(scope="module")
def demo(first_started_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatekeeper]:
    with serving(copied(first_started_dir, tmp_path_factory.mktemp("demo")), "--demo") as started:
        yield started


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStarts:
    """The first two lives of a data directory, both over, and the flags that were there in each."""

    data_dir: Path
    plain: Gatekeeper
    plain_flags: list[str]
    demo: Gatekeeper
    demo_flags: list[str]


@pytest.fixture(scope="module")
def first_two(tmp_path_factory: pytest.TempPathFactory) -> TwoStarts:
    empty = tmp_path_factory.mktemp("empty")
    with serving(empty) as plain:
        plain_flags = flag_keys(plain)
    with serving(empty, "--demo") as demo:
        demo_flags = flag_keys(demo)
    return TwoStarts(data_dir=empty, plain=plain, plain_flags=plain_flags, demo=demo, demo_flags=demo_flags)


def pasted(lines: list[str], **variables: str) -> list[Any]:
    """What the JSON documents hold that a shell prints for these lines."""
    environment = {"PATH": f"{TOOLS}:{os.defpath}", "HOME": os.environ["HOME"], **variables}
    script = "\n".join(lines)
    printed = subprocess.check_output(["sh", "-euc", script], env=environment, text=True, timeout=TIMEOUT_S)
    return [json.loads(document) for document in re.split(r"(?<=\})\n(?=\{)", printed)]


def evaluate_line(user_id: str) -> str:
    """The line of the issue that asked for this service."""
    context = f'{{"context":{{"user_id":"{user_id}"}}}}'
    method = "gatekeeper.v1.EvaluationService/EvaluateFlags"
    return f"buf curl --protocol grpc --http2-prior-knowledge -d '{context}' http://$GATEKEEPER_LISTEN/{method}"


def flag_keys(gatekeeper: Gatekeeper) -> list[str]:
    with gatekeeper.admin() as admin:
        return [flag.key for flag in admin.ListFlags(ListFlagsRequest()).flags]


def test_first_start_prints_the_admin_password_once_and_keeps_it_private(
    first_two: TwoStarts,
) -> None:
    password = first_two.data_dir / "admin_password"

    assert first_two.plain.printed.whole().count(password.read_text().strip()) == 1
    assert password.read_text().strip() not in first_two.demo.printed.whole()
    assert stat.S_IMODE(password.stat().st_mode) == 0o600


def test_only_a_demo_start_adds_the_demo_flag_to_an_empty_database(first_two: TwoStarts) -> None:
    assert (first_two.plain_flags, first_two.demo_flags) == ([], ["new_checkout"])


@pytest.mark.parametrize(("user_id", "gets_it"), [("alice", False), ("user-1", True)])
def test_line_of_the_issue_evaluates_the_demo_flag_without_any_proto_file(
    demo: Gatekeeper, user_id: str, *, gets_it: bool
) -> None:
    answers = pasted([evaluate_line(user_id)], GATEKEEPER_LISTEN=f"127.0.0.1:{demo.port}")

    assert answers == [{"flags": {"new_checkout": gets_it}, "revision": "1"}]


def test_second_demo_start_serves_the_same_data(data_dir: Path) -> None:
    with serving(data_dir) as plain, plain.admin() as admin:
        before = admin.GetFlag(GetFlagRequest(key="new_checkout"))
    with serving(data_dir, "--demo") as demo, demo.admin() as admin:
        after = admin.GetFlag(GetFlagRequest(key="new_checkout"))

    assert (before.revision, after) == (1, before)


def test_second_start_prints_lines_for_what_has_changed_since_the_first(data_dir: Path) -> None:
    with serving(data_dir, "--demo") as first, first.admin() as admin:
        admin.DeleteFlag(DeleteFlagRequest(key="new_checkout"))
        old = (data_dir / "admin_password").read_text().strip()
        admin.ChangePassword(ChangePasswordRequest(current_password=old, new_password="another-good-password"))
    with serving(data_dir, "--demo") as second, second.channel() as channel:
        lines = [second.printed.first(partial(line_with, words)) for words in (" login ", " flags ")]
        evaluated = EvaluationServiceStub(channel).EvaluateFlags(ALICE, timeout=TIMEOUT_S)

    assert dict(evaluated.flags) == {}  # The demo flag does not come back.
    assert "flags create new_checkout --enabled --rollout 50" in lines[1]
    assert "--password-stdin" not in lines[0]


def line_with(words: str, line: str) -> str | None:
    return line if words in line else None
