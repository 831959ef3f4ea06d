"""A service of a test behind the real interceptors, and a client of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # Published without py.typed.
from grpc_status import rpc_status

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import Unauthenticated
from gatekeeper_grpc.interceptors.authentication import VerifyToken
from gatekeeper_grpc.interceptors.chain import MAX_AGES_S, MESSAGE_TIMEOUT, STREAM_TIMEOUT, Stages
from gatekeeper_grpc.interceptors.policy import Access, Policy
from gatekeeper_grpc.transport import listener
from gatekeeper_grpc.transport.admission import DEFAULT_SIZES, CallPools, PoolName
from gatekeeper_grpc.transport.message_timeout import MessageTimeout
from gatekeeper_grpc.transport.pending_calls import PendingLimits
from gatekeeper_grpc.transport.shares import PoolSize
from tests.faults.proxy import proxied
from tests.support.tls import CertificateFolder

SERVICE = "test.v1.TestService"


ADMIN_TOKEN = (("authorization", "Bearer ADMIN"),)


EDITOR_TOKEN = (("authorization", "Bearer EDITOR"),)


VIEWER_TOKEN = (("authorization", "Bearer VIEWER"),)


OPEN = Policy(access=Access.PUBLIC, pool=PoolName.EVALUATION)


STREAM = Policy(access=Access.PUBLIC, pool=PoolName.BULK)


EDIT = Policy(access=Role.EDITOR, pool=PoolName.ADMIN_WRITE)


TIMEOUT_S = 60.0
PENDING = PendingLimits()


def verify_role_name(token: str) -> Caller:
    """Accept the name of a role as a token."""
    if token not in Role.__members__:
        raise Unauthenticated(f"unknown token {token}")
    return Caller(admin_id=Role[token].value, username=f"{token.lower()}-anna", role=Role[token], token_epoch=1)


@dataclass(frozen=True)
class Server:
    pools: CallPools
    grpc_server: grpc.Server
    target: str
    channel: grpc.Channel

    @property
    def port(self) -> int:
        return int(self.target.rpartition(":")[2])

    @contextmanager
    def seen_from(self, source: str) -> Iterator["Server"]:
        """The same server, for a client at another address of loopback."""
        with proxied(self.port, source=source) as proxy, grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
            yield replace(self, channel=channel)

    def unary(self, name: str) -> Any:
        return self.channel.unary_unary(f"/{SERVICE}/{name}", StringValue.SerializeToString, StringValue.FromString)

    def raw(self, name: str) -> Any:
        """The same method for a client that sends any bytes, or none: nothing on the wire tells it from a unary one."""
        return self.channel.stream_unary(f"/{SERVICE}/{name}", None, StringValue.FromString)

    def stream(self, name: str) -> Any:
        return self.channel.stream_stream(f"/{SERVICE}/{name}", StringValue.SerializeToString, StringValue.FromString)


def unary(behaviour: Callable[[Any, Any], Any]) -> Any:
    return grpc.unary_unary_rpc_method_handler(behaviour, StringValue.FromString, StringValue.SerializeToString)


def stream(behaviour: Callable[[Any, Any], Any]) -> Any:
    return grpc.stream_stream_rpc_method_handler(behaviour, StringValue.FromString, StringValue.SerializeToString)


@contextmanager
def serve(
    methods: Mapping[str, tuple[Any, Policy | None]],
    *,
    sizes: Mapping[PoolName, PoolSize] = DEFAULT_SIZES,
    pending: PendingLimits = PENDING,
    message_timeout: MessageTimeout = MESSAGE_TIMEOUT,
    stream_timeout: MessageTimeout = STREAM_TIMEOUT,
    max_ages_s: Mapping[PoolName, float] = MAX_AGES_S,
    verify_token: VerifyToken = verify_role_name,
    check_caller: Callable[[], None] = lambda: None,
    certificates: CertificateFolder | None = None,
) -> Iterator[Server]:
    """Serve `methods` (name -> handler, policy row if any) behind the real chain, with one connected client.

    With `certificates`, by TLS.
    """
    pools = CallPools({**DEFAULT_SIZES, **sizes}, pending=pending)
    stages = Stages(
        verify_token=verify_token,
        pools=pools,
        policies={f"/{SERVICE}/{name}": policy for name, (_handler, policy) in methods.items() if policy},
        message_timeout=message_timeout,
        stream_timeout=stream_timeout,
        max_ages_s=max_ages_s,
        check_caller=check_caller,
    )
    handlers = {name: handler for name, (handler, _policy) in methods.items()}
    with running(pools, stages, handlers, certificates) as server:
        yield server


@contextmanager
def running(
    pools: CallPools,
    stages: listener.Interceptor,
    handlers: dict[str, Any],
    certificates: CertificateFolder | None = None,
) -> Iterator[Server]:
    server = listener.new_server(pools[PoolName.OPERATIONS], stages)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = listener.bind(server, ListenAddress(host="127.0.0.1"), certificates.credentials if certificates else None)
    server.start()
    try:
        with certificates.channel(port) if certificates else grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Server(pools=pools, grpc_server=server, target=f"127.0.0.1:{port}", channel=channel)
    finally:
        server.stop(None).wait(TIMEOUT_S)
        pools.close()


def echo(request: StringValue, _context: Any) -> StringValue:
    return request


def echo_stream(requests: Iterator[StringValue], _context: Any) -> Iterator[StringValue]:
    yield from requests


def fails(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make the call, which must fail, and return its error."""
    with pytest.raises(grpc.RpcError) as failure:
        exhaust(call(*args, timeout=TIMEOUT_S, **kwargs))
    return failure.value


def exhaust(result: Any) -> None:
    if isinstance(result, Iterator):
        list(result)


def error_info(error: Any) -> Any:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert [status.details[0].Unpack(info), info.domain] == [True, "gatekeeper"]
    return info


def text(value: str = "hello") -> StringValue:
    return StringValue(value=value)
