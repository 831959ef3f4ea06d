"""Fuzzed calls end as the contract says, and leave nothing half-written; what is planted is found. See tests/fuzz."""

from pathlib import Path

import psycopg
import pytest

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.report import Report
from tests.fuzz.run import Plan, fuzz
from tests.fuzz.state import state_faults
from tests.support.processes import KEYS, TIMEOUT_S, serving

pytestmark = pytest.mark.promise("D6")


def test_fuzzed_calls_end_as_promised_and_write_nothing_half(tmp_path: Path, report: Report) -> None:
    with report.fault("D6", "fuzzed calls: odd values, damaged bytes, odd metadata") as row:
        verdict = fuzz(Plan(calls=2_000, seed=7, parts=2), tmp_path)
        row.also = str(verdict)

    assert verdict.faults == []


def test_twin_without_a_row_for_an_error_kind_is_found_out(tmp_path: Path, report: Report) -> None:
    verdict = fuzz(Plan(calls=400, seed=7, parts=1), tmp_path, sabotage="no_row_for_not_found")

    assert any("INTERNAL" in fault for fault in verdict.faults)
    report.twin("D6", "the table of statuses", f"{verdict.codes['INTERNAL']} fuzzed calls ended with INTERNAL")


@pytest.mark.parametrize(
    ("behind_the_log", "found"),
    [
        ("UPDATE revision_head SET revision = revision + 1", "has 0 audit entries"),
        ("UPDATE revision_head SET audit_hash = sha256('x')", "the audit log does not verify"),
        ("UPDATE feature_flags SET default_variant = 'on'", "after a fresh load"),
        ("UPDATE feature_flags SET owner = 'mallory'", "flag a: changed behind the log"),
    ],
    ids=["a revision without entry", "a broken chain", "a flag that nobody changed", "what evaluation does not show"],
)
def test_twin_whose_state_is_changed_behind_the_log_is_found_out(
    behind_the_log: str, found: str, tmp_path: Path, report: Report
) -> None:
    with serving(tmp_path / "data", **KEYS) as server, server.admin() as admin:
        admin.CreateFlag(CreateFlagRequest(flag=Flag(key="a", enabled=True)), timeout=TIMEOUT_S)
        clean = [*state_faults(server, tmp_path / "fresh", ["anna"])]
        with psycopg.connect(server.dsn) as conn:
            conn.execute(behind_the_log.encode())
        faults = [*state_faults(server, tmp_path / "fresh", ["anna"])]

    assert clean == []
    assert any(found in fault for fault in faults), faults
    report.twin("D6", "one transaction for state, revision and entry", faults[0].splitlines()[0][:80])
