"""Update masks: which fields of a resource an update changes, and to what."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_grpc.domain.errors import InvalidArgument

Resource = TypeVar("Resource")


def changes_from_mask(
    mask: FieldMask, resource: Resource, readers: Mapping[str, Callable[[Resource], Any]]
) -> dict[str, Any]:
    """Read the fields that a mask names; a path may be repeated.

    Args:
        mask: The request's `update_mask`.
        resource: The message to read.
        readers: Reads a field, by its path: the paths that can be updated.

    Returns:
        The value of each field that changes, by its path.

    Raises:
        InvalidArgument: The mask is empty or names another path, or what a reader raises.
    """
    if not mask.paths:
        raise InvalidArgument.of("update_mask", f"must name at least one of {', '.join(readers)}")
    for position, path in enumerate(mask.paths):
        if path not in readers:
            raise InvalidArgument.of(
                f"update_mask.paths[{position}]", f"is {path!r}, which cannot be updated; use {', '.join(readers)}"
            )
    return {path: readers[path](resource) for path in dict.fromkeys(mask.paths)}
