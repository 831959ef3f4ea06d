"""JSON values, between domain types and the messages Struct and Value."""

import math
from collections.abc import Mapping

from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import MAX_ATTRIBUTES_DEPTH


def struct_from_proto(field: str, message: Struct, *, levels: int = MAX_ATTRIBUTES_DEPTH) -> dict[str, JsonValue]:
    """Convert an object.

    Raises:
        InvalidArgument: Over `levels` levels of objects and lists, this one included, or a number that is not finite.
    """
    return {name: value_from_proto(field, value, levels=levels - 1) for name, value in message.fields.items()}


def value_from_proto(field: str, message: Value, *, levels: int = MAX_ATTRIBUTES_DEPTH) -> JsonValue:
    """Convert a value; one that is not set is null.

    Raises:
        InvalidArgument: As `struct_from_proto`.
    """
    kind = message.WhichOneof("kind")
    if kind in ("struct_value", "list_value") and levels == 0:
        raise InvalidArgument.of(field, f"must be nested at most {MAX_ATTRIBUTES_DEPTH} levels deep")
    if kind == "number_value" and not math.isfinite(message.number_value):
        raise InvalidArgument.of(field, "must not contain NaN or an infinite number: JSON has neither")
    if kind == "struct_value":
        return struct_from_proto(field, message.struct_value, levels=levels)
    if kind == "list_value":
        return [value_from_proto(field, item, levels=levels - 1) for item in message.list_value.values]
    if kind in (None, "null_value"):
        return None
    scalar: JsonValue = getattr(message, kind)
    return scalar


def struct_to_proto(value: Mapping[str, JsonValue]) -> Struct:
    """Convert an object."""
    return Struct(fields={name: value_to_proto(item) for name, item in value.items()})


def value_to_proto(value: JsonValue) -> Value:
    """Convert a value."""
    if isinstance(value, bool):
        return Value(bool_value=value)
    if isinstance(value, (int, float)):
        return Value(number_value=value)
    if isinstance(value, str):
        return Value(string_value=value)
    if isinstance(value, list):
        return Value(list_value=ListValue(values=map(value_to_proto, value)))
    if isinstance(value, dict):
        return Value(struct_value=struct_to_proto(value))
    return Value(null_value=NULL_VALUE)
