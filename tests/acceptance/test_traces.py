"""Traces of real processes: each worker of a fleet sends its own."""

from pathlib import Path

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.support.otlp import receiving
from tests.support.processes import TIMEOUT_S, run, serving
from tests.support.waiting import eventually

REQUEST = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))


def test_each_worker_of_a_fleet_sends_its_traces(tmp_path: Path) -> None:
    with receiving() as receiver:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_RESOURCE_ATTRIBUTES": "service.name=flags"}
        with serving(tmp_path, GATEKEEPER_WORKERS="2", **settings) as gatekeeper:

            def from_both() -> bool:
                with gatekeeper.channel() as channel:
                    EvaluationServiceStub(channel).EvaluateFlags(REQUEST, timeout=TIMEOUT_S, wait_for_ready=True)
                return len({span.resource["process.pid"] for span in receiver.spans()}) == 2

            assert eventually(from_both, timeout_s=TIMEOUT_S)
            assert gatekeeper.process.pid not in {span.resource["process.pid"] for span in receiver.spans()}
    assert {span.resource["service.name"] for span in receiver.spans()} == {"flags"}


def test_a_start_without_the_packages_of_traces_says_what_to_install(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "sitecustomize.py").write_text(_WITHOUT_EXPORTER)

    code, _, complaints = run(
        "serve",
        data_dir=tmp_path,
        PYTHONPATH=str(packages),
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4317",
    )

    assert code == 1
    assert "pip install 'gatekeeper-grpc[otel]'" in complaints
    assert "Traceback" not in complaints


# As in an environment where only the server was installed.
_WITHOUT_EXPORTER = """
import importlib.metadata as metadata
find = metadata.Distribution.from_name
def from_name(name):
    if name.startswith("opentelemetry"):
        raise metadata.PackageNotFoundError(name)
    return find(name)
metadata.Distribution.from_name = staticmethod(from_name)
"""
