"""Who wrote what in a document of the audit log: people, whose texts an erasure searches, or the server.

Redaction cannot be undone, so it must find no more than people wrote: not the times, the names of operators, variants
and roles, the keys and the numbers that the server puts next to it. A test compares this table with the documents that
are written: a new field must be classified here.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import rfc8785

from gatekeeper_grpc.domain.audit import read_document
from gatekeeper_grpc.domain.erasure import PLACEHOLDER, Mention
from gatekeeper_grpc.domain.mutation import ResourceType


class Author(Enum):
    """Who wrote what is at a position of a document."""

    PEOPLE = "people"
    """Free text, or values: every text in it is searched, names of members excepted."""
    SERVER = "server"
    """Names, keys, times, numbers, words of enums, subject ids: it names nobody."""


PEOPLE: Final = Author.PEOPLE
SERVER: Final = Author.SERVER

# Names of members and what is below them. A list has the shape of its items.
Shape: TypeAlias = "Author | Mapping[str, Shape]"
_Rewrite: TypeAlias = Callable[[Any], Any]

_VERSION: Mapping[str, Shape] = {"create_time": SERVER, "update_time": SERVER, "revision": SERVER}


def _state(**fields: Shape) -> Mapping[str, Shape]:
    """Return the shape of a document with the state of a resource before and after."""
    state = {**_VERSION, **fields}
    return {"before": state, "after": state}


# What links the entries of one configuration.
_APPLIED: Mapping[str, Shape] = {"apply_id": SERVER}
_FLAG = _state(
    key=SERVER,
    description=PEOPLE,
    enabled=SERVER,
    default_variant=SERVER,
    rollout_percentage=SERVER,
    tags=PEOPLE,
    owner=PEOPLE,
    segment_targets=SERVER,
    flag_id=SERVER,
)
_SEGMENT = _state(
    key=SERVER,
    description=PEOPLE,
    match=SERVER,
    conditions={"attribute": SERVER, "operator": SERVER, "values": PEOPLE, "negate": SERVER},
    segment_id=SERVER,
)
_ADMIN_USER = {
    **_state(admin_id=SERVER, username=SERVER, role=SERVER, enabled=SERVER),
    "password_changed": SERVER,
}

WRITTEN_BY: Mapping[ResourceType, Mapping[str, Shape]] = MappingProxyType(
    {
        ResourceType.FLAG: {**_FLAG, **_APPLIED},
        ResourceType.TARGETS: {
            **dict.fromkeys(("variant", "variants", "added", "moved", "removed", "set"), SERVER),
            **_APPLIED,
        },
        ResourceType.SEGMENT: {**_SEGMENT, **_APPLIED},
        ResourceType.MEMBERS: {"added": SERVER, "removed": SERVER, "set": SERVER, **_APPLIED},
        ResourceType.USER: {**_state(subject_id=SERVER, attributes=PEOPLE), **_APPLIED},
        # `redacted`: the entries that an erasure of an earlier release redacted.
        ResourceType.SUBJECT: {"erased": SERVER, "redacted": SERVER, "sets": SERVER},
        ResourceType.ADMIN_USER: _ADMIN_USER,
        ResourceType.CLIENT_KEY: _state(
            key_id=SERVER, name=SERVER, tier=SERVER, expire_time=SERVER, revoke_time=SERVER
        ),
        ResourceType.API_TOKEN: _state(
            token_id=SERVER,
            name=SERVER,
            role=SERVER,
            admin_id=SERVER,
            username=SERVER,
            expire_time=SERVER,
            revoke_time=SERVER,
        ),
        ResourceType.INSTALLATION: {
            "known_revision": SERVER,
            "previous_revision": SERVER,
            "first_seq": SERVER,
            "last_seq": SERVER,
            "last_hash": SERVER,
            "sha256": SERVER,
        },
    }
)
"""By the kind of resource. Every document has a `change_reason` as well, which people wrote."""


def redacted_document(resource_type: str, document: bytes, mention: Mention) -> bytes:
    """Return a canonical document with every mention of a person replaced; unchanged if it has none.

    A document that is not JSON was altered. It is replaced as a whole, because nobody can tell what it says.
    """
    return _rewritten(resource_type, document, mention.replaced_in)


def emptied_document(resource_type: str, document: bytes) -> bytes:
    """Return a canonical document with all that people wrote in it replaced: for one that is about the person."""
    return _rewritten(resource_type, document, lambda _: PLACEHOLDER)


def _rewritten(resource_type: str, document: bytes, rewrite: _Rewrite) -> bytes:
    try:
        fields = read_document(document)
    except ValueError:
        return rfc8785.dumps(PLACEHOLDER)
    shape = {**WRITTEN_BY.get(ResourceType(resource_type), {}), "change_reason": PEOPLE}
    return rfc8785.dumps(_at(shape, fields, rewrite))


def _at(shape: Shape, value: Any, rewrite: _Rewrite) -> Any:
    if shape is PEOPLE:
        return rewrite(value)
    if isinstance(value, list):
        return [_at(shape, item, rewrite) for item in value]
    if isinstance(value, dict) and isinstance(shape, Mapping):
        return {name: _at(shape.get(name, SERVER), member, rewrite) for name, member in value.items()}
    return value
