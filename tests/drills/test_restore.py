"""restore.md, executed: a dump and a recovery to a moment replace the database under load."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from gatekeeper_grpc.store.migrations.runner import Migrator
from tests.drills.operator import Operator, following
from tests.drills.site import Site, configured, end_server, running_site
from tests.support.clients import send
from tests.support.databases import database_dsn
from tests.support.processes import TIMEOUT_S
from tests.support.records import flag_revisions
from tests.support.replication import Node, open_folder
from tests.support.traces import live, query, traces

pytestmark = pytest.mark.promise("E2", "D9")


@dataclass(frozen=True, kw_only=True)
class Drill:
    """A server with folders for its backups, an installation on it, and what replaces the server."""

    node: Node
    restored: Node
    site: Site
    folder: Path

    def section(self, heading: str, *, restored_url: str, **more: str) -> AbstractContextManager[Operator]:
        """Follow a section of restore.md with the variables that the page names."""
        variables = {
            **self.site.settings,
            "DATABASE_URL": self.node.dsn,
            "URL_FILE": str(self.site.url_file),
            "OPS": f"127.0.0.1:{self.site.instances[0].ops_port}",
            "BACKUPS": str(self.folder / "backups"),
            "ARCHIVE": str(self.folder / "archive"),
            "RESTORED": str(self.restored.data_dir),
            "RESTORED_PORT": str(self.restored.port),
            "RESTORED_URL": restored_url,
        }
        return following("restore.md", heading, node=self.node, variables=variables | more)


@contextmanager
def drill() -> Iterator[Drill]:
    """A server whose log will be archived, with an installation on it."""
    with open_folder() as folder:
        node, restored = configured(Node(folder / "one")), Node(folder / "restored")
        for name in ("backups", "archive"):
            (folder / name).mkdir(mode=0o777)
            (folder / name).chmod(0o777)
        node.start()
        Migrator(node.dsn).up()
        try:
            with running_site(folder / "site", node.dsn) as site:
                yield Drill(node=node, restored=restored, site=site, folder=folder)
        finally:
            node.stop()
            end_server(restored.data_dir)


def creates(admin: AdminServiceStub, key: str) -> int:
    return admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=key)), timeout=TIMEOUT_S).revision


def test_recovery_to_a_moment_brings_back_that_revision_and_erases_again() -> None:
    person = f"person-{uuid4().hex}"
    with drill() as drilled:
        node, site, url = drilled.node, drilled.site, drilled.restored.dsn
        admin = site.admin()
        with drilled.section("Take backups", restored_url=url) as operator:
            live(admin, person)
            operator.pastes(2)
            node.stop()
            node.start()
            operator.pastes()
        kept = creates(admin, "kept")
        kept_flags = flag_revisions(node.dsn)
        bad = send(admin, "DeleteFlag", pb.DeleteFlagRequest(key="alpha"))
        send(admin, "EraseUser", pb.EraseUserRequest(user_id=person))
        lost = creates(admin, "lost")

        with site.evaluating():
            with drilled.section("Stop the writes", restored_url=url) as operator:
                operator.pastes()
                with pytest.raises(grpc.RpcError, match="takes no writes"):
                    creates(admin, "refused")
                assert operator.pastes().strip() == str(lost)
            first_bad = {"FIRST_BAD_ENTRY": str(bad.audit_anchor.seq)}
            with drilled.section("Recover to a moment", restored_url=url, **first_bad) as operator:
                assert '"action": "DeleteFlag"' in operator.pastes()
                operator.pastes(3)
                assert "recovery stopping before commit" in (drilled.restored.data_dir / "recovery.log").read_text()
                assert f"{kept} |" in operator.pastes()
                assert flag_revisions(url) == kept_flags
            with drilled.section("Finish and switch", restored_url=url, KNOWN_REVISION=str(lost)) as operator:
                assert "erased again: 1" in operator.pastes()
                operator.pastes(2)
            told = [instance.logged("commits_lost")["last_served_revision"] for instance in site.instances]
            again = creates(admin, "lost")

        revisions = [revision for (revision,) in query(url, "SELECT revision FROM audit_log ORDER BY seq")]
        left = traces(url, person)

    assert told == [lost, lost]
    assert revisions == sorted(set(revisions))
    assert revisions[-1] == again > REVISIONS_PER_EPOCH
    assert not {bad.revision, lost} & set(revisions)
    assert left == []


def test_a_restored_dump_replaces_the_database_and_erases_again() -> None:
    person = f"person-{uuid4().hex}"
    with drill() as drilled:
        node, site = drilled.node, drilled.site
        url = database_dsn(node.dsn, "restored")
        admin = site.admin()
        live(admin, person)
        with drilled.section("Take backups", restored_url=url) as operator:
            operator.pastes(3)
        send(admin, "EraseUser", pb.EraseUserRequest(user_id=person))
        for heading in ("Stop the writes", "Call it off"):
            with drilled.section(heading, restored_url=url) as operator:
                operator.pastes_all()
        lost = creates(admin, "lost")

        with site.evaluating():
            for heading in ("Stop the writes", "Restore a dump", "Finish and switch"):
                with drilled.section(heading, restored_url=url, KNOWN_REVISION=str(lost)) as operator:
                    operator.pastes_all()
            told = [instance.logged("commits_lost")["last_served_revision"] for instance in site.instances]
            again = creates(admin, "lost")
        left = traces(url, person)

    assert told == [lost, lost]
    assert again > REVISIONS_PER_EPOCH
    assert left == []
