"""More than one Gatekeeper on one database: who may join, how, and what they see of each other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1.admin_service_pb2 import UpdateFlagRequest
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.config.program import program
from tests.support.processes import TIMEOUT_S, Gatekeeper, copied, run, serving
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def first(first_started_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatekeeper]:
    """The owner of the database."""
    with serving(copied(first_started_dir, tmp_path_factory.mktemp("owner"))) as owner:
        yield owner


@pytest.fixture(scope="module")
def second(first: Gatekeeper) -> Iterator[Gatekeeper]:
    """One that joined it the way that the refusal says, in the same data directory."""
    code, url, complaints = run("db-url", data_dir=first.data_dir)
    assert (code, complaints) == (0, "")
    with serving(first.data_dir, DATABASE_URL=url.strip()) as joined:
        yield joined


@pytest.mark.parametrize("from_first", [True, False], ids=["first to second", "second to first"])
def test_change_on_one_is_seen_on_the_other(first: Gatekeeper, second: Gatekeeper, *, from_first: bool) -> None:
    writer, reader = (first, second) if from_first else (second, first)
    with writer.admin() as admin, reader.channel() as channel:
        evaluation = EvaluationServiceStub(channel)
        for percentage in (100, 0):
            flag = Flag(key="new_checkout", rollout_percentage=percentage)
            admin.UpdateFlag(UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["rollout_percentage"])))
            assert eventually(lambda wanted=percentage == 100: alice_gets_it(evaluation) is wanted)  # type: ignore[misc]


def test_second_without_database_url_is_refused_and_told_how_to_join(first: Gatekeeper) -> None:
    code, printed, complaints = run("serve", data_dir=first.data_dir)

    assert (code, printed) == (1, "")
    assert complaints == (
        f"gatekeeper: the embedded database of {first.data_dir} is in use by process {first.process.pid}: "
        f"to join it, set DATABASE_URL to what `{program()} db-url` prints; else choose another data directory\n"
    )


def test_db_url_without_a_running_database_says_how_to_start_one(tmp_path: Path) -> None:
    code, printed, complaints = run("db-url", data_dir=tmp_path)

    assert (code, printed) == (1, "")
    assert complaints == (
        f"gatekeeper: no embedded database runs in {tmp_path}: "
        f"start one with `{program()} serve`, without DATABASE_URL\n"
    )


def alice_gets_it(evaluation: EvaluationServiceStub) -> bool:
    request = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))
    return evaluation.EvaluateFlags(request, timeout=TIMEOUT_S).flags["new_checkout"]
