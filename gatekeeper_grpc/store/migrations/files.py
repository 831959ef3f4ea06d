"""Migration files: finds them, refuses a folder that is not a clean sequence, and reads what each file declares.

A migration is a pair `NNNN_name.up.sql` and `NNNN_name.down.sql`, numbered from 0001 without gaps. It runs in one
transaction with its row in `schema_migrations`, so a file never says BEGIN or COMMIT. Statements that PostgreSQL refuses
in a transaction go in a pair whose first lines both say `-- gatekeeper: no-transaction`: one idempotent statement per
file, which is run again after an interruption.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from gatekeeper_grpc.domain.errors import FailedPrecondition

NO_TRANSACTION = "-- gatekeeper: no-transaction"

_CHECKOUT = Path(__file__).parents[3]
_INSTALLED = Path(__file__).parents[2] / "_migrations"

_FILE_NAME = re.compile(r"(?P<label>[0-9]{4}_[a-z0-9_]+)\.(up|down)\.sql")
_LINE_COMMENT = re.compile(r"--[^\n]*")
# With the semicolon, so that the BEGIN and END of a PL/pgSQL body pass.
_TRANSACTION_CONTROL = re.compile(
    r"^\s*(BEGIN|COMMIT|ROLLBACK|START)(\s+(WORK|TRANSACTION))?\s*;", re.IGNORECASE | re.MULTILINE
)
_CONCURRENT_BUILD = re.compile(r"\bCREATE\s+(UNIQUE\s+)?INDEX\s+CONCURRENTLY\b", re.IGNORECASE)
_REPEATABLE_BUILD = re.compile(
    _CONCURRENT_BUILD.pattern + r"\s+IF\s+NOT\s+EXISTS\s+(?P<name>[a-z_]\w*)\s+ON\s+(ONLY\s+)?(?P<table>[a-z_][\w.]*)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """What identifies a migration to people: its number and name."""

    version: int
    name: str

    @property
    def label(self) -> str:
        """The common part of its file names, such as `0001_initial`."""
        return f"{self.version:04d}_{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrentIndex:
    """An index that a no-transaction file builds, named as in the catalog; `table` may carry its schema."""

    name: str
    table: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration(Numbered):
    """One step of the schema and its way back.

    `checksum` is what `sha256sum` prints for the up file, and the same for a checkout with CRLF line ends. The down
    file has
    none: mending a way back changes no database.
    """

    up_sql: str
    down_sql: str
    checksum: str
    transactional: bool
    concurrent_index: ConcurrentIndex | None


def default_folder() -> Path:
    """Return the checkout's `migrations/`, or the copy inside an installed wheel.

    The checkout wins because an editable install holds a copy too, made on the day it was installed. Its pyproject.toml
    must be
    there: `site-packages/migrations` may belong to anybody.
    """
    folder = _CHECKOUT / "migrations"
    return folder if (_CHECKOUT / "pyproject.toml").is_file() and folder.is_dir() else _INSTALLED


def load_migrations(folder: Path) -> tuple[Migration, ...]:
    """Read all migrations of a folder, lowest first; the one at index `i` has version `i + 1`.

    Files that do not end in `.sql` are left alone.

    Raises:
        FailedPrecondition: There are none, or a file is misnamed, missing, doubled, or declares what cannot work.
    """
    labels = sorted({_label(path) for path in folder.glob("*.sql")})
    if not labels:
        raise FailedPrecondition(f"no migrations in {folder}")
    _require_sequence(labels)
    return tuple(_load(folder, label) for label in labels)


def _label(path: Path) -> str:
    parsed = _FILE_NAME.fullmatch(path.name)
    if parsed is None:
        raise FailedPrecondition(f"{path} is not named like 0001_some_words.up.sql or 0001_some_words.down.sql")
    return parsed["label"]


def _version(label: str) -> int:
    return int(label[:4])


def _require_sequence(labels: Sequence[str]) -> None:
    for left, right in pairwise(labels):
        if _version(left) == _version(right):
            raise FailedPrecondition(f"migrations {left} and {right} have the same number: give the later one the next")
    for expected, label in enumerate(labels, start=1):
        if _version(label) != expected:
            raise FailedPrecondition(f"migration {expected:04d} is missing: found {label} in its place")


def _load(folder: Path, label: str) -> Migration:
    up_path, down_path = folder / f"{label}.up.sql", folder / f"{label}.down.sql"
    up_sql, down_sql = _read(up_path), _read(down_path)
    transactional = _is_transactional(up_sql)
    # An interrupted way back leaves the state unknown; then both directions must be fit to run again.
    if transactional != _is_transactional(down_sql):
        raise FailedPrecondition(f"{label}: both of its files or neither start with `{NO_TRANSACTION}`")
    return Migration(
        version=_version(label),
        name=label[5:],
        up_sql=up_sql,
        down_sql=down_sql,
        checksum=hashlib.sha256(up_sql.encode()).hexdigest(),
        transactional=transactional,
        concurrent_index=None if transactional else _concurrent_index(up_path, up_sql),
    )


def _read(path: Path) -> str:
    try:
        sql = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FailedPrecondition(f"{path} is missing: a migration is an up file and a down file") from None
    except UnicodeDecodeError as exc:
        raise FailedPrecondition(f"{path} is not UTF-8") from exc
    if _TRANSACTION_CONTROL.search(sql):
        # It would end the transaction that its row is in, and a failure after it would be half applied.
        raise FailedPrecondition(f"{path} begins or ends a transaction: leave that to the migration runner")
    return sql


def _is_transactional(sql: str) -> bool:
    return sql.partition("\n")[0].rstrip() != NO_TRANSACTION


def _concurrent_index(path: Path, sql: str) -> ConcurrentIndex | None:
    statement = _LINE_COMMENT.sub("", sql)
    if _CONCURRENT_BUILD.search(statement) is None:
        return None
    build = _REPEATABLE_BUILD.search(statement)
    if build is None:
        # The runner must know the index by name, to drop the invalid one that an interrupted build leaves.
        form = "CREATE [UNIQUE] INDEX CONCURRENTLY IF NOT EXISTS name ON table, names unquoted"
        raise FailedPrecondition(f"{path} cannot be run again after an interruption: write {form}")
    return ConcurrentIndex(name=build["name"].lower(), table=build["table"].lower())
