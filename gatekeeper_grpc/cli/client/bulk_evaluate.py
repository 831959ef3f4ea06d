"""`gatekeeper bulk-evaluate`."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gatekeeper_grpc.cli.client.access import STREAM_TIMEOUT_S
from gatekeeper_grpc.cli.client.bulk_rows import CSV, Progress, form_of, header_of, writer
from gatekeeper_grpc.cli.client.bulk_users import BulkUsers, users_of
from gatekeeper_grpc.cli.client.evaluation import evaluation, key_file_option
from gatekeeper_grpc.cli.client.failures import NOT_FOUND, PRECONDITION, Failure
from gatekeeper_grpc.cli.client.server import Server, server_option

_KEEP_S = 1.0
_AGAIN = "remove the results to begin again"
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("bulk-evaluate")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--to", "results", type=_FILE, required=True, help="The file of the results: .csv, or JSON Lines.")
@click.option("--flag", "flag_keys", multiple=True, metavar="KEY", help="Only this flag. Repeatable.  [default: all]")
@click.option("--accept-revision-change", is_flag=True, help="Go on although the flags have changed since.")
@key_file_option
@server_option
def bulk_evaluate(
    server: Server,
    *,
    file: Path,
    results: Path,
    flag_keys: tuple[str, ...],
    accept_revision_change: bool,
    key_file: Path | None,
) -> None:
    """Evaluate flags for all users of FILE, at one revision: .csv, or JSON Lines.

    A line of JSON has user_id and attributes. CSV has a header, with user_id and a column for each attribute.
    If it is interrupted, the same command goes on where it ended, if the revision is still the same.
    """
    begun = Progress(revision=0, users=0, size=0, request=[str(file.resolve()), *flag_keys])
    run = _Run(results, begun, accept_revision_change=accept_revision_change)
    with users_of(file, skipped=run.progress.users) as users, run.kept():
        with evaluation(server, key_file) as service:
            requests = _requests(users, flag_keys, run.progress.revision)
            for answer in service.BulkEvaluateFlags(requests, timeout=STREAM_TIMEOUT_S):
                run.take(answer)
                users.show(run.progress.users)
        users.hide()
        if users.fault:
            raise users.fault
    run.conclude()


def _requests(users: BulkUsers, flag_keys: Sequence[str], min_revision: int) -> Iterator[Any]:
    """Yield the messages of a stream; the first one says what all are about."""
    from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest  # noqa: PLC0415

    yield BulkEvaluateFlagsRequest(flag_keys=flag_keys, min_revision=min_revision)
    for contexts in users.messages():
        yield BulkEvaluateFlagsRequest(contexts=contexts)


class _Run:
    """A run, begun or gone on with: its results, and how far it has come."""

    def __init__(self, results: Path, begun: Progress, *, accept_revision_change: bool) -> None:
        kept = Progress.read(results) if results.exists() else None
        if results.exists() and (kept is None or results.stat().st_size < kept.size):
            raise click.UsageError(f"{results} exists, and is not of an interrupted run: remove it")
        if kept and list(kept.request) != list(begun.request):
            raise click.UsageError(f"{results} is of a run with another file or other flags: remove it to begin again")
        self.progress = kept or begun
        self._is_resumed = kept is not None
        self._results = results
        self._accepts_change = accept_revision_change
        self._flag_keys: list[str] = []
        self._write: Any = None
        self._errors = 0
        self._kept_at = time.monotonic()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Open the results for the length of a block; when it fails, keep how far they have come."""
        self.progress.keep(self._results)  # Before there are results: the process may be killed at any time.
        with self._results.open("a+", encoding="utf-8", newline="") as self._file:
            self._file.truncate(self.progress.size)
            try:
                yield
            except BaseException:
                self._leave()
                raise

    def take(self, answer: Any) -> None:
        """Take a header or a batch of results."""
        if answer.HasField("header"):
            self._begin(answer.header)
        elif answer.batch.results:
            self._add(answer.batch.results)

    def conclude(self) -> None:
        """Say what was done; raise a failure if some users have no values."""
        Progress.file_of(self._results).unlink(missing_ok=True)
        click.echo(f"evaluated {self.progress.users} users at revision {self.progress.revision} to {self._results}")
        if self._errors:
            raise Failure(f"{self._errors} users could not be evaluated", 1, hint=f"{self._results} says why")

    def _begin(self, header: Any) -> None:
        if header.unknown_flag_keys:
            raise Failure(f"no such flag: {', '.join(header.unknown_flag_keys)}", NOT_FOUND)
        known = self.progress.revision
        if self._is_resumed and known and header.revision != known and not self._accepts_change:
            raise Failure(
                f"the results are of revision {known}, and the flags are at {header.revision} now",
                PRECONDITION,
                hint=f"{_AGAIN}, or add --accept-revision-change",
            )
        self._flag_keys.extend(header.flag_keys)
        self.progress = replace(self.progress, revision=header.revision)

    def _add(self, results: Sequence[Any]) -> None:
        if self._write is None:
            self._write = self._writer()
        self._write(results)
        self._file.flush()
        self._errors += sum(result.HasField("error") for result in results)
        size = os.fstat(self._file.fileno()).st_size
        self.progress = replace(self.progress, users=self.progress.users + len(results), size=size)
        if time.monotonic() - self._kept_at > _KEEP_S:
            self._kept_at = time.monotonic()
            self.progress.keep(self._results)

    def _writer(self) -> Callable[[Iterable[Any]], None]:
        form, is_resumed = form_of(self._results), bool(self.progress.size)
        if form == CSV and is_resumed:
            self._file.seek(0)
            if self._file.readline() != header_of(self._flag_keys):
                raise Failure("the flags are others now: their columns differ", PRECONDITION, hint=_AGAIN)
        return writer(self._file, form, self._flag_keys, with_header=not is_resumed)

    def _leave(self) -> None:
        """Keep how far the run has come; of one that has no results, keep nothing."""
        if self.progress.users:
            self.progress.keep(self._results)
            click.echo(f"{self.progress.users} users have results: the same command goes on", err=True)
        else:
            for file in (self._results, Progress.file_of(self._results)):
                file.unlink(missing_ok=True)
