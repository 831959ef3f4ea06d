"""Judges the state that a server is left in, while nobody writes: half-written things, and wrong answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import psycopg

from gatekeeper_client.v1.admin_service_pb2 import VerifyAuditLogRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, EvaluateFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.support.processes import KEYS, TIMEOUT_S, Gatekeeper, run, serving
from tests.support.servers import Bearer, access_token

# Each revision from 1 to the head has one entry.
_UNRECORDED = """
    SELECT revision, count(audit_log.seq)
    FROM generate_series(1, (SELECT revision FROM revision_head)) AS revision LEFT JOIN audit_log USING (revision)
    GROUP BY revision HAVING count(audit_log.seq) <> 1
"""


def state_faults(server: Gatekeeper, fresh_dir: Path, users: Sequence[str]) -> Iterator[str]:
    """Find what is wrong with the state of a server that nobody writes to; asks for the flags of `users`."""
    yield from _unrecorded_revisions(server)
    yield from _audit_faults(server)
    yield from _unreconciled(server, fresh_dir)
    yield from _differences(server, fresh_dir, users)


def _unrecorded_revisions(server: Gatekeeper) -> Iterator[str]:
    with psycopg.connect(server.dsn) as conn:
        for revision, entries in conn.execute(_UNRECORDED).fetchmany(10):
            yield f"revision {revision} has {entries} audit entries"


def _audit_faults(server: Gatekeeper) -> Iterator[str]:
    token = access_token(server.dsn, "admin")
    with server.channel() as channel:
        admin = AdminServiceStub(grpc.intercept_channel(channel, Bearer(token)))
        *_, last = admin.VerifyAuditLog(VerifyAuditLogRequest(), timeout=TIMEOUT_S)
    if last.faulty_seq or not last.complete:
        yield f"the audit log does not verify: {last.message or last}"


def _unreconciled(server: Gatekeeper, fresh_dir: Path) -> Iterator[str]:
    code, _, differences = run("audit", "reconcile", data_dir=fresh_dir, DATABASE_URL=server.dsn)
    if code:
        yield f"the log does not reconcile: {differences}"


def _differences(server: Gatekeeper, fresh_dir: Path, users: Sequence[str]) -> Iterator[str]:
    """Compare the answers with those of a second server, which has just loaded everything."""
    with serving(fresh_dir, DATABASE_URL=server.dsn, **KEYS) as fresh:
        served, loaded = _answers(server, users), _answers(fresh, users)
    for user in users:
        if served[user] != loaded[user]:
            yield f"user {user!r} is answered {served[user]} from memory, and {loaded[user]} after a fresh load"


def _answers(server: Gatekeeper, users: Sequence[str]) -> dict[str, EvaluateFlagsResponse]:
    with server.channel() as channel:
        evaluation = EvaluationServiceStub(channel)
        requests = {
            user: EvaluateFlagsRequest(context=EvaluationContext(user_id=user), include_details=True) for user in users
        }
        return {user: evaluation.EvaluateFlags(request, timeout=TIMEOUT_S) for user, request in requests.items()}
