"""Server reflection, v1 and v1alpha: the contract with its comments, and the details that errors carry.

grpcio's own servicer has v1alpha alone, and takes the files from the generated code, which has no comments.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # Published without py.typed.
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

_PACKAGE: Final = Path(__file__).parents[1]
_ALPHA: Final = "v1alpha"
SERVICE_V1: Final = "grpc.reflection.v1.ServerReflection"
SERVICE_V1ALPHA: Final = f"grpc.reflection.{_ALPHA}.ServerReflection"

# Published without types: Any.
_Request = Any
_Response = Any


def _reflection_v1() -> FileDescriptorProto:
    """Return the proto of v1, which is that of v1alpha under another name; no distribution has it for Python."""
    alpha = reflection_pb2.DESCRIPTOR.serialized_pb
    proto = FileDescriptorProto.FromString(alpha)
    proto.name = proto.name.replace(_ALPHA, "v1")
    proto.package = proto.package.replace(_ALPHA, "v1")
    for field in (field for message in proto.message_type for field in message.field):
        if field.type_name:
            field.type_name = field.type_name.replace(f".{_ALPHA}.", ".v1.")
    for method in proto.service[0].method:
        method.input_type = method.input_type.replace(f".{_ALPHA}.", ".v1.")
        method.output_type = method.output_type.replace(f".{_ALPHA}.", ".v1.")
    return proto


def _contract() -> FileDescriptorSet:
    """Return our protos with their comments: of a checkout those that `make proto` wrote, else the wheel's copy."""
    checkout = _PACKAGE.parent / "generated" / "gatekeeper.binpb"
    installed = _PACKAGE / "_gatekeeper.binpb"
    return FileDescriptorSet.FromString((checkout if checkout.is_file() else installed).read_bytes())


class Descriptors:
    """All files that a client can ask for. Thread-safe after it was made."""

    def __init__(self) -> None:
        modules = (any_pb2, duration_pb2, error_details_pb2, status_pb2, health_pb2, reflection_pb2)
        protos = [FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in modules]
        # Each after what it imports. Of a file that both have, ours has the comments.
        by_name = {proto.name: proto for proto in (*protos, _reflection_v1(), *_contract().file)}
        self._pool = DescriptorPool()
        for proto in by_name.values():
            self._pool.Add(proto)
        self._files = {name: proto.SerializeToString() for name, proto in by_name.items()}

    def file(self, name: str) -> FileDescriptor:
        """Return a file by its path.

        Raises:
            KeyError: There is none.
        """
        return self._pool.FindFileByName(name)

    def file_of(self, symbol: str) -> FileDescriptor:
        """Return the file that defines a service, method, message, field or enum.

        Raises:
            KeyError: There is none.
        """
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:  # The pool does not find methods.
            service, _, method = symbol.rpartition(".")
            file: FileDescriptor = self._pool.FindServiceByName(service).methods_by_name[method].containing_service.file
            return file

    def with_imports(self, file: FileDescriptor) -> list[bytes]:
        """Return a file and all that it imports, serialised, itself first."""
        found: dict[str, None] = {}
        todo = [file]
        while todo:
            next_file = todo.pop()
            if next_file.name not in found:
                found[next_file.name] = None
                todo.extend(next_file.dependencies)
        return [self._files[name] for name in found]


@lru_cache(maxsize=1)
def descriptors() -> Descriptors:
    """Return the files; they are read once."""
    return Descriptors()


class ReflectionServicer:
    """Tells clients which services there are, and the files that define them.

    Args:
        services: Full names of the services of this server; reflection itself is added.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted({*services, SERVICE_V1, SERVICE_V1ALPHA})
        self._descriptors = descriptors()

    def add_to(self, server: grpc.Server) -> None:
        """Serve both versions, whose messages are the same on the wire."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._answer_all,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        for service in (SERVICE_V1, SERVICE_V1ALPHA):
            handlers = {"ServerReflectionInfo": handler}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def _answer_all(self, requests: Iterator[_Request], _context: grpc.ServicerContext) -> Iterator[_Response]:
        return map(self._answer, requests)

    def _answer(self, request: _Request) -> _Response:
        try:
            answer = self._answer_to(request.WhichOneof("message_request"), request)
        except KeyError:
            answer = _error(grpc.StatusCode.NOT_FOUND, "this server has nothing of that name")
        return reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request, **answer)

    def _answer_to(self, kind: str | None, request: _Request) -> dict[str, Any]:
        match kind:
            case "file_by_filename":
                return self._files(self._descriptors.file(request.file_by_filename))
            case "file_containing_symbol":
                return self._files(self._descriptors.file_of(request.file_containing_symbol))
            case "all_extension_numbers_of_type":  # proto3 has none but of options.
                self._descriptors.file_of(name := request.all_extension_numbers_of_type)
                numbers = reflection_pb2.ExtensionNumberResponse(base_type_name=name)
                return {"all_extension_numbers_response": numbers}
            case "file_containing_extension":
                raise KeyError(request.file_containing_extension.containing_type)
            case "list_services":
                services = [reflection_pb2.ServiceResponse(name=name) for name in self._services]
                return {"list_services_response": reflection_pb2.ListServiceResponse(service=services)}
            case _:
                return _error(grpc.StatusCode.INVALID_ARGUMENT, "message_request must be set")

    def _files(self, file: FileDescriptor) -> dict[str, Any]:
        files = self._descriptors.with_imports(file)
        return {"file_descriptor_response": reflection_pb2.FileDescriptorResponse(file_descriptor_proto=files)}


def _error(code: grpc.StatusCode, message: str) -> dict[str, Any]:
    number: int = code.value[0]
    return {"error_response": reflection_pb2.ErrorResponse(error_code=number, error_message=message)}
