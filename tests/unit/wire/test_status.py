import errno
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # Published without py.typed.

from gatekeeper_grpc.domain.errors import (
    Changed,
    FieldViolation,
    GatekeeperError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from gatekeeper_grpc.wire.status import status_from_error

MAX_METADATA_BYTES = 8 * 1024


def kinds(base: type[GatekeeperError] = GatekeeperError) -> Iterator[type[GatekeeperError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def details(status: grpc.Status) -> list[Any]:
    ((_key, serialized),) = status.trailing_metadata
    packed = status_pb2.Status.FromString(serialized).details
    return [unpacked(detail) for detail in packed]


def unpacked(detail: Any) -> Any:
    message = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
    assert detail.Unpack(message)
    return message


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_error_kind_has_a_row_and_keeps_its_message_and_reason(kind: type[GatekeeperError]) -> None:
    status = status_from_error(kind("what happened"), "c0ffee")

    assert status.code is not grpc.StatusCode.INTERNAL
    assert status.details == "what happened"
    assert details(status) == [error_details_pb2.ErrorInfo(reason=kind.reason, domain="gatekeeper")]


def test_a_refined_kind_takes_the_row_of_its_base() -> None:
    class Refined(NotFound):
        pass

    assert status_from_error(Refined("gone"), "").code is grpc.StatusCode.NOT_FOUND


def test_variables_of_the_message_are_in_the_metadata() -> None:
    (info,) = details(status_from_error(Changed.since_read("flag 'a'", current_etag="v2"), ""))

    assert info.reason == "ETAG_MISMATCH"
    assert info.metadata == {"current_etag": "v2"}


def test_field_violations_become_a_bad_request() -> None:
    _info, bad_request = details(status_from_error(InvalidArgument.of("flag.key", "must not be empty"), ""))

    (violation,) = bad_request.field_violations
    assert (violation.field, violation.description) == ("flag.key", "must not be empty")


@pytest.mark.parametrize(("retry_after_s", "nanoseconds"), [(0.25, 250_000_000), (2.0, 2_000_000_000), (0.0, 0)])
def test_retry_after_becomes_retry_info(retry_after_s: float, nanoseconds: int) -> None:
    _info, retry = details(status_from_error(ResourceExhausted("busy", retry_after_s=retry_after_s), ""))

    assert retry.retry_delay.ToNanoseconds() == nanoseconds


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("password=hunter2"),
        GatekeeperError("a kind without a row"),
        KeyError("hunter2"),
        TimeoutError("postgresql://u:hunter2@db"),  # pragma: allowlist secret
    ],
)
def test_anything_else_is_internal_with_the_call_id_and_without_its_text(error: Exception) -> None:
    status = status_from_error(error, "c0ffee")

    assert (status.code, status.details) == (grpc.StatusCode.INTERNAL, "internal error")
    (info,) = details(status)
    assert (info.reason, dict(info.metadata)) == ("INTERNAL", {"call_id": "c0ffee"})
    assert b"hunter2" not in status.trailing_metadata[0][1]


def test_the_largest_status_fits_into_the_metadata_that_clients_accept() -> None:
    text = "é" * 100_000
    violations = tuple(FieldViolation(field=text, description=text) for _ in range(1_000))
    error = InvalidArgument(text, metadata={f"variable_{n}": text for n in range(1_000)}, violations=violations)

    status = status_from_error(error, "")

    percent_encoded = 3 * len(status.details.encode())
    base64_encoded = len(status.trailing_metadata[0][1]) * 4 // 3
    assert percent_encoded + base64_encoded < MAX_METADATA_BYTES


def test_a_message_that_is_not_unicode_is_still_sent() -> None:
    assert status_from_error(Unavailable("half a \ud800 pair"), "").details == "half a ? pair"


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "files"), OSError(errno.ENFILE, "files"), OSError(errno.ENOMEM, "x"), MemoryError()]
)
def test_a_server_without_descriptors_or_memory_is_unavailable(error: Exception) -> None:
    status = status_from_error(error, "call-1")

    assert status.code is grpc.StatusCode.UNAVAILABLE
    assert "no free file descriptor or memory" in status.details


def test_twin_any_other_error_of_the_system_is_internal() -> None:
    assert status_from_error(OSError(errno.EACCES, "denied"), "call-1").code is grpc.StatusCode.INTERNAL
