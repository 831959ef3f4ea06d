"""Messages of other products' gRPC services, described by the field names and numbers that their contracts publish."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

STRUCT = ".google.protobuf.Struct"
_SCALARS = {"bool": FieldDescriptorProto.TYPE_BOOL, "string": FieldDescriptorProto.TYPE_STRING}

# Of each message, the fields that are sent or read: its number, and its type, which is repeated after "*". A field that
# is not described stays unread. A map is a repeated entry of key and value.
Fields = Mapping[str, tuple[int, str]]


def message_types(package: str, messages: Mapping[str, Fields]) -> dict[str, Any]:
    """Return the classes of messages, by name; a type that is no scalar and not `STRUCT` is one of `messages`."""
    file = FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    file.dependency.append(struct_pb2.DESCRIPTOR.name)
    for name, fields in messages.items():
        file.message_type.append(_described(package, name, fields))
    pool = DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def _described(package: str, name: str, fields: Fields) -> DescriptorProto:
    message = DescriptorProto(name=name)
    for field_name, (number, kind) in fields.items():
        field = message.field.add(name=field_name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
        if kind.startswith("*"):
            field.label = FieldDescriptorProto.LABEL_REPEATED
        single = kind.removeprefix("*")
        if single in _SCALARS:
            field.type = _SCALARS[single]
        else:
            field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, _full_name(package, single)
    return message


def _full_name(package: str, kind: str) -> str:
    return kind if kind.startswith(".") else f".{package}.{kind}"
