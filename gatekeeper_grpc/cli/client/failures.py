"""Failed calls as one plain line, what to do next, and an exit code."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from gatekeeper_grpc.cli.client.connections import WRONG_NAME
from gatekeeper_grpc.cli.client.output import one_line

if TYPE_CHECKING:
    import grpc

USAGE, NOT_FOUND, CREDENTIALS, PRECONDITION = 2, 3, 5, 7
# By the name of the status. Any other status is 1.
EXIT_CODES: Mapping[str, int] = MappingProxyType(
    {
        "INVALID_ARGUMENT": USAGE,
        "NOT_FOUND": NOT_FOUND,
        "ALREADY_EXISTS": 4,
        "ABORTED": 4,
        "UNAUTHENTICATED": CREDENTIALS,
        "PERMISSION_DENIED": CREDENTIALS,
        "UNAVAILABLE": 6,
        "DEADLINE_EXCEEDED": 6,
        "RESOURCE_EXHAUSTED": 6,
        "FAILED_PRECONDITION": PRECONDITION,
    }
)
LOG_IN = "run `gatekeeper login`"
# By the reason of the ErrorInfo, or the name of the status.
_NEXT: Mapping[str, str] = MappingProxyType(
    {
        "FLAG_NOT_FOUND": "`gatekeeper flags list` shows all flags",
        "SEGMENT_NOT_FOUND": "`gatekeeper segments list` shows all segments",
        "USER_NOT_FOUND": "`gatekeeper users list --limit 20` shows known users",
        "ADMIN_USER_NOT_FOUND": "`gatekeeper admins list` shows all admin users",
        "CLIENT_KEY_NOT_FOUND": "`gatekeeper client-keys list` shows all client keys",
        "API_TOKEN_NOT_FOUND": "`gatekeeper tokens list` shows the tokens that you may revoke",
        "SESSION_NOT_FOUND": "`gatekeeper sessions list` shows the sessions that you may end",
        "ALREADY_EXISTS": "use another name, or change what exists with update",
        "ETAG_MISMATCH": "read it again, and repeat the change with --if-match and its present etag",
        "SEGMENT_IN_USE": "take it from these flags first: see `gatekeeper flags update --help`",
        "PERMISSION_DENIED": "`gatekeeper whoami` shows your role, which an admin can change",
        "API_TOKEN_NOT_ALLOWED": "do it without an API token: run `gatekeeper login`",
        "PASSWORD_CHANGE_REQUIRED": "run `gatekeeper change-password --username NAME`",
        "CONFIGURATION_TOO_LARGE": "apply it in several files, and add long lists by `flags targets import`",
        "OUTCOME_UNKNOWN": "read what was to change: the change may have been made",
        "UNAVAILABLE": "try again later",
        "DEADLINE_EXCEEDED": "try again later",
        "UNIMPLEMENTED": "check the address, or use the command line of the server's release: `gatekeeper --version`",
    }
)


class Failure(Exception):
    """Ends a client command: one line on standard error, what to do next, and an exit code.

    Args:
        message: What is wrong.
        exit_code: As EXIT_CODES has it.
        hint: What to do next; empty: nothing is known to help.
        details: Further lines, for --verbose.
        field: What it is about, as the path of a field of the request; empty: unknown.
        retry_s: When the same call may succeed; 0: unknown.
    """

    def __init__(
        self,
        message: str,
        exit_code: int,
        *,
        hint: str = "",
        details: Sequence[str] = (),
        field: str = "",
        retry_s: float = 0.0,
    ) -> None:
        super().__init__(one_line(message))
        self.exit_code = exit_code
        self.field = field
        self.retry_s = retry_s
        self.hint = hint
        self._details = details

    def saying(self, message: str) -> "Failure":
        """Return the same failure with another message."""
        return Failure(message, self.exit_code, hint=self.hint, details=self._details)

    def lines(self) -> Iterator[str]:
        """Yield what to print."""
        yield f"gatekeeper: {self}"
        if self.hint:
            yield f"next: {self.hint}"
        yield from map(one_line, self._details)


def not_logged_in(why: str) -> Failure:
    """Make the failure of a command that needs a login."""
    return Failure(why, CREDENTIALS, hint=LOG_IN)


def usage_of(error: click.UsageError) -> Failure:
    """Say what is wrong with a command line."""
    return Failure(error.format_message(), USAGE, hint=_help_of(error.ctx))


def failure_of(
    error: "grpc.RpcError",
    server: str,
    *,
    why_unreachable: Callable[[str], tuple[str, str]],
    timeout_s: float,
    log_in: str = LOG_IN,
    verbose: bool = False,
) -> Failure:
    """Say what a status means: in the server's words if it sent an ErrorInfo, in ours if gRPC made the status.

    Args:
        error: The failed call.
        server: What the server is called.
        why_unreachable: Says what is wrong with the connection, and what to do next, of the words of gRPC.
        timeout_s: How long the call waited at most.
        log_in: What to do if the credentials are refused.
        verbose: Whether to add the status, the ErrorInfo and the id of the call.
    """
    code, said = error.code().name, str(error.details())
    known = _Known.of(error)
    hint = log_in if code == "UNAUTHENTICATED" else _NEXT.get(known.reason) or _NEXT.get(code, "")
    if known.reason:
        message = f"{said} ({known.reason})"
    elif code == "UNAVAILABLE" or WRONG_NAME in said:
        message, hint = why_unreachable(said)
    elif code == "DEADLINE_EXCEEDED":
        message = f"{server} did not answer within {timeout_s:g} s"
    elif code == "UNIMPLEMENTED":
        message = f"{server} has no such method: it is no Gatekeeper server, or one of another release"
    else:
        message = f"{said} ({code})"
    if EXIT_CODES.get(code) == USAGE:
        hint = hint or _help_of(click.get_current_context(silent=True))
    if known.retry_s:
        hint = f"try again in {known.retry_s:g} s"
    details = list(known.lines(code, said)) if verbose else ()
    field = known.metadata.get("field", "")
    return Failure(message, EXIT_CODES.get(code, 1), hint=hint, details=details, field=field, retry_s=known.retry_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What an error carries for programs."""

    reason: str
    metadata: Mapping[str, str]
    retry_s: float
    call_id: str

    @classmethod
    def of(cls, call: Any) -> "_Known":  # grpcio raises an error that is the call, too.
        from google.rpc import error_details_pb2 as kinds  # type: ignore[import-untyped] # noqa: PLC0415

        info, retry = kinds.ErrorInfo(), kinds.RetryInfo()
        for detail in _details_of(call):
            detail.Unpack(info)
            detail.Unpack(retry)
        trailers = dict(call.trailing_metadata() or ())
        return cls(
            reason=info.reason,
            metadata=dict(info.metadata),
            retry_s=retry.retry_delay.ToMilliseconds() / 1e3,
            call_id=str(trailers.get("x-gatekeeper-call-id", "")),
        )

    def lines(self, code: str, said: str) -> Iterator[str]:
        yield f"status: {code}"
        if not self.reason:
            yield f"gRPC: {said}"
        known = {"reason": self.reason, **dict(sorted(self.metadata.items())), "call id": self.call_id}
        yield from (f"{name}: {value}" for name, value in known.items() if value)


def _help_of(context: click.Context | None) -> str:
    """Return what explains a command. It is called `gatekeeper`, however it was started."""
    names: list[str] = []
    while context and context.parent:
        names.insert(0, str(context.info_name))
        context = context.parent
    return f"`{' '.join(['gatekeeper', *names, '--help'])}` explains it"


def _details_of(call: Any) -> Sequence[Any]:
    from grpc_status import rpc_status  # noqa: PLC0415

    try:
        status = rpc_status.from_call(call)
    except ValueError:  # The details do not match the status: a proxy made one of them.
        status = None
    return status.details if status else ()
