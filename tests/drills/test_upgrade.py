"""upgrade.md, executed: this release and the one before its newest migration, both ways, under load."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.store.migrations.applied import MigrationState
from gatekeeper_grpc.store.migrations.runner import Migrator
from tests.drills import releases
from tests.drills.operator import Operator, following
from tests.drills.releases import PREVIOUS, Release
from tests.drills.site import Site, configured, running_site
from tests.faults.load import Load, Writer, at_work
from tests.faults.retrying import RetryingClient
from tests.support.databases import database_dsn
from tests.support.processes import TIMEOUT_S
from tests.support.records import chained_entries, flag_revisions
from tests.support.replication import Node, open_folder
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("C4", "E1")

ROLE = "serving"
WRITES = 10
CLIENTS = 2
LEAVING = {"GATEKEEPER_DRAIN_S": "1", "GATEKEEPER_GRACE_S": "3"}
"""What instances are told, so that their clients have time to go."""
RELATION = re.compile(r"^CREATE (?:UNIQUE )?(?:TABLE|INDEX) (\w+)", re.MULTILINE)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The release before the newest migration."""
    folder = tmp_path_factory.mktemp("old")
    return releases.install(releases.source_of(PREVIOUS, folder / "source"), folder / "installed")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """This release."""
    return releases.install(releases.ROOT, tmp_path_factory.mktemp("new") / "installed")


@dataclass(frozen=True, kw_only=True)
class Drill:
    """An installation of two instances, on a schema from before the newest migration, and both releases."""

    node: Node
    site: Site
    old: Release
    new: Release

    def section(self, heading: str, **more: str) -> AbstractContextManager[Operator]:
        """Follow a section of upgrade.md with the variables that the page names."""
        variables = {
            **self.site.settings,
            "DATABASE_URL": self.node.dsn,
            "COPY_URL": database_dsn(self.node.dsn, "rehearsal"),
            "ROLE": ROLE,
            "OLD": str(self.old.commands),
            "BEFORE": str(len(releases.migrations()) - 1),
            "OPS": f"127.0.0.1:{self.site.instances[-1].ops_port}",
        }
        return following("upgrade.md", heading, node=self.node, variables=variables | more, release=self.new.commands)

    def migrate_fails(self) -> str:
        """Run `gatekeeper migrate up` of the new release in vain; returns what it says."""
        command = [*self.new.program, "migrate", "up"]
        environment = {**os.environ, "DATABASE_URL": self.node.dsn}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 1
        return done.stderr

    def replace(self, index: int, release: Release) -> None:
        """End an instance, and start another one in its place and on its port."""
        ended = self.site.instances[index]
        ended.process.terminate()
        ended.process.wait(TIMEOUT_S)
        port = f"127.0.0.1:{ended.port}"
        self.site.instances[index] = self.site.serve(
            ended.data_dir, program=release.program, GATEKEEPER_LISTEN=port, **LEAVING
        )


@contextmanager
def drill(old: Release, new: Release) -> Iterator[Drill]:
    """Two instances of the old release, which serve with a role that owns nothing."""
    with open_folder() as folder:
        node = configured(Node(folder / "one"))
        node.start()
        try:
            Migrator(node.dsn).up(len(releases.migrations()) - 1)
            node.run("CREATE ROLE serving LOGIN")
            with psycopg.connect(node.dsn) as conn:
                conn.execute(old.run("grants", "--role", ROLE).encode())
            url = make_conninfo(node.dsn, user=ROLE)
            with running_site(folder / "site", url, owner_url=node.dsn, instances=0, in_files=False) as site:
                for _ in range(2):
                    site.start(program=old.program, **LEAVING)
                yield Drill(node=node, site=site, old=old, new=new)
        finally:
            node.stop()


@contextmanager
def writing_by_each(site: Site) -> Iterator[list[Writer]]:
    """Write by each instance for the length of the block."""
    admins = [site.admin(index) for index in range(len(site.instances))]
    writers = [Writer(partial(admins.__getitem__, index), f"writer-{index}") for index in range(len(admins))]
    with at_work(*writers):
        yield writers


@contextmanager
def evaluating_by_any(site: Site) -> Iterator[None]:
    """Evaluate as clients do that know all instances; none may fail."""
    ports = [instance.port for instance in site.instances]
    with ExitStack() as stack:
        load = Load([stack.enter_context(closing(RetryingClient(ports))) for _ in range(CLIENTS)])
        with at_work(load):
            yield
    assert load.sent > 0
    assert load.failed == {}, load.complaints


def all_write(writers: list[Writer]) -> None:
    """Wait until each instance has acknowledged more writes."""
    before = [len(writer.acknowledged) for writer in writers]
    assert eventually(
        lambda: all(len(writer.acknowledged) >= count + WRITES for writer, count in zip(writers, before, strict=True))
    ), [writer.refused for writer in writers]


def test_the_old_release_is_the_commit_before_the_newest_migration() -> None:
    rule = "tests/drills/PREVIOUS must name the commit before the newest migration; a shallow clone has no history"
    assert releases.before_newest_migration() == PREVIOUS, rule
    assert releases.migrations_of(PREVIOUS) == releases.migrations()[:-1]


def test_both_releases_serve_and_write_while_instances_roll_up_and_down(old: Release, new: Release) -> None:
    with drill(old, new) as drilled:
        site, node = drilled.site, drilled.node
        with evaluating_by_any(site), writing_by_each(site) as writers:
            all_write(writers)
            with drilled.section("Upgrade") as operator:
                operator.pastes(2)
                all_write(writers)
                drilled.replace(0, new)
                all_write(writers)
                drilled.replace(1, new)
                operator.sets(OPS=f"127.0.0.1:{site.instances[1].ops_port}")
                operator.pastes_all()
                all_write(writers)
            with drilled.section("Downgrade, or take a migration back") as operator:
                operator.pastes()
                drilled.replace(0, old)
                all_write(writers)
                drilled.replace(1, old)
                operator.pastes_all()
                all_write(writers)
        kept = flag_revisions(node.dsn)
        entries = chained_entries(node.dsn)

    acknowledged = {key: revision for writer in writers for key, revision in writer.acknowledged.items()}
    assert acknowledged.items() <= kept.items()
    assert [entry.revision for entry in entries] == list(range(1, len(entries) + 1))


def test_a_migration_is_rehearsed_on_a_copy_that_nobody_uses(old: Release, new: Release) -> None:
    with drill(old, new) as drilled:
        revision = drilled.site.admin().CreateFlag(CreateFlagRequest(flag=Flag(key="kept"))).revision
        with drilled.section("Rehearse on a copy") as operator:
            operator.pastes()
            copied = flag_revisions(database_dsn(drilled.node.dsn, "rehearsal"))
            printed = operator.pastes()
            operator.pastes()
        databases = drilled.node.run("SELECT datname FROM pg_database WHERE datname = 'rehearsal'")
        names = Migrator(drilled.node.dsn).status()

    newest = releases.migrations()[-1]
    assert copied == {"kept": revision}
    assert printed.count(f"applied {newest}") == 2
    assert printed.count(f"reverted {newest}") == 1
    assert printed.count("duration_s") == 3
    assert databases == []
    assert [status.label for status in names if status.state is MigrationState.PENDING] == [newest]


def test_a_migration_that_fails_leaves_nothing_and_runs_once_mended(old: Release, new: Release) -> None:
    newest = releases.migrations()[-1]
    with drill(old, new) as drilled:
        node, in_the_way = drilled.node, sql.Identifier(last_relation(newest))
        before = relations(node)
        with psycopg.connect(node.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE TABLE {} ()").format(in_the_way))
            with evaluating_by_any(drilled.site), writing_by_each(drilled.site) as writers:
                refused = drilled.migrate_fails()
                with drilled.section("A migration that fails") as operator:
                    status = operator.pastes()
                    conn.execute(sql.SQL("DROP TABLE {}").format(in_the_way))
                    left = relations(node)
                    operator.pastes()
                all_write(writers)
                with drilled.section("Downgrade, or take a migration back") as operator:
                    operator.pastes_all()
                all_write(writers)
        after = relations(node)

    assert f"migration {newest} failed" in refused
    assert "nothing of it was applied" in refused
    assert re.search(rf"{newest} +pending", status)
    assert left == before == after


def last_relation(migration: str) -> str:
    """The name of the last table or index that a migration makes: a migration that cannot make it fails half way."""
    text = (releases.ROOT / "migrations" / f"{migration}.up.sql").read_text(encoding="utf-8")
    *_, last = RELATION.finditer(text)
    return last[1]


def relations(node: Node) -> list[tuple[object, ...]]:
    """Everything that a migration may make or change: relations, columns and functions."""
    return node.run(
        """
        SELECT oid::regclass::text, relkind::text, attname::text, atttypid::regtype::text
        FROM pg_class JOIN pg_attribute ON attrelid = oid
        WHERE relnamespace = 'public'::regnamespace AND NOT attisdropped
        UNION ALL SELECT oid::regprocedure::text, 'function', md5(prosrc), '' FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
        ORDER BY 1, 2, 3
        """
    )
