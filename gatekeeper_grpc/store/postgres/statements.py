"""Times each statement under a name: what it does first, and to which table, such as "update_admin_user"."""

import re
import time
from functools import lru_cache
from typing import Any, Final, Self

from psycopg import Cursor, pq

from gatekeeper_grpc.instrumentation import STATEMENT_DURATION

PIPELINE_DURATION: Final = STATEMENT_DURATION.labels("pipeline")
"""Of all statements of a pipeline: none of them is waited for alone."""

_VERB: Final = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|LOCK|CALL)\b")
_TABLE: Final = re.compile(r"\b(?:FROM|INTO|UPDATE|TABLE)\s+(?:ONLY\s+)?(?:pg_catalog\.)?([a-z][a-z_]*)")
# Statements are constants of the code, some hundred.
_REMEMBERED: Final = 512


class TimedCursor(Cursor[Any]):
    """A cursor that times what it executes, except in a pipeline, which returns before the answer."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """Execute a statement; the arguments are those of the base class."""
        if self.connection.pgconn.pipeline_status != pq.PipelineStatus.OFF:
            return super().execute(query, params, **options)
        began_at = time.monotonic()
        try:
            return super().execute(query, params, **options)
        finally:
            STATEMENT_DURATION.labels(name_of(query)).observe(time.monotonic() - began_at)


def name_of(query: object) -> str:
    """Return the name of a statement: "other" for one that is composed, or that does nothing to a table."""
    return _name_of(query) if isinstance(query, str) else "other"


@lru_cache(maxsize=_REMEMBERED)
def _name_of(query: str) -> str:
    verb, table = _VERB.search(query), _TABLE.search(query)
    return f"{verb[1].lower()}_{table[1]}" if verb and table else "other"
