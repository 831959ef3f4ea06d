"""Times each statement under a name: what it does first, and to which table, such as "update_admin_user".

The same time is a span in the trace of a call that is traced: never the text of the statement, nor its parameters.
"""

import re
import time
from functools import lru_cache
from typing import Any, Final, Self

from psycopg import Cursor, Error, pq

from gatekeeper_grpc.instrumentation.counters import STATEMENT_DURATION
from gatekeeper_grpc.instrumentation.spans import Note, Value, current_note

PIPELINE_DURATION: Final = STATEMENT_DURATION.labels("pipeline")
"""Of all statements of a pipeline: none of them is waited for alone."""

# What changes something, if anything does: a statement may begin with what it reads.
_VERB: Final = re.compile(r"\b(INSERT|(?<!FOR )(?<!KEY )(?<!DO )UPDATE|DELETE|LOCK|CALL|COMMIT)\b")
_READS: Final = "SELECT"
_TABLE: Final = re.compile(r"\b(?:FROM|INTO|UPDATE|TABLE)\s+(?:ONLY\s+)?(?:pg_catalog\.)?([a-z][a-z_]*)\b(?!\()")
# Statements are constants of the code, some hundred.
_REMEMBERED: Final = 512


class TimedCursor(Cursor[Any]):
    """A cursor that times what it executes, except in a pipeline, which returns before the answer."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """Execute a statement; the arguments are those of the base class."""
        note = note_statement(query)
        if self.connection.pgconn.pipeline_status != pq.PipelineStatus.OFF:
            return super().execute(query, params, **options)
        began_at = time.monotonic()
        try:
            return super().execute(query, params, **options)
        except Error as exc:
            if note is not None and exc.sqlstate:
                note.error = note.attributes["db.response.status_code"] = exc.sqlstate
            raise
        finally:
            ended_at = time.monotonic()
            STATEMENT_DURATION.labels(name_of(query)).observe(ended_at - began_at)
            if note is not None:
                note.began_at, note.ended_at = began_at, ended_at

    def fetchone(self) -> Any:
        """Return the next row; in a pipeline, this waits for the answers to all statements before."""
        row = super().fetchone()
        note_answers()
        return row

    def fetchall(self) -> list[Any]:
        """Return all rows; in a pipeline, as `fetchone`."""
        rows = super().fetchall()
        note_answers()
        return rows


def note_statement(query: object) -> Note | None:
    """Note a statement that is sent now, if the current call is traced."""
    within = current_note()
    if within is None:
        return None
    verb, table = _verb_and_table(query) if isinstance(query, str) else ("", "")
    named = {"db.operation.name": verb, "db.collection.name": table}
    attributes: dict[str, Value] = {name: value for name, value in named.items() if value}
    note = Note(name=f"{verb} {table}".strip() or "postgresql", is_client=True, attributes=attributes)
    within.add(note)
    return note


def note_answers() -> None:
    """Note that the statements that were sent are answered."""
    if (within := current_note()) is not None:
        within.end_notes()


def name_of(query: object) -> str:
    """Return the name of a statement: "other" for one that is composed, or that does nothing to a table."""
    verb, table = _verb_and_table(query) if isinstance(query, str) else ("", "")
    return f"{verb.lower()}_{table}" if verb and table else "other"


@lru_cache(maxsize=_REMEMBERED)
def _verb_and_table(query: str) -> tuple[str, str]:
    verb, table = _VERB.search(query), _TABLE.search(query)
    return verb[1] if verb else _READS * (_READS in query), table[1] if table else ""
