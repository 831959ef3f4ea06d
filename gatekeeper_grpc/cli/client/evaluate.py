"""`gatekeeper evaluate`."""

import json
from typing import TYPE_CHECKING, Any

import click

from gatekeeper_grpc.cli.client.access import call_options, client_key
from gatekeeper_grpc.cli.client.failures import NOT_FOUND, Failure
from gatekeeper_grpc.cli.client.output import document_of, output_option, print_json, print_table
from gatekeeper_grpc.cli.client.server import Server, server_option

if TYPE_CHECKING:
    from gatekeeper_client.v1.evaluation_pb2 import EvaluationDetail
    from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsResponse

# Numbers travel as doubles, which hold no larger integer exactly.
_LARGEST_EXACT = 2**53


def _attributes(_context: click.Context, _parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{pair!r} must be NAME=VALUE")
        if name in attributes:
            raise click.BadParameter(f"{name!r} is given twice")
        attributes[name] = _value(name, value)
    return attributes


def _value(name: str, text: str) -> Any:
    """Read JSON; anything else is text."""
    try:
        return json.loads(text, parse_constant=str, parse_int=_exact)
    except OverflowError:
        raise click.BadParameter(
            f"{name!r} has an integer beyond 2^53: write it as text, '{name}=\"{text}\"'"
        ) from None
    except ValueError:
        return text


def _exact(digits: str) -> int:
    if abs(value := int(digits)) > _LARGEST_EXACT:
        raise OverflowError(digits)
    return value


@click.command()
@click.argument("user", required=False)
@click.option(
    "--attr",
    "attributes",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_attributes,
    help="An attribute of the user; a value that is JSON (30, true, [1]) is that, any other is text. Repeatable.",
)
@click.option("--flag", "flag_keys", multiple=True, metavar="KEY", help="Only this flag. Repeatable.  [default: all]")
@click.option("--explain", is_flag=True, help="Say why each flag has its value.")
@server_option
@output_option
def evaluate(
    server: Server,
    *,
    user: str | None,
    attributes: dict[str, Any],
    flag_keys: tuple[str, ...],
    explain: bool,
    as_json: bool,
) -> None:
    """Evaluate flags for USER, or for an anonymous user.

    Needs no login. A server may require a client key: set it in GATEKEEPER_TOKEN.
    """
    from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext  # noqa: PLC0415
    from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest  # noqa: PLC0415
    from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub  # noqa: PLC0415

    context = EvaluationContext(user_id=user)
    context.attributes.update(attributes)
    request = EvaluateFlagsRequest(context=context, flag_keys=flag_keys, include_details=explain)
    with server.channel() as channel:
        answer = EvaluationServiceStub(channel).EvaluateFlags(request, **call_options(client_key()))
    if as_json:
        print_json(document_of(answer))
    else:
        _print(answer)
    if answer.unknown_flag_keys:
        raise Failure(f"no such flag: {', '.join(answer.unknown_flag_keys)}", NOT_FOUND)


def _print(answer: "EvaluateFlagsResponse") -> None:
    values = {key: str(answer.flags[key]).lower() for key in sorted(answer.flags)}
    if answer.details:
        rows = [(key, value, *_explained(answer.details[key])) for key, value in values.items()]
        print_table(["FLAG", "VALUE", "REASON", "WHY"], rows)
    else:
        print_table(["FLAG", "VALUE"], list(values.items()))
    stale = ", which may not be the newest" if answer.stale else ""
    click.echo(f"at revision {answer.revision}{stale}")


def _explained(detail: "EvaluationDetail") -> tuple[str, str]:
    from gatekeeper_client.v1.evaluation_pb2 import Reason  # noqa: PLC0415

    reason = Reason.Name(detail.reason).removeprefix("REASON_")
    target = f"the user is in the segment {detail.segment_key}" if detail.segment_key else "the user is a target"
    why = {
        "STATIC": "it is the same for all users",
        "DEFAULT": "no rule applies to the user, so it is the default",
        "TARGETING_MATCH": target,
        "SPLIT": f"the user is in bucket {detail.bucket} of 0 to 99; those below the rollout get true",
        "DISABLED": "the flag is disabled, so it is the default",
    }
    return reason, why.get(reason, "")
