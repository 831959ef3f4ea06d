"""`gatekeeper tokens` and `gatekeeper client-keys`: make, list and revoke the credentials of tools and services."""

import time
from typing import Any

import click

from gatekeeper_grpc.cli.client.output import Column, Kind, choice_of, text_of, time_of
from gatekeeper_grpc.cli.client.resources import Resource, choice_option, days_option, role_option


def _state_of(credential: Any) -> str:
    if credential.HasField("revoke_time"):
        return "revoked"
    has_ended = credential.HasField("expire_time") and credential.expire_time.seconds <= time.time()
    return "expired" if has_ended else "live"


_STATE = (
    Column("EXPIRES", time_of("expire_time")),
    Column("STATE", _state_of),
    Column("CREATED", time_of("create_time"), is_wide=True),
    Column("LAST_USED", time_of("last_used_time"), is_wide=True),
    Column("REVISION", text_of("revision"), is_wide=True),
)
TOKEN = Kind(
    plural="api_tokens",
    name_of=text_of("token_id"),
    columns=(
        Column("TOKEN", text_of("token_id")),
        Column("NAME", text_of("name")),
        Column("ROLE", choice_of("role")),
        Column("MAKER", text_of("username")),
        *_STATE,
    ),
)
_CLIENT_KEY = Kind(
    plural="client_keys",
    name_of=text_of("key_id"),
    columns=(
        Column("KEY", text_of("key_id")),
        Column("NAME", text_of("name")),
        Column("TYPE", choice_of("type")),
        Column("TIER", choice_of("tier")),
        *_STATE,
    ),
)
_TOKENS = Resource(kind=TOKEN, noun="api_token", rpc="ApiToken", key="token_id")
_CLIENT_KEYS = Resource(kind=_CLIENT_KEY, noun="client_key", rpc="ClientKey", key="key_id")


@click.group()
def tokens() -> None:
    """Make, list and revoke API tokens, with which tools call AdminService."""


_TOKENS.add_create(
    tokens,
    "Make a token called NAME, and print its secret, which is shown once.",
    role_option(default="viewer", show_default=True),
    days_option(default=90, help="How long it lives."),
    key="name",
)
_TOKENS.add_list(
    tokens,
    "List your tokens, or with role admin those of all, without their secrets.",
    click.option("--username", help="Only those of this admin user."),
)
_TOKENS.add_revoke(tokens, "Revoke the token TOKEN_ID for good. Does not ask.")


@click.group("client-keys")
def client_keys() -> None:
    """Make, list and revoke client keys, with which services evaluate flags."""


_CLIENT_KEYS.add_create(
    client_keys,
    "Make a key for the service NAME, and print its secret, which is shown once.",
    choice_option(
        "--type",
        prefix="CLIENT_KEY_TYPE_",
        choices=("bearer", "signing"),
        default="bearer",
        show_default=True,
        help="Whether calls send the secret or are signed with it.",
    ),
    choice_option(
        "--tier",
        prefix="RATE_TIER_",
        choices=("standard", "high", "unlimited"),
        default="standard",
        show_default=True,
        help="How often it may evaluate.",
    ),
    days_option(default=None, help="How long it lives.  [default: until it is revoked]"),
    key="name",
)
_CLIENT_KEYS.add_list(client_keys, "List all client keys, without their secrets.")
_CLIENT_KEYS.add_revoke(client_keys, "Revoke the key KEY_ID for good. Does not ask.")
