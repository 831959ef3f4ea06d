"""The alerts, each with what makes it fire and with a twin that does not, as promtool evaluates them."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.queries import ALERTS, ROOT, RULES

PROMTOOL = ROOT / ".venv" / "bin" / "promtool"
RUNBOOK = ROOT / "docs" / "operations" / "alerts.md"
MINUTES_OF_3_DAYS = 3 * 24 * 60
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """Series with a value each minute, in promtool's notation, and the alerts that they lead to: by default none."""

    series: Mapping[str, str]
    fires: Sequence[Labels] = ()
    after: str = "30m"


def of_instance(metric: str, values: str, labels: str = "") -> dict[str, str]:
    """A series of one instance; `labels` are further ones."""
    return {f'{metric}{{job="gatekeeper",instance="one"{labels}}}': values}


def gauge(metric: str, fires_at: str, quiet_at: str, *, labels: str = "", severity: str = "ticket") -> list[Case]:
    """An alert of a gauge that has had one value for half an hour, and its twin with another."""
    found = {"job": "gatekeeper", "instance": "one", "severity": severity, **dict(re.findall(r'(\w+)="(\w+)"', labels))}
    return [
        Case(of_instance(metric, f"{fires_at}x30", labels), [found]),
        Case(of_instance(metric, f"{quiet_at}x30", labels)),
    ]


def counter(metric: str, per_minute: int, *, labels: str = "", **found: str) -> list[Case]:
    """An alert of a counter that has risen so much each minute, and its twin whose counter stands still."""
    alert = {"job": "gatekeeper", "severity": "ticket", **found}
    return [
        Case(of_instance(metric, f"0+{per_minute}x30", labels), [alert]),
        Case(of_instance(metric, "7x30", labels)),
    ]


def calls(failed_of_10_000: str, after: str, *windows: str, severity: str = "") -> Case:
    """10,000 evaluations a minute, of which so many failed."""
    method = ',method="/gatekeeper.v1.EvaluationService/EvaluateFlags"'
    count, refused = "gatekeeper_rpc_duration_seconds_count", "gatekeeper_refused_calls_total"
    series = {
        **of_instance(count, f"0+10000x{MINUTES_OF_3_DAYS}", f'{method},code="OK"'),
        **of_instance(count, failed_of_10_000, f'{method},code="UNAVAILABLE"'),
        **of_instance(refused, f"0x{MINUTES_OF_3_DAYS}", ',pool="evaluation",reason="full"'),
    }
    return Case(series, [{"job": "gatekeeper", "severity": severity, "window": each} for each in windows], after)


def quantile(metric: str, slow_bucket: str, fast_bucket: str) -> list[Case]:
    """An alert of a histogram whose observations are all in one bucket, and its twin with all in a lower one."""

    def observed(bucket: str) -> dict[str, str]:
        bounds = ("0.001", fast_bucket, slow_bucket, "+Inf")
        counts = {bound: "0+9x90" if float(bound) >= float(bucket) else "0x90" for bound in bounds}
        name = f"{metric}_bucket"
        return {
            key: values
            for bound in bounds
            for key, values in of_instance(name, counts[bound], f',le="{bound}"').items()
        }

    alert = {"job": "gatekeeper", "instance": "one", "severity": "ticket"}
    return [Case(observed(slow_bucket), [alert], "90m"), Case(observed(fast_bucket), after="90m")]


def revisions(one: str, two: str, *fires: Labels) -> Case:
    name = "gatekeeper_snapshot_revision"
    return Case(
        {f'{name}{{job="gatekeeper",instance="one"}}': one, f'{name}{{job="gatekeeper",instance="two"}}': two}, [*fires]
    )


ONE_OF_ERRORS = {"instance": "one", "severity": "ticket"}
DAY_S = 86_400
CASES: Mapping[str, list[Case]] = {
    "GatekeeperErrorBudgetBurnsFast": [
        calls("0+200x120", "2h", "1h", "6h", severity="page"),
        calls("0+100x600", "10h", "6h", severity="page"),
        calls("0+50x600", "10h"),
        # Over before anybody could act: the hour still looks bad, the last five minutes do not.
        calls("0+1000x50 50000x60", "90m"),
    ],
    "GatekeeperErrorBudgetBurnsSlowly": [
        calls(f"0+40x{MINUTES_OF_3_DAYS}", "50h", "1d", "3d", severity="ticket"),
        calls(f"0+20x{MINUTES_OF_3_DAYS}", "70h", "3d", severity="ticket"),
        calls(f"0+5x{MINUTES_OF_3_DAYS}", "70h"),
    ],
    "GatekeeperAllDown": [
        Case({**of_instance("gatekeeper_ready", "0x30")}, [{"severity": "page"}]),
        Case({**of_instance("gatekeeper_ready", "1x5 _x25")}, [{"severity": "page"}]),
        Case({**of_instance("gatekeeper_ready", "0x30"), 'gatekeeper_ready{job="gatekeeper",instance="two"}': "1x30"}),
    ],
    "GatekeeperDown": gauge("up", "0", "1"),
    "GatekeeperNotReady": gauge("gatekeeper_ready", "0", "1"),
    "GatekeeperWorkersMissing": [
        Case({**of_instance("gatekeeper_workers", "4x30"), **of_instance("gatekeeper_workers_up", up)}, alerts)
        for up, alerts in (("3x30", [{"job": "gatekeeper", **ONE_OF_ERRORS}]), ("4x10 3x0 4x19", []))
    ],
    "GatekeeperConnectionsNearLimit": [
        Case(
            {
                **of_instance("gatekeeper_max_connections", "100x30"),
                **of_instance("gatekeeper_open_connections", found),
            },
            alerts,
        )
        for found, alerts in (("95x30", [{"job": "gatekeeper", **ONE_OF_ERRORS}]), ("80x30", []))
    ],
    "GatekeeperStale": gauge("gatekeeper_stale", "1", "0", severity="page"),
    "GatekeeperLags": [
        revisions("7x30", "7x20 8x10", {"job": "gatekeeper", "instance": "one", "severity": "page"}),
        revisions("7+1x30", "7+1x30"),
    ],
    "GatekeeperSlowPropagation": quantile("gatekeeper_propagation_seconds", "1", "0.25"),
    "GatekeeperSnapshotNotKept": gauge("gatekeeper_snapshot_storage_writable", "0", "1", labels=',storage="file"'),
    "GatekeeperDatabaseUnreachable": gauge("gatekeeper_database_reachable", "0", "1", severity="page"),
    "GatekeeperDatabasePoolExhausted": quantile("gatekeeper_database_wait_seconds", "1", "0.01"),
    "GatekeeperDatabaseConnectionsRefused": counter(
        "gatekeeper_database_errors_total", 1, labels=',sqlstate="53300"', instance="one", sqlstate="53300"
    ),
    "GatekeeperDatabaseDiskFull": counter(
        "gatekeeper_database_errors_total",
        1,
        labels=',sqlstate="53100"',
        instance="one",
        sqlstate="53100",
        severity="page",
    ),
    # Seen only while calls fail: it comes and goes between scrapes.
    "GatekeeperDatabaseLocked": [
        Case(
            of_instance("gatekeeper_database_lock_holder_seconds", "0x20 40 0 60 0 80 0 100 0 120 0"),
            [{"job": "gatekeeper", **ONE_OF_ERRORS}],
        ),
        Case(of_instance("gatekeeper_database_lock_holder_seconds", "0x20 5 0 5 0 5 0 5 0 5 0")),
    ],
    "GatekeeperCommitsStalled": gauge("gatekeeper_database_commits_stalled", "1", "0", severity="page"),
    "GatekeeperCertificateExpires": [
        Case(
            of_instance("gatekeeper_tls_certificate_expiry_timestamp_seconds", f"{days * DAY_S}x30"),
            [{"job": "gatekeeper", "instance": "one", "severity": each} for each in severities],
        )
        for days, severities in ((1, ("ticket", "page")), (13, ("ticket",)), (15, ()))
    ],
    "GatekeeperCertificateRefused": gauge("gatekeeper_tls_certificate_refused", "1", "0"),
    "GatekeeperSecretFileFault": gauge("gatekeeper_secret_file_faults", "1", "0"),
    "GatekeeperLockOuts": counter("gatekeeper_logins_total", 2, labels=',result="locked_out"'),
    "GatekeeperLoginsFail": [
        *counter("gatekeeper_logins_total", 5, labels=',result="failed"'),
        # A person who has forgotten a password, every five minutes.
        Case(of_instance("gatekeeper_logins_total", "0+1x30", ',result="failed"')),
    ],
    "GatekeeperRefreshTokenReused": counter("gatekeeper_refresh_tokens_reused_total", 1),
    "GatekeeperCredentialsRefused": [
        *counter(
            "gatekeeper_refused_credentials_total",
            20,
            labels=',cause="unknown_key"',
            cause="unknown_key",
            credential="client",
        ),
        *counter(
            "gatekeeper_refused_api_tokens_total",
            20,
            labels=',cause="malformed"',
            cause="malformed",
            credential="api_token",
        ),
    ],
    "GatekeeperAuditLogRewritable": gauge("gatekeeper_audit_log_rewritable", "1", "0"),
}


def as_promtool_has_it(alert: str, case: Case) -> dict[str, Any]:
    """A test in promtool's format."""
    (annotations, *_) = (rule["annotations"] for rule in ALERTS if rule["alert"] == alert)
    fires = [{"exp_labels": dict(labels), "exp_annotations": annotations} for labels in case.fires]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [{"alertname": alert, "eval_time": case.after, "exp_alerts": fires}],
    }


def complaints(tests: list[dict[str, Any]], folder: Path, *, every: str = "1m") -> str:
    """What promtool says about tests that do not pass, if the rules are evaluated so often."""
    file = folder / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": every, "tests": tests}))
    done = subprocess.run([PROMTOOL, "test", "rules", file], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_promtool_has_nothing_to_say_about_rules_and_configuration() -> None:
    for what, file in (("rules", RULES), ("config", RULES.with_name("prometheus.yml"))):
        done = subprocess.run([PROMTOOL, "check", what, file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", CASES)
def test_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    # Three days would be 130,000 evaluations.
    every = "10m" if alert == "GatekeeperErrorBudgetBurnsSlowly" else "1m"

    assert complaints([as_promtool_has_it(alert, case) for case in CASES[alert]], tmp_path, every=every) == ""


def test_twin_an_alert_that_does_not_do_as_its_case_says_is_found(tmp_path: Path) -> None:
    silent = Case(CASES["GatekeeperStale"][0].series)

    assert "GatekeeperStale" in complaints([as_promtool_has_it("GatekeeperStale", silent)], tmp_path)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    assert {rule["alert"] for rule in ALERTS} == CASES.keys()
    assert [alert for alert, cases in CASES.items() if len({bool(case.fires) for case in cases}) < 2] == []


def test_every_alert_and_severity_is_one_that_fires_in_a_case() -> None:
    fixed = {(rule["alert"], *sorted(rule["labels"].items())) for rule in ALERTS}
    names = {name for rule in ALERTS for name in rule["labels"]}
    fired = {
        (alert, *sorted((name, value) for name, value in labels.items() if name in names))
        for alert, cases in CASES.items()
        for case in cases
        for labels in case.fires
    }

    assert fixed == fired


def test_every_alert_links_to_its_section_and_each_section_has_an_alert() -> None:
    sections = re.findall(r"^### (Gatekeeper\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    links = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in ALERTS}

    assert links == {name: f"{RUNBOOK.relative_to(ROOT)}#{name.lower()}" for name in sections}
