"""Refuses calls of methods that the server does not have: on arrival, without a worker, and names the nearest one.

Their names come from strangers, so nothing is kept of them: no log line, no label of a metric, no cache.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from gatekeeper_grpc.interceptors.tracing import echo, trace_id_of
from gatekeeper_grpc.transport.grpcio_internals import Metadata
from gatekeeper_grpc.wire.status import MethodNotFound

_MAX_NAME_CHARS = 100
_ELSEWHERE = "it belongs to another port of the server, or is turned off"


class NearestMethod:
    """Finds the method that a wrong name means: in another service or case, or with one letter more, less or changed.

    Args:
        methods: Full names ("/package.Service/Method").
    """

    def __init__(self, methods: Iterable[str]) -> None:
        self._by_name: Mapping[str, str] = _index(methods)
        self._longest = max(map(len, self._by_name), default=0) + 1

    def find(self, name: str) -> str:
        """Return the full name of the nearest method; empty if none is near. Takes constant time."""
        own = _own_name(name)
        if len(own) > self._longest:
            return ""
        return next((self._by_name[key] for key in _keys(own) if key in self._by_name), "")


def unknown_method_handler(
    name: str, nearest: NearestMethod, pool: ThreadPoolExecutor, *, elsewhere: Mapping[str, str]
) -> Any:
    """Return a handler that refuses one call of a method by this name.

    Args:
        name: What the client called.
        nearest: Knows the methods that there are.
        pool: Refuses the call.
        elsewhere: The variable of the listener that serves a method, for those of other listeners.
    """
    return grpc.stream_stream_rpc_method_handler(_UnknownMethod(name, nearest, pool, elsewhere), None, None)


class _UnknownMethod:
    """What grpcio and the pool read of a method; no worker ever runs it."""

    experimental_non_blocking = False

    def __init__(
        self, name: str, nearest: NearestMethod, pool: ThreadPoolExecutor, elsewhere: Mapping[str, str]
    ) -> None:
        self._name = name
        self._nearest = nearest
        self._elsewhere = elsewhere
        self.experimental_thread_pool = pool

    def arrive(self, _call: object) -> NoReturn:
        """Refuse the call; runs on the serving thread."""
        nearest = self._nearest.find(self._name)
        raise _refusal(self._name, nearest, self._elsewhere.get(nearest, ""))

    @staticmethod
    def echoed(metadata: Metadata) -> Metadata:
        """Return what the client gets back of its metadata."""
        return echo(trace_id_of(metadata))

    def refused(self, _call: object, _status: object) -> None:
        """Keep nothing of the call."""

    def __call__(self, _requests: object, _context: object) -> NoReturn:
        raise AssertionError("unreachable: the call is refused when it arrives")


def _refusal(name: str, nearest: str, listener: str) -> MethodNotFound:
    """Make the error. It names the variable of a listener, not its address, which may be kept from this client."""
    shown = name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}..."
    metadata = {"method": shown, "nearest": nearest, "listener": listener}
    return MethodNotFound(
        f"there is no method {shown!r} here: {_advice(name, nearest, listener)}",
        metadata={key: value for key, value in metadata.items() if value},
    )


def _advice(name: str, nearest: str, listener: str) -> str:
    if not nearest:
        return "reflection lists the methods that there are"
    if nearest == name:
        return f"the listener of {listener} serves it" if listener else _ELSEWHERE
    return f"the nearest method is {nearest}{f', on the listener of {listener}' if listener else ''}"


def _index(methods: Iterable[str]) -> Mapping[str, str]:
    """Map the own name of each method, and what is left of it without one letter, to its full name."""
    names = {_own_name(method): method for method in sorted(methods, reverse=True)}
    return {key: method for own, method in names.items() for key in _keys(own)} | names


def _own_name(method: str) -> str:
    return method.rpartition("/")[2].lower()


def _keys(own: str) -> Iterator[str]:
    """Yield a name, and it without each of its letters: two names that differ in one letter have one in common."""
    yield own
    for at in range(len(own)):
        yield own[:at] + own[at + 1 :]
