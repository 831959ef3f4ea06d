"""Client keys: each call sends a bearer key, or is signed.

A signed call is serialised here, once: the bytes that are hashed are the bytes that are sent.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Self

import grpc

_UNSIGNED: Final = "UNSIGNED"

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A key and its secret, as `CreateClientKey` returned them. The type of the key is known by its id."""

    key_id: str
    secret: str = field(repr=False)

    @property
    def is_bearer(self) -> bool:
        """Whether calls send the secret, which needs TLS, instead of a signature."""
        return self.key_id.startswith("cb_")

    def metadata(self, *, method: str, authority: str, body: bytes | None) -> Metadata:
        """Return what a call has to send. Of a signed call: valid for 30 s, once.

        Args:
            method: Full name, such as "/gatekeeper.v1.EvaluationService/EvaluateFlags".
            authority: The host and port that the client dials, in lower case.
            body: The serialised message of a unary call. None: it is not signed, as in streams.
        """
        if self.is_bearer:
            return (("authorization", f"Bearer {self.secret}"),)
        timestamp, nonce = str(int(time.time())), secrets.token_hex(16)
        content = _UNSIGNED if body is None else hashlib.sha256(body).hexdigest()
        canonical = f"{self.key_id}\n{timestamp}\n{nonce}\n{content}\n{authority}\n{method}"
        signature = hmac.digest(self.secret.encode(), canonical.encode(), "sha256").hex()
        return (
            ("x-gatekeeper-key-id", self.key_id),
            ("x-gatekeeper-timestamp", timestamp),
            ("x-gatekeeper-nonce", nonce),
            ("x-gatekeeper-content-sha256", content),
            ("x-gatekeeper-signature", signature),
        )


class SignedChannel(grpc.Channel):
    """A channel whose calls have a client key: give it to the stubs.

    gRPC repeats a call that it could not send with the same signature, which is served once. A call that fails after it
    was sent needs a new one: repeat the call of the stub.

    Args:
        channel: Sends the calls.
        key: The key.
        authority: What the channel calls the server: the host and port that it dials.
    """

    def __init__(self, channel: grpc.Channel, key: ClientKey, *, authority: str) -> None:
        self._channel = channel
        self._key = key
        self._authority = authority

    def unary_unary(self, method: str, request_serializer: Any = None, *rest: Any, **options: Any) -> Any:
        """Return a method whose message is signed."""
        call: Any = self._channel.unary_unary(method, None, *rest, **options)
        return _SignedUnary(call, request_serializer or bytes, lambda body: self._metadata(method, body))

    def unary_stream(self, method: str, *rest: Any, **options: Any) -> Any:
        """Return a method whose calls are signed without their message."""
        return self._without_body(method, self._channel.unary_stream(method, *rest, **options))

    def stream_unary(self, method: str, *rest: Any, **options: Any) -> Any:
        """Return a method whose calls are signed without their messages."""
        return self._without_body(method, self._channel.stream_unary(method, *rest, **options))

    def stream_stream(self, method: str, *rest: Any, **options: Any) -> Any:
        """Return a method whose calls are signed without their messages."""
        return self._without_body(method, self._channel.stream_stream(method, *rest, **options))

    def _without_body(self, method: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def signed(requests: Any, *, metadata: Iterable[Any] | None = None, **options: Any) -> Any:
            return call(requests, metadata=(*(metadata or ()), *self._metadata(method, None)), **options)

        return signed

    def _metadata(self, method: str, body: bytes | None) -> Metadata:
        return self._key.metadata(method=method, authority=self._authority, body=body)

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        """Tell `callback` of the state of the connection."""
        self._channel.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Any) -> None:
        """Tell `callback` no more."""
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        """End all calls and close the connections."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _SignedUnary:
    """A unary method: what it serialises is what it hashes and what it sends."""

    def __init__(self, call: Any, serialize: Callable[[Any], bytes], credentials: Callable[[bytes], Metadata]) -> None:
        self._call = call
        self._serialize = serialize
        self._credentials = credentials

    def __call__(self, request: Any, *, metadata: Iterable[Any] | None = None, **options: Any) -> Any:
        return self._send(self._call, request, metadata, options)

    def with_call(self, request: Any, *, metadata: Iterable[Any] | None = None, **options: Any) -> Any:
        return self._send(self._call.with_call, request, metadata, options)

    def future(self, request: Any, *, metadata: Iterable[Any] | None = None, **options: Any) -> Any:
        return self._send(self._call.future, request, metadata, options)

    def _send(self, call: Any, request: Any, metadata: Iterable[Any] | None, options: dict[str, Any]) -> Any:
        body = self._serialize(request)
        return call(body, metadata=(*(metadata or ()), *self._credentials(body)), **options)
