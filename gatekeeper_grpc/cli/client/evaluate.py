"""`gatekeeper evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gatekeeper_grpc.cli.client.evaluation import evaluation, key_file_option
from gatekeeper_grpc.cli.client.failures import NOT_FOUND, Failure
from gatekeeper_grpc.cli.client.output import NAME, Output
from gatekeeper_grpc.cli.client.resources import reads
from gatekeeper_grpc.cli.client.server import TIMEOUT_S, Server
from gatekeeper_grpc.cli.client.values import attribute_option

if TYPE_CHECKING:
    from gatekeeper_client.v1.evaluation_pb2 import EvaluationDetail
    from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsResponse


@click.command()
@click.argument("user", required=False)
@attribute_option("An attribute of the user")
@click.option("--flag", "flag_keys", multiple=True, metavar="KEY", help="Only this flag. Repeatable.  [default: all]")
@click.option("--explain", is_flag=True, help="Say why each flag has its value.")
@key_file_option
@reads
def evaluate(
    server: Server,
    out: Output,
    *,
    user: str | None,
    attributes: dict[str, Any],
    flag_keys: tuple[str, ...],
    explain: bool,
    key_file: Path | None,
) -> None:
    """Evaluate flags for USER, or for an anonymous user.

    Needs no login. A server may require a client key: name its file, or set GATEKEEPER_TOKEN to that of a bearer key.
    """
    from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext  # noqa: PLC0415
    from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest  # noqa: PLC0415

    context = EvaluationContext(user_id=user)
    context.attributes.update(attributes)
    request = EvaluateFlagsRequest(context=context, flag_keys=flag_keys, include_details=explain)
    with evaluation(server, key_file) as service:
        answer = service.EvaluateFlags(request, timeout=TIMEOUT_S)
    if out.is_document:
        out.result(answer, "", name="")
    else:
        _print(out, answer)
    if answer.unknown_flag_keys:
        unknown = ", ".join(answer.unknown_flag_keys)
        raise Failure(f"no such flag: {unknown}", NOT_FOUND, hint="`gatekeeper flags list` shows all flags")


def _print(out: Output, answer: "EvaluateFlagsResponse") -> None:
    if out.format == NAME:  # Those that are on: what a shell would ask for.
        click.echo("".join(f"{key}\n" for key in sorted(answer.flags) if answer.flags[key]), nl=False)
        return
    values = {key: str(answer.flags[key]).lower() for key in sorted(answer.flags)}
    if answer.details:
        rows = [
            (key, value, *_explained(answer.details[key], is_on=answer.flags[key])) for key, value in values.items()
        ]
        out.table(["FLAG", "VALUE", "REASON", "WHY"], rows)
    else:
        out.table(["FLAG", "VALUE"], list(values.items()))
    stale = ", which may not be the newest" if answer.stale else ""
    click.echo(f"at revision {answer.revision}{stale}")


def _explained(detail: "EvaluationDetail", *, is_on: bool) -> tuple[str, str]:
    from gatekeeper_client.v1.evaluation_pb2 import Reason  # noqa: PLC0415

    reason = Reason.Name(detail.reason).removeprefix("REASON_")
    target = f"the user is in the segment {detail.segment_key}" if detail.segment_key else "the user is a target"
    why = {
        "STATIC": "it is the same for all users",
        "DEFAULT": "no rule applies to the user, so it is the default",
        "TARGETING_MATCH": target,
        "SPLIT": f"bucket {detail.bucket} of 100 is {'below' if is_on else 'not below'} the rollout",
        "DISABLED": "the flag is disabled, so it is the default",
    }
    return reason, why.get(reason, "")
