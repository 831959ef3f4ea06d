"""`gatekeeper segments`: read and change segments and their members."""

import click

from gatekeeper_grpc.cli.client.output import Column, Kind, choice_of, text_of, time_of
from gatekeeper_grpc.cli.client.resources import Resource, choice_option
from gatekeeper_grpc.cli.client.user_ids import UserIds
from gatekeeper_grpc.cli.client.values import conditions, shown_condition

_SEGMENT = Resource(
    kind=Kind(
        plural="segments",
        name_of=text_of("key"),
        columns=(
            Column("SEGMENT", text_of("key")),
            Column("MEMBERS", lambda segment: str(segment.member_count)),
            Column("MATCH", choice_of("match")),
            Column("CONDITIONS", lambda segment: "; ".join(map(shown_condition, segment.conditions))),
            Column("UPDATED", time_of("update_time"), is_wide=True),
            Column("REVISION", text_of("revision"), is_wide=True),
            Column("ETAG", text_of("etag"), is_wide=True),
            Column("DESCRIPTION", text_of("description"), is_wide=True),
        ),
    ),
    noun="segment",
    rpc="Segment",
    key="key",
    fields=(
        click.option("--description", help="What the segment is for."),
        choice_option(
            "--match", prefix="SEGMENT_MATCH_", choices=("all", "any"), help="How many conditions must match."
        ),
        click.option(
            "--condition",
            "conditions",
            multiple=True,
            metavar="'ATTRIBUTE [not] OPERATOR [VALUE...]'",
            callback=conditions,
            help="Such as 'plan in pro team' or 'age not less_than 18'. Repeatable: all of them.",
        ),
    ),
    clearable=("conditions",),
)


@click.group()
def segments() -> None:
    """Read and change segments: groups of users, by conditions or by name."""


_SEGMENT.add_list(
    segments,
    "List segments, by key.",
    click.option("--prefix", "key_prefix", help="Only segments whose key begins with this."),
)
_SEGMENT.add_get(segments, "Print the segment KEY.")
_SEGMENT.add_create(segments, "Create the segment KEY; without conditions only members are in it.")
_SEGMENT.add_update(segments, "Change the fields of the segment KEY whose options are given.")
_SEGMENT.add_delete(segments, "Delete the segment KEY with its members, for good.")

_MEMBERS = UserIds(
    kind=Kind(plural="user_ids", name_of=str, columns=(Column("USER", str),)),
    key="segment_key",
    list_rpc="ListSegmentMembers",
    remove_rpc="RemoveSegmentMembers",
    import_rpc="AddSegmentMembers",
)
segments.add_command(_MEMBERS.group("members", "Name the users of a segment."))
