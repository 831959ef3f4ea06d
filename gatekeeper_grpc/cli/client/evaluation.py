"""Calls of EvaluationService, and the client key that a server may require of them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gatekeeper_grpc.cli.client.access import given_token
from gatekeeper_grpc.cli.client.server import Server

if TYPE_CHECKING:
    from gatekeeper_client.signing import ClientKey
    from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

Function = TypeVar("Function", bound=Callable[..., Any])

_BEARER = "gkc_"
_LOG_IN = "check the client key in --key-file or GATEKEEPER_TOKEN; `gatekeeper client-keys list` shows all"


def key_file_option(function: Function) -> Function:
    """Give a command the option --key-file; the command gets `key_file`."""
    return click.option(
        "--key-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="A client key: the secret of a bearer key, or what `client-keys create -o json` printed.",
    )(function)


@contextmanager
def evaluation(server: Server, key_file: Path | None) -> "Iterator[EvaluationServiceStub]":
    """Open EvaluationService for the length of a block, with the client key of the file, else of GATEKEEPER_TOKEN.

    Raises:
        click.UsageError: The file has no client key.
        Failure: A call in the block has failed.
    """
    from gatekeeper_client.signing import SignedChannel  # noqa: PLC0415
    from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub  # noqa: PLC0415

    key = _bearer_key(given_token()) if key_file is None else _key_of(key_file)
    # gRPC calls the server at a Unix socket localhost.
    authority = "localhost" if server.target.startswith("unix:") else server.target.lower()
    with server.channel(log_in=_LOG_IN) as channel:
        yield EvaluationServiceStub(channel if key is None else SignedChannel(channel, key, authority=authority))


def _bearer_key(secret: str) -> "ClientKey | None":
    """Return the key of a secret; None for an access token, which evaluations do not send."""
    from gatekeeper_client.signing import ClientKey  # noqa: PLC0415

    return ClientKey("cb_", secret) if secret.startswith(_BEARER) else None


def _key_of(file: Path) -> "ClientKey":
    from gatekeeper_client.signing import ClientKey  # noqa: PLC0415

    try:
        content = file.read_text(encoding="utf-8").strip()
        if key := _bearer_key(content):
            return key
        made = json.loads(content)
        if key := _bearer_key(made["secret"]):
            return key
        return ClientKey(made["client_key"]["key_id"], made["secret"])
    except OSError as exc:
        raise click.UsageError(f"--key-file: {str(file)!r} cannot be read: {exc.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise click.UsageError(f"--key-file: {str(file)!r} must have a client key: see --help") from None
