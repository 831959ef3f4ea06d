"""Applies configurations: all of one in one transaction, or nothing of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import psycopg
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.configuration import Applied, AppliedChange, Configuration
from gatekeeper_grpc.domain.configuration_plan import (
    FlagStep,
    SegmentStep,
    SetStep,
    State,
    Step,
    UserStep,
    changed_fields,
    plan,
    too_large,
)
from gatekeeper_grpc.domain.errors import GatekeeperError, ResourceExhausted
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent
from gatekeeper_grpc.domain.mutation import Written as Committed
from gatekeeper_grpc.store.access_trace import AccessEvent, record_access
from gatekeeper_grpc.store.configuration.state import read_state
from gatekeeper_grpc.store.configuration.writes import Numbered, Written, numbered, write_steps
from gatekeeper_grpc.store.flags import flag_change
from gatekeeper_grpc.store.hashed_sets import SetChange
from gatekeeper_grpc.store.mutations import Effect, Head, MutationRunner, unchanged
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision
from gatekeeper_grpc.store.postgres.retries import retry_lost_read
from gatekeeper_grpc.store.quotas import DEFAULT_QUOTAS, Quotas
from gatekeeper_grpc.store.segments import segment_change
from gatekeeper_grpc.store.users import user_change

MAX_LOCK_S = 0.5
"""How long a configuration may keep the head row, which all other changes wait for."""
# The rest is for the audit entries and the commit.
_SHARE_OF_WRITES = 0.8
_CODEC = TypeAdapter(Applied)
_LIMIT = "SELECT set_config('statement_timeout', %(limit)s, true)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What has to change of a state; or why it cannot be."""

    state: State | None = None
    steps: tuple[Step, ...] = ()
    error: GatekeeperError | None = None
    revision: int


class ConfigurationStore:
    """Applies configurations.

    Args:
        database: The database.
        mutations: Carries out the mutations.
        quotas: How much an installation may have.
    """

    def __init__(
        self,
        database: Database,
        mutations: MutationRunner,
        *,
        quotas: Quotas = DEFAULT_QUOTAS,
    ) -> None:
        self._database = database
        self._mutations = mutations
        self._quotas = quotas

    def apply(self, wanted: Configuration, intent: Intent) -> Committed[Applied]:
        """Make everything as it is wanted, with one revision and one audit entry for each changed resource.

        What has to change is found before the head is locked, and again only if another change came between.

        Raises:
            NotFound: It is about a flag, segment or user that neither exists nor is made.
            Changed: A flag, segment or user has another etag.
            InvalidArgument: A new name or id cannot be seen.
            FailedPrecondition: Flags use a segment that would be deleted.
            ResourceExhausted: It is too much at once, or a quota or a cap is reached.
            GatekeeperError: See `MutationRunner.mutate`.
        """
        ahead = self._plan_ahead(wanted)

        def act(conn: Connection, head: Head) -> Effect[Applied]:
            locked_at, limit_s = time.monotonic(), MAX_LOCK_S * _SHARE_OF_WRITES
            conn.execute(_LIMIT, {"limit": f"{max(1, int(limit_s * 1e3))}ms"})
            try:
                effect = self._write(conn, head, ahead, wanted)
                conn.execute("SELECT 1").fetchone()  # Waits for all of them.
            except psycopg.errors.QueryCanceled as exc:
                raise _too_slow() from exc
            if effect.change and time.monotonic() - locked_at > limit_s:
                raise _too_slow()
            return effect

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def _plan_ahead(self, wanted: Configuration) -> _Plan:
        """Plan without a lock. Raises no error of the plan yet: a retry gets the result of the first request."""
        if not wanted.users:
            with self._database.read() as conn:
                return _planned(conn, wanted, current_revision(conn))
        with self._database.read_and_record() as conn:
            found = _planned(conn, wanted, current_revision(conn))
            _record_compared(conn, wanted, found)
            return found

    def _write(self, conn: Connection, head: Head, ahead: _Plan, wanted: Configuration) -> Effect[Applied]:
        current = head.revision - 1
        found = ahead if ahead.revision == current else _planned(conn, wanted, current)
        if found.error:
            raise found.error
        if not found.steps or found.state is None:
            return unchanged(Applied())
        steps = numbered(found.steps, head)
        written = write_steps(conn, steps, known=found.state.segments, owners=found.state.flags, quotas=self._quotas)
        return _effect(steps, found.state, written)


def _record_compared(conn: Connection, wanted: Configuration, found: _Plan) -> None:
    """Record whose attributes are read: what is not changed afterwards tells that they are those of the request."""
    stored = found.state.users if found.state else {}
    compared = [stored[user.profile.user_id].subject_id for user in wanted.users if user.profile.user_id in stored]
    if compared:
        record_access(conn, AccessEvent.USERS_COMPARED, compared)


def _too_slow() -> ResourceExhausted:
    limit_ms = round(MAX_LOCK_S * 1e3)
    return too_large(f"this would keep all other changes waiting for longer than {limit_ms} ms", limit_ms=limit_ms)


def _planned(conn: Connection, wanted: Configuration, revision: int) -> _Plan:
    try:
        state = read_state(conn, wanted, revision)
        return _Plan(state=state, steps=plan(wanted, state), revision=revision)
    except GatekeeperError as error:
        return _Plan(error=error, revision=revision)


def _effect(steps: Sequence[Numbered], state: State, written: Written) -> Effect[Applied]:
    apply_id = str(uuid4())
    changes = [_change(one, apply_id, state, written) for one in steps]
    result = Applied(
        apply_id=apply_id,
        changes=tuple(
            _applied(one.step, change, one.head.revision) for one, change in zip(steps, changes, strict=True)
        ),
    )
    preview = Applied(changes=tuple(_applied(one.step, change, 0) for one, change in zip(steps, changes, strict=True)))
    told = tuple(one.step.subject_id for one in steps if isinstance(one.step, UserStep))
    return Effect(result=result, preview=preview, change=changes[0], further=tuple(changes[1:]), subjects=told)


def _change(one: Numbered, apply_id: str, state: State, written: Written) -> Change:
    step = one.step
    if isinstance(step, FlagStep):
        return flag_change(step.before, written.flags[step.config.key] if step.config else None, apply_id=apply_id)
    if isinstance(step, SegmentStep):
        after = written.segments[step.config.key] if step.config else None
        return segment_change(step.before, after, apply_id=apply_id)
    if isinstance(step, UserStep):
        made = user_change(step.before, written.users.get(step.subject_id), apply_id=apply_id)
        return replace(made, evidence_hash=step.evidence_hash)
    return _set_change(step, apply_id, _owner_id(step, state, written))


def _owner_id(step: SetStep, state: State, written: Written) -> int:
    key = step.owner.key
    if (flag := {**state.flags, **written.flags}.get(key)) and step.owner.resource == "targets":
        return flag.flag_id
    return {**state.segments, **written.segments}[key].segment_id


def _set_change(step: SetStep, apply_id: str, owner_id: int) -> Change:
    sets = SetChange(owner_id=owner_id, before=step.before, after=step.after)
    return Change(
        resource=step.owner.resource,
        key=step.owner.key,
        change=ChangeType.UPDATED,
        document={**step.document(), "set": sets.document(), "apply_id": apply_id},
        subjects=step.subjects,
        evidence_hash=step.evidence_hash,
    )


def _applied(step: Step, change: Change, revision: int) -> AppliedChange:
    return AppliedChange(
        resource=change.resource,
        key=step.user_id if isinstance(step, UserStep) else change.key,
        change=change.change,
        fields=() if isinstance(step, SetStep) or not step.config else _fields(step),
        counts=step.counts() if isinstance(step, SetStep) else {},
        revision=revision,
    )


def _fields(step: FlagStep | SegmentStep | UserStep) -> tuple[str, ...]:
    if isinstance(step, UserStep):
        return tuple(f"attributes.{name}" for name in step.names)
    assert step.config is not None  # noqa: S101 - the caller has checked it
    return changed_fields(step.before.config if step.before else None, step.config)
