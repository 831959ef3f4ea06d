"""Individual targets of flags in PostgreSQL, up to a million: edits are recorded as deltas, by subject id."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.commands import TargetEdit, TargetEditResult
from gatekeeper_grpc.domain.flag import Flag, Target
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, Read, ResourceType, Written
from gatekeeper_grpc.domain.set_hash import target_element
from gatekeeper_grpc.store.access_trace import AccessEvent, Page, recorded_page
from gatekeeper_grpc.store.flags import find_flag
from gatekeeper_grpc.store.hashed_sets import TARGETS, SetChange, count_sets, read_hash, write_hash
from gatekeeper_grpc.store.mutations import Effect, Head, MutationRunner, unchanged
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision
from gatekeeper_grpc.store.postgres.retries import retry_lost_read
from gatekeeper_grpc.store.subjects import ensure_subjects, no_evidence

_CODEC = TypeAdapter(TargetEditResult)


class TargetStore:
    """The individually targeted users of flags."""

    def __init__(self, database: Database, mutations: MutationRunner) -> None:
        self._database = database
        self._mutations = mutations

    def edit(self, edit: TargetEdit, intent: Intent) -> Written[TargetEditResult]:
        """Target users or stop targeting them, all or none.

        Raises:
            NotFound: There is no such flag.
            Changed: The flag has another etag.
            GatekeeperError: See `MutationRunner.mutate`.
        """

        def act(conn: Connection, head: Head) -> Effect[TargetEditResult]:
            hash_before = read_hash(conn, TARGETS, edit.flag_key)
            flag = find_flag(conn, edit.flag_key, etag=edit.etag)
            evidence_hash = no_evidence if edit.variant is None else ensure_subjects(conn, head, edit.user_ids)
            count_sets(conn)
            before = hash_before()
            done = _remove(conn, flag, edit) if edit.variant is None else _add(conn, flag, edit, edit.variant)
            if not done.lost and not done.gained:
                return unchanged(TargetEditResult())
            change = write_hash(conn, TARGETS, flag.flag_id, before, added=done.gained, removed=done.lost)
            return _effect(edit, done.subjects, change, evidence_hash=evidence_hash())

        return self._mutations.mutate(intent, act, codec=_CODEC)

    @retry_lost_read
    def list(self, flag_key: str, paged: Callable[[Iterable[Target]], Page], *, after: str, limit: int) -> Read[Page]:
        """Read a flag's targets in user-id order, after `after`, and return what `paged` makes of them.

        Raises:
            NotFound: There is no such flag.
        """
        with self._database.read_and_record() as conn, conn.cursor(row_factory=class_row(Target)) as cursor:
            flag = find_flag(conn, flag_key)
            wanted = {"flag_id": flag.flag_id, "after": after, "limit": limit}
            targets = cursor.execute(LIST_TARGETS, wanted).fetchall()
            page = recorded_page(
                conn, AccessEvent.TARGETS_LISTED, targets, paged, subjects=lambda target: [target.subject_id]
            )
            return Read(result=page, revision=current_revision(conn))


LIST_TARGETS = """
    SELECT subject_id, s.user_id, t.variant FROM targeted_users t JOIN subjects s USING (subject_id)
    WHERE t.flag_id = %(flag_id)s AND s.user_id > %(after)s
    ORDER BY s.user_id LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """What an edit changed: subjects by the kind of change, and the elements that the set lost and gained."""

    subjects: dict[str, list[UUID]]
    lost: list[bytes]
    gained: list[bytes]


def _effect(
    edit: TargetEdit, done: dict[str, list[UUID]], change: SetChange, *, evidence_hash: bytes | None
) -> Effect[TargetEditResult]:
    result = TargetEditResult(**{f"{what}_count": len(subjects) for what, subjects in done.items()})
    changed = {what: [str(subject) for subject in subjects] for what, subjects in done.items()}
    entry = Change(
        resource=ResourceType.TARGETS,
        key=edit.flag_key,
        change=ChangeType.UPDATED,
        document={"variant": edit.variant, **changed, "set": change.document()},
        subjects=tuple(subject for subjects in done.values() for subject in subjects),
        evidence_hash=evidence_hash,
    )
    return Effect(result=result, preview=result, change=entry)


_FIND = """
    SELECT s.subject_id, t.variant
    FROM subjects s LEFT JOIN targeted_users t ON t.flag_id = %(flag_id)s AND t.subject_id = s.subject_id
    WHERE s.user_id = ANY(%(user_ids)s)
    ORDER BY s.subject_id
"""

_SET = """
    INSERT INTO targeted_users (flag_id, subject_id, variant)
    SELECT %(flag_id)s, unnest(%(subjects)s::uuid[]), %(variant)s
    ON CONFLICT ON CONSTRAINT idx_targeted_users_lookup DO UPDATE SET variant = excluded.variant
"""


def _add(conn: Connection, flag: Flag, edit: TargetEdit, variant: str) -> _Done:
    before = conn.execute(_FIND, {"flag_id": flag.flag_id, "user_ids": list(edit.user_ids)}).fetchall()
    added = [subject for subject, old in before if old is None]
    moved = {subject: old for subject, old in before if old not in (None, variant)}
    conn.execute(_SET, {"flag_id": flag.flag_id, "subjects": [*added, *moved], "variant": variant})
    return _Done(
        subjects={"added": added, "moved": list(moved)},
        lost=[target_element(subject, old) for subject, old in moved.items()],
        gained=[target_element(subject, variant) for subject in (*added, *moved)],
    )


_REMOVE = """
    DELETE FROM targeted_users t USING subjects s
    WHERE t.flag_id = %(flag_id)s AND t.subject_id = s.subject_id AND s.user_id = ANY(%(user_ids)s)
    RETURNING t.subject_id, t.variant
"""


def _remove(conn: Connection, flag: Flag, edit: TargetEdit) -> _Done:
    removed = conn.execute(_REMOVE, {"flag_id": flag.flag_id, "user_ids": list(edit.user_ids)}).fetchall()
    return _Done(
        subjects={"removed": sorted(subject for subject, _ in removed)},
        lost=[target_element(subject, variant) for subject, variant in removed],
        gained=[],
    )
