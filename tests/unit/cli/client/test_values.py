"""Values in arguments of client commands."""

import click
import pytest

from gatekeeper_grpc.cli.client.values import attribute_option


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("n=30", 30),
        ("n=pro", "pro"),
        ('n="01"', "01"),
        ("n=01", "01"),
        ("n=NaN", "NaN"),
        ("n=[true,null]", [True, None]),
    ],
)
def test_the_value_of_an_attribute_is_json_or_else_text(attribute: str, value: object) -> None:
    command = click.Command("any", params=[])
    attribute_option("An attribute")(command)

    context = command.make_context("any", ["--attr", attribute])

    assert context.params["attributes"] == {"n": value}
