"""Migration files: finds them and refuses a folder that is not a clean sequence.

A migration is a pair `NNNN_name.up.sql` and `NNNN_name.down.sql`, numbered from 0001 without gaps. It runs in one
transaction with its row in `schema_migrations`, so a file never says BEGIN or COMMIT.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from gatekeeper_grpc.domain.errors import FailedPrecondition

_CHECKOUT = Path(__file__).parents[3]
_INSTALLED = Path(__file__).parents[2] / "_migrations"

_FILE_NAME = re.compile(r"(?P<label>[0-9]{4}_[a-z0-9_]+)\.(up|down)\.sql")
# With the semicolon, so that the BEGIN and END of a PL/pgSQL body pass.
_TRANSACTION_CONTROL = re.compile(
    r"^\s*(BEGIN|COMMIT|ROLLBACK|START)(\s+(WORK|TRANSACTION))?\s*;", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """The number and name of a migration."""

    version: int
    name: str

    @property
    def label(self) -> str:
        """The common part of its file names, such as `0001_initial`."""
        return f"{self.version:04d}_{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration(Numbered):
    """One step of the schema, up and down.

    `checksum` is what `sha256sum` prints for the up file, and the same for a checkout with CRLF line ends. The down
    file has no checksum, because a corrected down file changes no database.
    """

    up_sql: str
    down_sql: str
    checksum: str


def default_folder() -> Path:
    """Return the checkout's `migrations/`, or the copy inside an installed wheel.

    The checkout wins because an editable install also holds a copy, as old as the installation. The checkout must have
    a pyproject.toml: `site-packages/migrations` may belong to another package.
    """
    folder = _CHECKOUT / "migrations"
    return folder if (_CHECKOUT / "pyproject.toml").is_file() and folder.is_dir() else _INSTALLED


def load_migrations(folder: Path) -> tuple[Migration, ...]:
    """Read all migrations of a folder, lowest first; the one at index `i` has version `i + 1`.

    Files that do not end in `.sql` are ignored.

    Raises:
        FailedPrecondition: There are none, or a file is misnamed, missing, doubled, not UTF-8, or ends its transaction.
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
    up_sql, down_sql = _read(folder / f"{label}.up.sql"), _read(folder / f"{label}.down.sql")
    checksum = hashlib.sha256(up_sql.encode()).hexdigest()
    return Migration(version=_version(label), name=label[5:], up_sql=up_sql, down_sql=down_sql, checksum=checksum)


def _read(path: Path) -> str:
    try:
        sql = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FailedPrecondition(f"{path} is missing: a migration is an up file and a down file") from None
    except UnicodeDecodeError as exc:
        raise FailedPrecondition(f"{path} is not UTF-8") from exc
    if _TRANSACTION_CONTROL.search(sql):
        # It would commit the migration's row; a later failure would leave the migration half applied.
        raise FailedPrecondition(f"{path} begins or ends a transaction: leave that to the migration runner")
    return sql
