"""What holds for every mutation alike: one revision and one record each, rehearsals, reasons, etags."""

import json
import time
from typing import Any
from uuid import uuid4

import pytest

from gatekeeper_grpc.cache.refresher import Refresher
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.store import admin_users, flags, segments, users
from tests.support.clients import (
    SERVICE,
    Installation,
    Refusal,
    already_exists,
    changed_since_read,
    invalid,
    new_key,
    outcome_of,
    refusal_of,
)
from tests.support.mutations import (
    EACH_MUTATION,
    EACH_WITH_ETAG,
    EACH_WITH_KEY,
    KINDS_WITH_ETAGS,
    MUTATIONS,
    Kind,
    Mutation,
    each,
)

EACH_KIND = pytest.mark.parametrize("kind", KINDS_WITH_ETAGS, ids=[kind.field for kind in KINDS_WITH_ETAGS])


@pytest.fixture
def key(installation: Installation, mutation: Mutation) -> str:
    """The key of something on which the mutation succeeds."""
    return mutation.make(installation)


def test_every_rpc_that_can_be_retried_is_in_the_table_of_mutations() -> None:
    mutating = {rpc.name for rpc in SERVICE.methods if "request_id" in rpc.input_type.fields_by_name}

    assert mutating == MUTATIONS.keys()


@EACH_MUTATION
def test_every_mutation_has_the_fields_that_all_share(mutation: Mutation) -> None:
    shared = {"change_reason", "validate_only", "request_id"}

    assert shared <= set(mutation.request("a").DESCRIPTOR.fields_by_name)


# --- One revision, one record ----------------------------------------------------------------------------------------

# A second row of either kind for one revision would give a second row here.
RECORDED = """
    SELECT revision, actor, action, a.resource_type, resource_key, c.resource_type, c.change_type, c.key
    FROM audit_log a FULL JOIN change_log c USING (revision) WHERE revision > %s ORDER BY seq
"""


def recorded_names(installation: Installation) -> dict[str, str]:
    """Return what the logs call each person that is known: they name nobody."""
    return dict(installation.query("SELECT user_id, subject_id::text FROM subjects"))


@pytest.mark.promise("A1")
@EACH_MUTATION
def test_a_mutation_is_one_revision_with_one_audit_entry_and_one_change(
    installation: Installation, key: str, mutation: Mutation
) -> None:
    before, names = installation.revision(), recorded_names(installation)

    response = mutation.ask(installation, key)

    names |= recorded_names(installation)
    changed_key = mutation.changed_key(key, response)
    changed_key = names.get(changed_key, changed_key)
    audited = (mutation.actor(installation, key), mutation.rpc, mutation.resource, changed_key)
    changed = (mutation.resource, mutation.change, changed_key)
    assert installation.query(RECORDED, before) == [(before + 1, *audited, *changed)]
    assert response.revision == installation.revision() == before + 1


@EACH_MUTATION
def test_a_mutation_answers_where_the_audit_log_stands_after_it(
    installation: Installation, key: str, mutation: Mutation
) -> None:
    response = mutation.ask(installation, key)

    assert response.audit_anchor == installation.audit_anchor()


@pytest.mark.promise("A1")
@EACH_MUTATION
def test_every_mutation_answers_with_revision_and_anchor(mutation: Mutation) -> None:
    answered = SERVICE.methods_by_name[mutation.rpc].output_type.fields_by_name

    assert {"revision", "audit_anchor"} <= set(answered)


@pytest.fixture
def late_publishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not wait for the snapshot is sent before it is there."""
    publish = SnapshotCache.publish

    def late(cache: SnapshotCache, snapshot: Snapshot, **how: Any) -> bool:
        time.sleep(0.1)
        return publish(cache, snapshot, **how)

    monkeypatch.setattr(SnapshotCache, "publish", late)


@EACH_MUTATION
@pytest.mark.usefixtures("late_publishing")
def test_a_mutation_is_visible_when_it_is_answered(installation: Installation, key: str, mutation: Mutation) -> None:
    response = mutation.ask(installation, key)

    assert installation.server.cache.current().revision >= response.revision


@pytest.mark.usefixtures("late_publishing")
def test_without_the_refresh_a_mutation_is_answered_too_early(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    mutation = MUTATIONS["UpdateFlag"]
    key = mutation.make(installation)
    monkeypatch.setattr(Refresher, "refresh_after_write", lambda _refresher, _revision: None)

    response = mutation.ask(installation, key)

    assert installation.server.cache.current().revision < response.revision


@EACH_MUTATION
def test_a_mutation_that_fails_writes_nothing(
    installation: Installation, key: str, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation has done all its own writing when the fault strikes: recording it."""

    def fault(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("gatekeeper_grpc.store.mutations._record", fault)
    caller = mutation.caller(installation, key)
    before = installation.contents()

    refusal = refusal_of(lambda: mutation.ask(installation, key, caller=caller))

    assert (refusal.reason, installation.contents()) == ("INTERNAL", before)


# --- change_reason ---------------------------------------------------------------------------------------------------

DOCUMENT = "SELECT document FROM audit_documents JOIN audit_log USING (seq) WHERE revision = %s"


@EACH_MUTATION
def test_the_audit_entry_tells_the_change_reason(installation: Installation, key: str, mutation: Mutation) -> None:
    reason = 'Because "they" said so — 因為 🎉'

    response = mutation.ask(installation, key, change_reason=reason)

    ((document,),) = installation.query(DOCUMENT, response.revision)
    assert json.loads(document)["change_reason"] == reason


# --- validate_only ---------------------------------------------------------------------------------------------------

SERVER_DECIDES = {"admin_id", "etag", "revision", "create_time", "update_time", "revoke_time", "key_id", "token_id"}


def would_be(response: Any) -> Any:
    """Return an answer less what only a write can decide."""
    decided = type(response)()
    decided.CopyFrom(response)
    for field, value in response.ListFields():
        if field.name in ("revision", "audit_anchor", "secret", "apply_id"):
            decided.ClearField(field.name)
        elif field.is_repeated:
            for item in getattr(decided, field.name):
                item.ClearField("revision")
        elif field.message_type:
            for name in SERVER_DECIDES.intersection(value.DESCRIPTOR.fields_by_name):
                getattr(decided, field.name).ClearField(name)
    return decided


def contents_but_reads(installation: Installation) -> dict[str, list[str]]:
    """Everything held but the trace of reads: what UpdateUser answers without a change is one."""
    return installation.contents(but="auth_events")


@EACH_MUTATION
def test_validate_only_answers_what_would_be_and_writes_nothing(
    installation: Installation, key: str, mutation: Mutation
) -> None:
    caller = mutation.caller(installation, key)
    before = contents_but_reads(installation)

    rehearsed = mutation.ask(installation, key, caller=caller, validate_only=True)

    assert contents_but_reads(installation) == before
    assert (rehearsed.revision, rehearsed.HasField("audit_anchor")) == (installation.revision(), False)
    assert would_be(rehearsed) == would_be(mutation.ask(installation, key))


@EACH_MUTATION
def test_without_validate_only_the_same_request_does_write(
    installation: Installation, key: str, mutation: Mutation
) -> None:
    """The twin: `contents` would have shown it."""
    before = installation.contents()

    mutation.ask(installation, key)

    differing = {table for table, rows in installation.contents().items() if rows != before.get(table)}
    assert differing >= {"revision_head", "audit_log", "audit_documents", "change_log"}


@EACH_KIND
def test_validate_only_of_an_update_answers_the_current_state(installation: Installation, kind: Kind) -> None:
    key = kind.make(installation, new_key())
    current = kind.updated(installation, key)

    assert kind.updated(installation, key, validate_only=True) == current


@each(*(mutation for mutation in MUTATIONS.values() if mutation.creates))
def test_validate_only_of_a_creation_answers_no_etag_revision_or_key(
    installation: Installation, key: str, mutation: Mutation
) -> None:
    response = mutation.ask(installation, key, validate_only=True)

    resource = getattr(response, mutation.kind.field)
    decided = [getattr(resource, name, None) or None for name in ("etag", "revision", "key_id")]
    assert (decided, getattr(response, "secret", "")) == ([None] * 3, "")


@pytest.mark.parametrize("validate_only", [True, False])
@EACH_WITH_KEY
def test_a_key_that_nothing_has_is_refused_validated_or_not(
    installation: Installation, mutation: Mutation, validate_only: bool
) -> None:
    refusal = refusal_of(lambda: mutation.ask(installation, "nobody", validate_only=validate_only))

    assert refusal == mutation.refused(mutation.kind.unknown("nobody"))


@pytest.mark.parametrize("validate_only", [True, False])
@each(*(mutation for mutation in MUTATIONS.values() if mutation.creates and mutation.kind in KINDS_WITH_ETAGS))
def test_a_taken_key_is_refused_validated_or_not(
    installation: Installation, key: str, mutation: Mutation, validate_only: bool
) -> None:
    mutation.ask(installation, key)

    refusal = refusal_of(lambda: mutation.ask(installation, key, validate_only=validate_only))

    assert refusal == already_exists(**mutation.kind.unknown(f"{key}new").metadata)


# --- etag ------------------------------------------------------------------------------------------------------------


def stale(mutation: Mutation, *, current_etag: str) -> Refusal:
    return mutation.refused(changed_since_read(current_etag=current_etag))


@pytest.mark.promise("A3")
@EACH_WITH_ETAG
def test_a_mutation_with_the_current_etag_succeeds(installation: Installation, key: str, mutation: Mutation) -> None:
    response = mutation.ask(installation, key, etag=mutation.kind.etag(installation, key))

    assert response.revision == installation.revision()


@pytest.mark.promise("A3")
@pytest.mark.parametrize("validate_only", [True, False])
@EACH_WITH_ETAG
def test_a_stale_etag_is_refused_with_the_current_one_and_writes_nothing(
    installation: Installation, key: str, mutation: Mutation, validate_only: bool
) -> None:
    etag = mutation.kind.etag(installation, key)
    current_etag = mutation.kind.updated(installation, key).etag
    before = installation.contents()

    refusal = refusal_of(lambda: mutation.ask(installation, key, etag=etag, validate_only=validate_only))

    assert (refusal, installation.contents()) == (stale(mutation, current_etag=current_etag), before)


@pytest.mark.promise("A3")
@EACH_WITH_ETAG
def test_twin_without_the_check_a_stale_etag_overwrites_unseen_state(
    installation: Installation, key: str, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test before."""
    for store in (flags, segments, users, admin_users):
        monkeypatch.setattr(store, "check_etag", lambda *_, **__: None)
    etag = mutation.kind.etag(installation, key)
    mutation.kind.updated(installation, key)

    outcome = outcome_of(lambda: mutation.ask(installation, key, etag=etag))

    assert not isinstance(outcome, Refusal)


@pytest.mark.promise("A3")
@EACH_WITH_ETAG
def test_an_etag_that_never_was_is_stale(installation: Installation, key: str, mutation: Mutation) -> None:
    refusal = refusal_of(lambda: mutation.ask(installation, key, etag="\0"))

    assert refusal == stale(mutation, current_etag=mutation.kind.etag(installation, key))


@EACH_KIND
def test_every_change_makes_another_etag(installation: Installation, kind: Kind) -> None:
    key = kind.make(installation, new_key())

    assert kind.etag(installation, key) != kind.updated(installation, key).etag


@pytest.mark.promise("A3")
@each(*(MUTATIONS[rpc] for rpc in ("DeleteFlag", "DeleteSegment", "DeleteUser", "DeleteAdminUser")))
def test_an_etag_of_what_was_deleted_is_stale_for_its_successor(
    installation: Installation, key: str, mutation: Mutation
) -> None:
    etag = mutation.kind.etag(installation, key)
    mutation.ask(installation, key)
    mutation.kind.make(installation, key)

    refusal = refusal_of(lambda: mutation.ask(installation, key, etag=etag))

    assert refusal == stale(mutation, current_etag=mutation.kind.etag(installation, key))


# --- What changes nothing --------------------------------------------------------------------------------------------

# What creates or deletes finds the second time that it cannot.
EACH_REPEATABLE = each(*(each for each in MUTATIONS.values() if each.change == "updated" and not each.is_for_oneself))


@pytest.mark.promise("A1")
@EACH_REPEATABLE
def test_a_mutation_that_changes_nothing_writes_nothing(
    installation: Installation, key: str, mutation: Mutation
) -> None:
    first = mutation.ask(installation, key)
    before = contents_but_reads(installation)

    again = mutation.ask(installation, key)
    validated = mutation.ask(installation, key, validate_only=True)

    assert contents_but_reads(installation) == before
    assert (again.revision, again.HasField("audit_anchor")) == (first.revision, False)
    assert again == validated
    if mutation.rpc == mutation.kind.update:
        assert getattr(again, mutation.kind.field) == getattr(first, mutation.kind.field)


@each(*(MUTATIONS[str(kind.update)] for kind in KINDS_WITH_ETAGS))
def test_that_there_is_nothing_to_change_is_judged_after_the_etag(
    installation: Installation, key: str, mutation: Mutation
) -> None:
    stale_etag = mutation.kind.etag(installation, key)
    current = getattr(mutation.ask(installation, key), mutation.kind.field).etag

    refusal = refusal_of(lambda: mutation.ask(installation, key, etag=stale_etag))

    assert refusal == stale(mutation, current_etag=current)


@EACH_REPEATABLE
def test_a_retry_of_what_changed_nothing_gets_the_same_answer(
    installation: Installation, key: str, mutation: Mutation
) -> None:
    """Also when the same request, made now, would change something."""
    mutation.ask(installation, key)
    request_id = str(uuid4())
    first = mutation.ask(installation, key, request_id=request_id)
    installation.execute(FORGET_ALL)
    before = contents_but_reads(installation)

    again = mutation.ask(installation, key, request_id=request_id)

    assert (again, contents_but_reads(installation)) == (first, before)
    refusal = refusal_of(lambda: mutation.ask(installation, key, request_id=request_id, change_reason="another"))
    assert refusal == mutation.refused(invalid("request_id"))


# Behind the log, so that no mutation has to undo each of the others.
FORGET_ALL = """
    WITH targets AS (DELETE FROM targeted_users), members AS (DELETE FROM segment_members),
         flags AS (UPDATE feature_flags SET description = ''), groups AS (UPDATE segments SET description = '')
    UPDATE users SET attributes = '{}'
"""


# --- What the audit log tells ----------------------------------------------------------------------------------------


def documents_of(installation: Installation, key: str, *rpcs: str) -> list[dict[str, Any]]:
    """Let these mutations act one after the other, and return what the audit log tells of each."""
    revisions = [MUTATIONS[rpc].ask(installation, key).revision for rpc in rpcs]
    return [json.loads(document) for revision in revisions for (document,) in installation.query(DOCUMENT, revision)]


def test_the_audit_log_tells_segments_in_full_before_and_after(installation: Installation) -> None:
    key = MUTATIONS["CreateSegment"].make(installation)

    created, updated, deleted = documents_of(installation, key, "CreateSegment", "UpdateSegment", "DeleteSegment")

    condition = {"attribute": "a", "operator": "EXISTS", "values": [], "negate": False}
    assert created["before"] is None
    assert created["after"].items() >= {"key": f"{key}new", "conditions": [condition], "match": "ALL"}.items()
    assert [updated[side]["description"] for side in ("before", "after")] == ["", "changed"]
    assert (deleted["before"], deleted["after"]) == (updated["after"], None)


def test_the_audit_log_tells_members_as_deltas_by_subject_id(installation: Installation) -> None:
    """Of two users one is a member already, so one is added; then both are removed."""
    key = MUTATIONS["AddSegmentMembers"].make(installation)

    added, removed = documents_of(installation, key, "AddSegmentMembers", "RemoveSegmentMembers")

    names = recorded_names(installation)
    sets = [document.pop("set") for document in (added, removed)]
    assert added == {"added": [names["bob"]], "change_reason": ""}
    assert removed == {"removed": sorted((names["anna"], names["bob"])), "change_reason": ""}
    assert [(each["before"]["count"], each["after"]["count"]) for each in sets] == [(1, 2), (2, 0)]
    assert sets[0]["after"] == sets[1]["before"]
