"""What a server says it can be asked: every RPC of every service, read by server reflection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# Any: messages of classes that exist at run time only.
Message = Any

# They answer until their client leaves.
_ENDLESS = frozenset({"/gatekeeper.v1.EvaluationService/WatchFlags", "/grpc.health.v1.Health/Watch"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One RPC; `path` is what HTTP/2 calls it."""

    path: str
    request: type[Message]
    response: type[Message]
    streams_requests: bool

    @property
    def name(self) -> str:
        """The name within its service."""
        return self.path.rpartition("/")[2]

    @property
    def is_endless(self) -> bool:
        """Whether only the client ends it."""
        return self.path in _ENDLESS


def methods_of(channel: grpc.Channel) -> Sequence[Method]:
    """Ask a server for all its RPCs, in the order of their paths."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    services = [pool.FindServiceByName(name) for name in sorted(database.get_services())]
    return [_method(service, method) for service in services for method in service.methods]


def _method(service: Any, method: Any) -> Method:
    return Method(
        path=f"/{service.full_name}/{method.name}",
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        streams_requests=method.client_streaming,
    )
