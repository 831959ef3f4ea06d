"""The head of the audit log in the server's log: an anchor outside the database."""

from structlog.testing import capture_logs

from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.store.audit.head_reporter import AuditHeadReporter
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from tests.support.servers import KEYS


def test_the_head_is_logged_when_it_moved_and_for_the_last_time_at_the_end(database: Database) -> None:
    watch = AuditHeadReporter(AuditStore(database), database)
    flags = FlagStore(database, MutationRunner(database, KEYS.data))

    with capture_logs() as logs:
        watch.run()
        watch.run()
        written = flags.create(FlagConfig(key="alpha"), Intent(caller=None, action="CreateFlag"))
        watch.close()
        watch.close()

    assert written.anchor
    anchor = {"seq": 1, "hash": written.anchor.hash.hex(), "revision": written.revision}
    genesis = {"seq": 0, "hash": "0" * 64, "revision": 0}
    heads = [entry for entry in logs if entry["event"] == "audit_head"]
    assert heads == [{"event": "audit_head", "log_level": "info", **each} for each in (genesis, anchor)]


def test_a_database_that_is_away_at_the_end_is_logged_and_no_error(database: Database) -> None:
    watch = AuditHeadReporter(AuditStore(database), database)
    database.close()

    with capture_logs() as logs:
        watch.close()

    assert [entry["event"] for entry in logs if entry["event"] != "database_error"] == ["audit_head_unknown"]
