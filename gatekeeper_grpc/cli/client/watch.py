"""`gatekeeper watch`."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gatekeeper_grpc.cli.client.evaluation import evaluation, key_file_option
from gatekeeper_grpc.cli.client.output import NAME, Output, choice_of, one_line
from gatekeeper_grpc.cli.client.resources import reads
from gatekeeper_grpc.cli.client.server import Server

if TYPE_CHECKING:
    from gatekeeper_client.v1.evaluation_service_pb2 import WatchFlagsResponse
    from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

# The server sends something at least every 20 s.
_SILENT_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
# What another stream may not end with: an instance that leaves, is full, or is silent.
_PASSING = ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNKNOWN", "INTERNAL")


@click.command()
@click.option("--flag", "flag_keys", multiple=True, metavar="KEY", help="Only this flag. Repeatable.  [default: all]")
@click.option("--from-revision", type=click.IntRange(min=0), default=0, help="All since then.  [default: from now on]")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many messages.  [default: go on]")
@key_file_option
@reads
def watch(
    server: Server,
    out: Output,
    *,
    flag_keys: tuple[str, ...],
    from_revision: int,
    limit: int | None,
    key_file: Path | None,
) -> None:
    """Print which flags change, as they change, until Ctrl-C. Needs no login.

    A flag counts as changed if its answers may have: by itself, its targets, or its segments. When the connection
    breaks, another one goes on from the last revision. "*" is any flag: what changed is not known.
    """
    printed = 0
    with evaluation(server, key_file) as service:
        for message in _messages(service, flag_keys, from_revision):
            if message.changes or message.reset:
                _print(out, message)
                printed += 1
            if printed == limit:
                return


def _messages(
    service: "EvaluationServiceStub", flag_keys: tuple[str, ...], revision: int
) -> "Iterator[WatchFlagsResponse]":
    """Yield the messages of one stream after the other, each from where the one before ended."""
    import grpc  # noqa: PLC0415

    pause_s, has_begun = _FIRST_PAUSE_S, False
    while True:
        try:
            for message in _stream(service, flag_keys, revision):
                if not has_begun:
                    click.echo(f"watching from revision {message.revision}", err=True)
                revision, pause_s, has_begun = message.revision, _FIRST_PAUSE_S, True
                yield message
        except grpc.RpcError as exc:
            if not has_begun or exc.code().name not in _PASSING:
                raise
            click.echo(f"the watch broke at revision {revision}: opening another", err=True)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _stream(
    service: "EvaluationServiceStub", flag_keys: tuple[str, ...], revision: int
) -> "Iterator[WatchFlagsResponse]":
    """Yield the messages of a stream; end it when it is silent for longer than the server ever is."""
    from gatekeeper_client.v1.evaluation_service_pb2 import WatchFlagsRequest  # noqa: PLC0415

    call: Any = service.WatchFlags(WatchFlagsRequest(from_revision=revision, flag_keys=flag_keys))
    try:
        while True:
            silence = threading.Timer(_SILENT_S, call.cancel)
            silence.daemon = True
            silence.start()
            try:
                message = next(call)
            finally:
                silence.cancel()
            yield message
    finally:
        call.cancel()


def _print(out: Output, message: "WatchFlagsResponse") -> None:
    if out.is_document:
        out.event(message, "", name="")
        return
    changed = [(change.flag_key, choice_of("type")(change)) for change in message.changes]
    for key, how in sorted(changed) or [("*", "reset")]:
        click.echo(one_line(key if out.format == NAME else f"{message.revision}  {key}  {how}"))
