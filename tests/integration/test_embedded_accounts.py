"""The account that runs the embedded PostgreSQL, what it can reach, and who can connect.

As root, these tests show root's case and, in a process of `nobody`, an ordinary user's. As an ordinary user, they show
that user's case.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import structlog

from gatekeeper_grpc.embedded import EmbeddedDatabaseError, EmbeddedPostgres, account, binaries
from gatekeeper_grpc.embedded.account import Account, account_for
from gatekeeper_grpc.embedded.binaries import find_bin_dir, runnable_bin_dir
from gatekeeper_grpc.embedded.home import Home
from tests.support.processes import under

ROOT = Path(__file__).parents[2]
FAST = {"fsync": "off", "shared_buffers": "16MB"}
AM_ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")

# `python -c SERVE DATA_DIR BIN_DIR`. Needs only structlog, prints its DSN, serves until its input ends.
SERVE = """
import sys
from pathlib import Path
import structlog
from gatekeeper_grpc.embedded import EmbeddedPostgres
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
data_dir, bin_dir = (Path(argument) for argument in sys.argv[1:])
with EmbeddedPostgres(data_dir, bin_dir=bin_dir, settings={"fsync": "off", "shared_buffers": "16MB"}) as database:
    print(database.dsn, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdinaryUser:
    """A user other than root who can reach a directory, a Python and PostgreSQL's programs."""

    account: Account
    directory: Path
    python: Path
    bin_dir: Path
    environment: dict[str, str]

    def serve(self, data_dir: Path) -> subprocess.Popen[str]:
        command = [*under(self.account), str(self.python), "-c", SERVE, str(data_dir), str(self.bin_dir)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=self.environment,
        )


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of copied programs: public, and removed after the test."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="gatekeeper-test-") as directory:
        Path(directory).chmod(0o755)
        monkeypatch.setattr(binaries, "COPIES", Path(directory, "copies"))
        yield Path(directory, "copies")


@pytest.fixture
def ordinary_user(copies: Path) -> OrdinaryUser:
    """This user, or for root `nobody`, with copies of what `nobody` cannot reach."""
    user = Account(uid=NOBODY.pw_uid, gid=NOBODY.pw_gid) if AM_ROOT else Account(uid=os.geteuid(), gid=os.getegid())
    own, public, python = (copies.parent / name for name in ("own", "public", "python"))
    own.mkdir()
    os.chown(own, user.uid, user.gid)
    shutil.copytree(ROOT / "gatekeeper_grpc" / "embedded", public / "gatekeeper_grpc" / "embedded")
    shutil.copytree(Path(structlog.__file__).parent, public / "structlog")
    return OrdinaryUser(
        account=user,
        directory=own,
        python=python_for(user, python),
        bin_dir=runnable_bin_dir(find_bin_dir(), user),
        environment={"PYTHONPATH": str(public), "LD_LIBRARY_PATH": str(python / "lib")},
    )


def python_for(user: Account, prefix: Path) -> Path:
    """This Python, copied to `prefix` if `user` cannot reach it, as with pyenv's below /root."""
    program = Path(sys.executable).resolve()
    if user.can_execute(program):
        return program
    library = Path(sysconfig.get_path("stdlib"))
    ignored = shutil.ignore_patterns("site-packages", "test", "config-*", "idlelib", "tkinter", "ensurepip", "lib2to3")
    shutil.copytree(library, prefix / "lib" / library.name, ignore=ignored)
    for shared in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        shutil.copy(shared, prefix / "lib")
    (prefix / "bin").mkdir()
    return Path(shutil.copy(program, prefix / "bin"))


def postmaster_uid(data_dir: Path) -> int:
    pid = Home(data_dir).postgres_pids()[0]
    return Path(f"/proc/{pid}").stat().st_uid


def modes(*paths: Path) -> list[int]:
    return [path.stat().st_mode & 0o777 for path in paths]


def test_ordinary_user_runs_postgres_and_root_can_join(ordinary_user: OrdinaryUser) -> None:
    data_dir = ordinary_user.directory / "data"
    with ordinary_user.serve(data_dir) as process:
        assert process.stdout is not None
        dsn = process.stdout.readline().strip()
        with psycopg.connect(dsn) as connection:  # As root, if the tests run as root; else as the same user.
            assert connection.execute("SELECT current_user").fetchone() == ("gatekeeper",)
        assert postmaster_uid(data_dir) == ordinary_user.account.uid
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert Home(data_dir).postgres_pids() == []


def test_database_of_another_user_is_refused_by_name() -> None:
    """`/usr` stands for a database that belongs to root, which root cannot run either."""
    with pytest.raises(EmbeddedDatabaseError, match="the database in /usr belongs to root"):
        account_for(Path("/usr"))


def test_directory_below_private_parents_works_and_keeps_its_modes(tmp_path: Path) -> None:
    private, data_dir = tmp_path / "private", tmp_path / "private" / "project" / ".gatekeeper"
    data_dir.mkdir(parents=True)
    paths = [private, private / "project", data_dir]
    for path, mode in zip(paths, [0o700, 0o755, 0o755], strict=True):
        path.chmod(mode)
    with EmbeddedPostgres(data_dir, settings=FAST) as database, psycopg.connect(database.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert modes(*paths) == [0o700, 0o755, 0o755]
        assert modes(data_dir / "postgres", data_dir / "postgres" / "cluster") == [0o700, 0o700]


def test_account_of_postgres_reaches_no_file_outside_its_cluster(tmp_path: Path) -> None:
    """Not even a world-readable one, and not through ``..``: postgres's superuser may read what postgres may."""
    (tmp_path / "secret").write_text("public by mistake")
    tmp_path.chmod(0o755)
    with EmbeddedPostgres(tmp_path, settings=FAST) as database, psycopg.connect(database.dsn) as connection:
        for path in (str(tmp_path / "secret"), "../../secret", "../postgres.log"):
            if AM_ROOT:
                with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                    connection.execute("SELECT pg_read_file(%s)", [path])
            else:  # The account is this user, who may read its own files; the modes keep other users out.
                assert modes(tmp_path / "postgres") == [0o700]


def test_socket_lets_no_other_process_of_postgres_account_in(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path, settings=FAST):
        inner = Home(tmp_path).socket_link.readlink()
        assert modes(inner.parent, inner) == [0o700, 0o700]
        assert inner.parent.stat().st_uid == os.geteuid()
        assert inner.stat().st_uid == postmaster_uid(tmp_path)


def test_children_get_no_secrets_from_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEKEEPER_JWT_KEYS", "k1:do-not-pass-on")
    with EmbeddedPostgres(tmp_path, settings=FAST):
        environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in Home(tmp_path).postgres_pids()]
    assert environments
    assert not any(b"do-not-pass-on" in environment for environment in environments)


@pytest.mark.parametrize("name", ["postgres", "nobody"])
def test_root_lends_postgres_to_an_account_without_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`postgres` may be missing on this machine: then the next of the list, `nobody`, has to do."""
    monkeypatch.setattr(account, "_UNPRIVILEGED", (name, "nobody"))
    known = name if name in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
    with EmbeddedPostgres(tmp_path, settings=FAST):
        assert postmaster_uid(tmp_path) == (pwd.getpwnam(known).pw_uid if AM_ROOT else os.geteuid())
        groups = Path(f"/proc/{Home(tmp_path).postgres_pids()[0]}/status").read_text()
        assert not AM_ROOT or re.search(r"^Groups:\s*$", groups, re.MULTILINE)


def test_unreachable_programs_are_copied_once(tmp_path: Path, copies: Path) -> None:
    original = find_bin_dir().parent
    private = tmp_path / "private" / original.parent.name
    shutil.copytree(original, private / original.name, ignore=shutil.ignore_patterns("include"))
    libraries = original.parent.with_name(f"{original.parent.name}.libs")
    shutil.copytree(libraries, private.with_name(libraries.name))
    private.parent.chmod(0o700)
    bin_dir = private / original.name / "bin"
    for _ in range(2):
        with EmbeddedPostgres(tmp_path / "data", bin_dir=bin_dir, settings=FAST) as database:
            psycopg.connect(database.dsn).close()
    assert modes(private.parent) == [0o700]
    assert len(list(copies.glob("*"))) == (1 if AM_ROOT else 0)
