"""TLS to PostgreSQL: with sslmode=verify-full, only a server with the right certificate gets anything of us."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.database_trial import works
from tests.support.processes import KEYS, run
from tests.support.replication import ROLE, Node
from tests.support.tls import Issuer

PASSWORD = "canary7f3a"
ONLY_TLS = (
    f"hostssl all tls 127.0.0.1/32 scram-sha-256\nhostnossl all tls all reject\nhost all {ROLE} 127.0.0.1/32 trust\n"
)


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def authority(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a client has to trust."""
    return written(tmp_path_factory.mktemp("authority") / "ca.pem", issuer.pem)


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


@pytest.fixture(scope="module")
def encrypted(node: Node, issuer: Issuer) -> Iterator[Node]:
    """A server that takes the role `tls` over TLS alone, with its password."""
    with tempfile.TemporaryDirectory(prefix="gatekeeper-test-") as folder:
        Path(folder).chmod(0o711)
        key = Path(folder) / "node" / "data" / "tls.pem"
        files = {"ssl": "on", "ssl_cert_file": "tls.pem", "ssl_key_file": "tls.pem"}
        server = Node(Path(folder) / "node", programs=node.bin_dir, settings=files)
        server.init()
        issued = issuer.issue()
        written(key, issued.key + issued.chain).chmod(0o600)
        owner = key.parent.stat()
        os.chown(key, owner.st_uid, owner.st_gid)
        (key.parent / "pg_hba.conf").write_text(ONLY_TLS)
        server.start()
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE ROLE tls SUPERUSER LOGIN PASSWORD {}").format(sql.Literal(PASSWORD)))
            conn.execute("CREATE DATABASE flags OWNER tls")
        try:
            yield server
        finally:
            server.stop()


def url(node: Node, *, host: str = "127.0.0.1", **options: object) -> str:
    query = "&".join(f"{name}={value}" for name, value in {"hostaddr": "127.0.0.1", **options}.items())
    return f"postgresql://tls:{PASSWORD}@{host}:{node.port}/flags?{query}"


def test_a_database_with_a_verified_certificate_serves(encrypted: Node, authority: Path, tmp_path: Path) -> None:
    verified = url(encrypted, sslmode="verify-full", sslrootcert=authority)

    works(tmp_path, verified)
    with psycopg.connect(verified) as conn:
        used = conn.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert used == (True, "TLSv1.3")


@pytest.mark.parametrize("case", ["another authority", "another name", "no file"])
def test_a_server_without_the_right_certificate_is_refused(
    encrypted: Node, authority: Path, tmp_path: Path, case: str
) -> None:
    roots = {"another authority": written(tmp_path / "other.pem", Issuer().pem), "no file": tmp_path / "absent"}
    host = "db.example" if case == "another name" else "127.0.0.1"
    wrong = url(encrypted, host=host, sslmode="verify-full", sslrootcert=roots.get(case, authority))

    refused(tmp_path, wrong)
    # The twin: the same server, unverified, takes the connection.
    with psycopg.connect(url(encrypted, host=host, sslmode="require")) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_server_without_tls_is_refused(node: Node, authority: Path, tmp_path: Path) -> None:
    refused(tmp_path, url(node, sslmode="verify-full", sslrootcert=authority))


def refused(folder: Path, database_url: str) -> None:
    for command in (("migrate", "up"), ("serve",)):
        code, printed, complaints = run(*command, data_dir=folder / "data", DATABASE_URL=database_url, **KEYS)

        assert code == 1
        assert re.search(r"cannot be reached: .*(certificate|SSL)", complaints)
        assert "Traceback" not in complaints
        assert PASSWORD not in printed + complaints
