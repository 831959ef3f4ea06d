"""Refuses calls of methods that the server does not have: on arrival, without a worker, and names the nearest one.

Their names come from strangers, so nothing is kept of them: no log line, no label of a metric, no cache.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from gatekeeper_grpc.wire.status import MethodNotFound

_MAX_NAME_CHARS = 100


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


def unknown_method_handler(name: str, nearest: NearestMethod, pool: ThreadPoolExecutor) -> Any:
    """Return a handler that refuses one call of a method by this name."""
    return grpc.stream_stream_rpc_method_handler(_UnknownMethod(name, nearest, pool), None, None)


class _UnknownMethod:
    """What grpcio and the pool read of a method; no worker ever runs it."""

    experimental_non_blocking = False

    def __init__(self, name: str, nearest: NearestMethod, pool: ThreadPoolExecutor) -> None:
        self._name = name
        self._nearest = nearest
        self.experimental_thread_pool = pool

    def arrive(self, _call: object) -> NoReturn:
        """Refuse the call; runs on the serving thread."""
        raise _refusal(self._name, self._nearest.find(self._name))

    def __call__(self, _requests: object, _context: object) -> NoReturn:
        raise AssertionError("unreachable: the call is refused when it arrives")


def _refusal(name: str, nearest: str) -> MethodNotFound:
    shown = name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}..."
    if nearest == name:
        advice = "it belongs to another port of the server, or is turned off"
    elif nearest:
        advice = f"the nearest method is {nearest}"
    else:
        advice = "reflection lists the methods that there are"
    metadata = {"method": shown} | ({"nearest": nearest} if nearest else {})
    return MethodNotFound(f"there is no method {shown!r} here: {advice}", metadata=metadata)


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
