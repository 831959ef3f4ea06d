"""Metrics as an operator sees them: a real call to a real server, and then the scrape."""

import re
from collections.abc import Callable, Iterator

import grpc
import pytest
from prometheus_client.core import Metric

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_BEARER, RATE_TIER_STANDARD, ClientKey
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    EvaluateFlagsRequest,
    WatchFlagsRequest,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import TIMEOUT_S, Installation, created, new_key, refusal_of
from tests.support.scrapes import documented, families_of, rising, samples_of, shown, text_of
from tests.support.waiting import eventually

EVALUATE = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
# What a label may be: bounded, and about no person, flag or address.
LABELS = frozenset(
    {"method", "code", "source", "reason", "result", "kind", "statement", "sqlstate", "state", "cause", "pool", "limit"}
    | {"decision", "storage", "version", "python", "grpcio", "kernel", "le", "worker"}
)
# The rules of `promtool check metrics`.
NOT_BASE_UNITS = re.compile(
    "_(?:milli|micro|nano|kilo|mega)?(?:days?|hours?|minutes?|ms|us|kb|mb|kib|mib|percent)(?:_|$)|_millisecond"
)
RESERVED = re.compile(r"_(?:total|count|sum|bucket|info)$")
LOCKED_OUT = grpc.StatusCode.RESOURCE_EXHAUSTED


def duration_count(code: str, method: str = EVALUATE) -> str:
    return f'gatekeeper_rpc_duration_seconds_count{{code="{code}",method="{method}"}}'


@pytest.fixture(scope="module")
def port(installation: Installation) -> int:
    return installation.server.ops_port


@pytest.fixture
def evaluation(installation: Installation) -> EvaluationServiceStub:
    return EvaluationServiceStub(installation.channels[None])


def of_anna(**fields: object) -> EvaluateFlagsRequest:
    return EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"), **fields)  # type: ignore[arg-type]


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(grpc.RpcError):
        act()


def test_document_and_page_have_the_same_metrics_of_the_same_types(port: int) -> None:
    assert shown(families_of(port)) == documented()


def faults_of(family: Metric) -> Iterator[str]:
    names = {sample.name for sample in family.samples}
    if not family.documentation:
        yield "no help"
    if family.type == "counter" and not all(name.endswith("_total") for name in names):
        yield "a counter without _total"
    if family.type == "gauge" and RESERVED.search(family.name) and not family.name.endswith("_info"):
        yield "a suffix of another type"
    if NOT_BASE_UNITS.search(family.name):
        yield "no base unit"
    if re.search(r"[A-Z:]|__|_(?:gauge|counter|histogram)(?:_|$)", family.name):
        yield "a name that is not conventional"


def test_metrics_follow_the_conventions_of_prometheus(port: int) -> None:
    assert {family.name: [*faults_of(family)] for family in families_of(port) if [*faults_of(family)]} == {}


@pytest.mark.parametrize(
    "family",
    [
        Metric("gatekeeper_expiry_days", "x", "gauge"),
        Metric("gatekeeper_wait_ms", "x", "gauge"),
        Metric("gatekeeper_calls_count", "x", "gauge"),
        Metric("gatekeeper_Calls", "x", "gauge"),
        Metric("gatekeeper_calls", "", "gauge"),
    ],
    ids=lambda family: family.name,
)
def test_twin_what_breaks_a_convention_is_found(family: Metric) -> None:
    assert [*faults_of(family)]


def test_no_label_is_a_flag_a_user_an_address_or_an_admin(
    port: int, installation: Installation, evaluation: EvaluationServiceStub
) -> None:
    flag = created(installation.admin, key="label-less-flag", enabled=True)
    evaluation.EvaluateFlags(
        EvaluateFlagsRequest(context=EvaluationContext(user_id="label-less-user"), flag_keys=[flag.key])
    )
    labels = {name for family in families_of(port) for sample in family.samples for name in sample.labels}

    assert labels <= LABELS
    assert not re.search(r"label-less|127\.0\.0\.1|ipv4|unix:", text_of(port))


def test_an_evaluation_is_timed_and_its_decisions_are_counted(
    port: int, installation: Installation, evaluation: EvaluationServiceStub
) -> None:
    flags = [created(installation.admin, enabled=enabled) for enabled in (True, True, False)]
    keys = [flag.key for flag in flags]
    fresh, static = 'gatekeeper_answers_total{source="fresh"}', 'gatekeeper_decisions_total{reason="STATIC"}'

    with (
        rising(port, duration_count("OK"), fresh, 'gatekeeper_decisions_total{reason="DISABLED"}'),
        rising(port, static, by=2),
    ):
        evaluation.EvaluateFlags(of_anna(flag_keys=keys))


def test_decisions_of_a_bulk_stream_are_counted(
    port: int, installation: Installation, evaluation: EvaluationServiceStub
) -> None:
    flag = created(installation.admin)
    contexts = [EvaluationContext(user_id=f"user-{number}") for number in range(7)]
    request = BulkEvaluateFlagsRequest(flag_keys=[flag.key], contexts=contexts)

    with rising(port, 'gatekeeper_decisions_total{reason="DISABLED"}', by=7):
        assert [*evaluation.BulkEvaluateFlags(iter([request]), timeout=TIMEOUT_S)]


def test_an_evaluation_without_a_snapshot_to_answer_from_is_counted(
    port: int, evaluation: EvaluationServiceStub
) -> None:
    with rising(port, 'gatekeeper_answers_total{source="none"}', duration_count("FAILED_PRECONDITION")):
        refused(lambda: evaluation.EvaluateFlags(of_anna(min_revision=10**9 - 1)))


def test_a_call_that_no_worker_serves_is_timed(port: int, installation: Installation) -> None:
    with rising(port, duration_count("UNAUTHENTICATED", "/gatekeeper.v1.AdminService/ListFlags")):
        refused(lambda: installation.admin_as(None).ListFlags(pb.ListFlagsRequest()))


def test_a_denial_is_counted(port: int, installation: Installation) -> None:
    with rising(port, duration_count("PERMISSION_DENIED", "/gatekeeper.v1.AdminService/CreateFlag")):
        refused(lambda: created(installation.admin_as(Role.VIEWER)))


def test_a_change_is_timed_from_its_entry_to_its_view(port: int, installation: Installation) -> None:
    with rising(
        port,
        "gatekeeper_audit_append_duration_seconds_count",
        "gatekeeper_propagation_seconds_count",
        'gatekeeper_refresh_duration_seconds_count{kind="changes"}',
        "gatekeeper_snapshot_revision",
    ):
        created(installation.admin)


def test_propagation_counts_the_age_of_a_change_in_the_database(port: int, installation: Installation) -> None:
    """Of one that is seen soon; a clock of another machine would show in the sum."""
    before = samples_of(port)["gatekeeper_propagation_seconds_sum"]
    created(installation.admin)

    assert 0 < samples_of(port)["gatekeeper_propagation_seconds_sum"] - before < TIMEOUT_S


def test_statements_and_waits_for_connections_are_timed(port: int, installation: Installation) -> None:
    before = samples_of(port)
    installation.admin_as(Role.ADMIN).ListAdminUsers(pb.ListAdminUsersRequest())
    after = samples_of(port)
    waits = "gatekeeper_database_wait_seconds_count"
    statements = 'gatekeeper_database_statement_duration_seconds_count{statement="select_admin_user"}'

    assert (after[waits] > before[waits], after.get(statements, 0) > before.get(statements, 0)) == (True, True)


def test_logins_are_counted_by_their_result(port: int, installation: Installation) -> None:
    login = AuthServiceStub(installation.channels[None]).Login
    wrong = LoginRequest(username="nobody-at-all", password="wrong")

    with rising(port, 'gatekeeper_logins_total{result="failed"}', by=3):
        for _ in range(3):
            refused(lambda: login(wrong, timeout=TIMEOUT_S))
    # On a busy machine, a hash may take longer than the first lock-out lasts; each is twice as long as the last.
    with rising(port, 'gatekeeper_logins_total{result="locked_out"}'):
        assert eventually(lambda: refusal_of(lambda: login(wrong, timeout=TIMEOUT_S)).code is LOCKED_OUT)


def test_client_keys_are_counted_as_found_or_not(
    port: int, installation: Installation, evaluation: EvaluationServiceStub
) -> None:
    key = ClientKey(name=new_key(), type=CLIENT_KEY_TYPE_BEARER, tier=RATE_TIER_STANDARD)
    request = pb.CreateClientKeyRequest(client_key=key)
    bearer = installation.admin_as(Role.ADMIN).CreateClientKey(request).secret
    unknown = f"gkc_{'0' * 20}_{'A' * 43}"

    with rising(port, 'gatekeeper_client_key_lookups_total{result="hit"}'):
        evaluation.EvaluateFlags(of_anna(), metadata=(("authorization", f"Bearer {bearer}"),))
    with rising(port, 'gatekeeper_client_key_lookups_total{result="miss"}'):
        refused(lambda: evaluation.EvaluateFlags(of_anna(), metadata=(("authorization", f"Bearer {unknown}"),)))


def test_watchers_are_counted_while_they_watch_and_by_why_they_end(
    port: int, evaluation: EvaluationServiceStub
) -> None:
    before = samples_of(port)["gatekeeper_watchers"]
    stream = evaluation.WatchFlags(WatchFlagsRequest(), timeout=TIMEOUT_S)
    next(stream)
    during = samples_of(port)["gatekeeper_watchers"]

    with rising(port, 'gatekeeper_watch_streams_ended_total{cause="client"}'):
        stream.cancel()
    assert (during, samples_of(port)["gatekeeper_watchers"]) == (before + 1, before)
