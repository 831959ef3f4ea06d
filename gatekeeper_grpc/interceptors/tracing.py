"""Which trace a call belongs to, as its client says: `traceparent` (W3C Trace Context), or else `x-request-id`."""

import re
from collections.abc import Iterable
from typing import Final

REQUEST_ID_KEY: Final = "x-request-id"
_TRACEPARENT: Final = re.compile("[0-9a-f]{2}-(?!0{32})(?P<trace_id>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_REQUEST_ID: Final = re.compile("[A-Za-z0-9._-]{1,64}")


def trace_id_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the id of the trace that a call belongs to; empty if its client names none that is valid."""
    request_id = ""
    for key, value in metadata:
        if key == "traceparent" and (found := _TRACEPARENT.fullmatch(str(value))):
            return found["trace_id"]
        if key == REQUEST_ID_KEY and _REQUEST_ID.fullmatch(str(value)):
            request_id = str(value)
    return request_id
