"""What keeps `gatekeeper serve` from starting: one line that says what and what to do, no secret in it, exit code 1."""

import socket
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import empty_database
from tests.support.processes import KEYS, START_TIMEOUT_S, postgres_pids, run, start

SECRET = "hunter2"


def complaint(data_dir: Path, **settings: str) -> str:
    """The one line that a start says for itself; anything else is of the logs."""
    code, _, errors = run("serve", data_dir=data_dir, **settings)
    (line,) = (line for line in errors.splitlines() if not line.startswith("{"))
    assert code == 1
    assert SECRET not in errors
    return line


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("GATEKEEPER_JWT_KEYS", SECRET, "kid:secret"),
        ("GATEKEEPER_JWT_KEYS", f"k1:{SECRET}", "32 bytes"),
        ("GATEKEEPER_ADMIN_PASSWORD", f"{SECRET * 200}", "1,024 characters"),
        ("DATABASE_URL", f"postgresql://u:{SECRET}@host:{SECRET}@/x", "percent-encode"),
    ],
)
def test_bad_setting_is_named_with_what_is_wrong(tmp_path: Path, variable: str, value: str, reason: str) -> None:
    settings = {**KEYS, variable: value}

    line = complaint(tmp_path, **settings)

    assert line.startswith("gatekeeper: ")
    assert variable in line
    assert reason in line


def test_a_database_without_jwt_keys_is_refused(tmp_path: Path) -> None:
    line = complaint(tmp_path, DATABASE_URL=f"postgresql://u:{SECRET}@localhost/x")

    assert line.startswith("gatekeeper: GATEKEEPER_JWT_KEYS is not set")


def test_database_that_is_away_is_named_by_its_host(tmp_path: Path) -> None:
    url = f"postgresql://u:{SECRET}@127.0.0.1:1/x"

    line = complaint(tmp_path, DATABASE_URL=url, **KEYS)

    assert line.startswith("gatekeeper: PostgreSQL at 127.0.0.1 cannot be reached:")


def test_an_unmigrated_database_is_refused_with_the_command_to_run(tmp_path: Path, postgres: str) -> None:
    with empty_database(postgres) as url:
        line = complaint(tmp_path, DATABASE_URL=url, **KEYS)

    assert line.startswith("gatekeeper: the database's schema is older than this Gatekeeper; run `")
    assert "gatekeeper migrate up`" in line


def test_database_that_a_newer_gatekeeper_migrated_is_refused(tmp_path: Path, dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute("INSERT INTO schema_migrations VALUES (9999, 'from_the_future', '', 'done', now())")

    line = complaint(tmp_path, DATABASE_URL=dsn, **KEYS)

    assert line.startswith("gatekeeper: the database's schema is newer than this Gatekeeper")
    assert "9999_from_the_future" in line


@pytest.mark.parametrize("variable", ["GATEKEEPER_LISTEN", "GATEKEEPER_HEALTH_LISTEN", "GATEKEEPER_OPS_LISTEN"])
def test_port_in_use_is_named_before_anything_is_made(tmp_path: Path, variable: str) -> None:
    data_dir = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        line = complaint(data_dir, **{variable: address})

    assert line.startswith(f"Error: {variable}: cannot listen on {address}: another process listens there")
    assert not data_dir.exists()


UNTRIED = """
from gatekeeper_grpc.cli import main as cli
from gatekeeper_grpc.lifecycle import process
process._try_addresses = lambda _: None
cli.main()
"""


def test_twin_untried_a_port_in_use_is_found_after_the_database_is_made(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with start("serve", data_dir=data_dir, program=("-c", UNTRIED), GATEKEEPER_LISTEN=address) as process:
            _, complaints = process.communicate(timeout=START_TIMEOUT_S)

    assert process.returncode == 1
    assert f"cannot listen on {address}" in complaints
    assert (data_dir / "admin_password").exists()
    assert postgres_pids(data_dir) == []


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        ({"GATEKEEPER_LISTEN": ":50051"}, "':50051' must name a host: 127.0.0.1:50051 for this machine alone"),
        ({"GATEKEEPER_LISTEN": "unix:/run/gk.sock", "GATEKEEPER_WORKERS": "2"}, "must be host:port"),
        ({"GATEKEEPER_LISTEN": "foo.invalid:1"}, "the name foo.invalid has no address"),
    ],
)
def test_address_that_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, settings: dict[str, str], right: str
) -> None:
    data_dir = tmp_path / "data"

    line = complaint(data_dir, **settings)

    assert "GATEKEEPER_LISTEN: " in line
    assert right in line
    assert not data_dir.exists()
