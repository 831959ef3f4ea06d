"""failover.md, executed: a standby takes over, synchronous or not, and so does a second region."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from uuid import uuid4

import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from gatekeeper_grpc.store.migrations.runner import Migrator
from tests.drills.operator import Operator, following
from tests.drills.site import Site, configured, end_server, evaluated, running_site
from tests.faults.load import Writer, at_work
from tests.support.clients import send
from tests.support.processes import TIMEOUT_S
from tests.support.records import chained_entries, flag_revisions
from tests.support.replication import Node, dsn_of, open_folder
from tests.support.traces import live, query, traces
from tests.support.waiting import eventually
from tests.support.watching import watching

pytestmark = pytest.mark.promise("B1", "E2")

WRITTEN_BEFORE = 20


@dataclass(frozen=True, kw_only=True)
class Drill:
    """A primary, its standby, and an installation whose instances know both."""

    primary: Node
    standby: Node
    site: Site

    def section(self, heading: str, **more: str) -> AbstractContextManager[Operator]:
        """Follow a section of failover.md with the variables that the page names."""
        survivor = self.site.instances[-1]
        variables = {
            **self.site.settings,
            "PRIMARY_DATA": str(self.primary.data_dir),
            "PRIMARY_PORT": str(self.primary.port),
            "STANDBY_URL": self.standby.dsn,
            "OPS": f"127.0.0.1:{survivor.ops_port}",
            "GATEKEEPER_SERVER": f"127.0.0.1:{survivor.port}",
            "GATEKEEPER_TOKEN": self.site.token,
        }
        return following("failover.md", heading, node=self.standby, variables=variables | more)

    def catch_up(self) -> None:
        """Wait until the standby shows what the primary has."""
        position = self.primary.position()
        assert eventually(lambda: self.standby.position() >= position)

    def creates(self, key: str) -> int:
        """Create a flag by the last instance; returns the revision."""
        request = pb.CreateFlagRequest(flag=Flag(key=key))
        return self.site.admin(-1).CreateFlag(request, timeout=TIMEOUT_S).revision


@contextmanager
def drill(*, synchronous: bool = False) -> Iterator[Drill]:
    """Run a pair with two instances."""
    with open_folder() as folder:
        primary, standby = configured(Node(folder / "one")), Node(folder / "two")
        primary.start()
        try:
            with (
                replicated(primary, standby, synchronous=synchronous),
                running_site(folder / "site", dsn_of(primary, standby)) as site,
            ):
                yield Drill(primary=primary, standby=standby, site=site)
        finally:
            primary.stop()
            end_server(primary.data_dir)


@contextmanager
def replicated(primary: Node, standby: Node, *, synchronous: bool) -> Iterator[None]:
    """Let the standby follow, which has the settings of its primary."""
    Migrator(primary.dsn).up()
    if synchronous:
        primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.run("SELECT pg_reload_conf()")
    standby.copy(primary)
    standby.start()
    try:
        yield
    finally:
        standby.stop()


def test_promotion_of_a_synchronous_standby_loses_nothing_acknowledged() -> None:
    with drill(synchronous=True) as drilled:
        admin = drilled.site.admin()
        writer = Writer(lambda: admin, "writer")
        with drilled.site.evaluating(), at_work(writer):
            assert eventually(lambda: len(writer.acknowledged) >= WRITTEN_BEFORE)
            with drilled.section("Promote") as operator:
                operator.pastes_all()
            assert all(instance.logged("database_server_changed") for instance in drilled.site.instances)
            before = len(writer.acknowledged)
            assert eventually(lambda: len(writer.acknowledged) >= before + WRITTEN_BEFORE)
            with drilled.section("Bring back a standby") as operator:
                operator.pastes_all()
        newest = drilled.creates("waits-for-the-new-standby")
        kept = flag_revisions(drilled.standby.dsn)
        entries = chained_entries(drilled.standby.dsn)

    assert writer.acknowledged.items() <= kept.items()
    assert newest < REVISIONS_PER_EPOCH
    assert [entry.revision for entry in entries] == list(range(1, newest + 1))


def test_promotion_of_a_lagging_standby_names_the_loss_and_erases_again() -> None:
    person = f"person-{uuid4().hex}"
    with drill() as drilled:
        live(drilled.site.admin(), person)
        kept = drilled.creates("kept")
        drilled.catch_up()
        drilled.standby.cut_off()
        erased = send(drilled.site.admin(), "EraseUser", pb.EraseUserRequest(user_id=person)).revision
        lost = drilled.creates("lost")
        assert eventually(lambda: all(evaluated(instance).revision == lost for instance in drilled.site.instances))
        drilled.primary.kill()

        with drilled.site.evaluating():
            with drilled.section("Promote") as operator:
                operator.pastes()
                assert f"served {lost}, kept {kept}" in operator.pastes()
                operator.pastes_all()
            told = [instance.logged("commits_lost")["last_served_revision"] for instance in drilled.site.instances]
            with drilled.section("After a loss", SERVED=str(lost)) as operator:
                assert "erased again: 1" in operator.pastes_all()
            again = drilled.creates("lost")
        revisions = revisions_of(drilled.standby)
        left = traces(drilled.standby.dsn, person)

    assert told == [lost, lost]
    assert revisions[-1] == again > REVISIONS_PER_EPOCH
    assert not {erased, lost} & set(revisions)
    assert left == []


def test_a_second_region_resets_watchers_and_repeats_no_revision() -> None:
    with drill() as drilled:
        site, (first, second) = drilled.site, drilled.site.instances
        kept = drilled.creates("kept")
        drilled.catch_up()
        drilled.standby.cut_off()
        lost = drilled.creates("lost")
        first.kill()
        drilled.primary.kill()

        site.instances = [second]
        with site.evaluating(), second.channel() as channel, watching(channel, from_revision=lost) as watch:
            with drilled.section("A second region") as operator:
                operator.pastes_all()
            while not (message := watch.read()).reset:
                pass
            fresh = site.start()
            again = drilled.creates("lost")
            assert eventually(lambda: evaluated(fresh).revision >= again)
        revisions = revisions_of(drilled.standby)

    assert message.revision >= REVISIONS_PER_EPOCH
    assert kept in revisions
    assert lost not in revisions
    assert revisions[-1] == again > REVISIONS_PER_EPOCH
    assert revisions == sorted(set(revisions))


def revisions_of(node: Node) -> list[int]:
    """The revisions of the audit log, in the order in which they were issued."""
    return [revision for (revision,) in query(node.dsn, "SELECT revision FROM audit_log ORDER BY seq")]
