"""The etag: an opaque name of one state of one resource, by which an editor's change finds out what it never saw."""

import hashlib
from base64 import urlsafe_b64encode

from gatekeeper_grpc.domain.errors import Changed


def etag(kind: str, identity: int, revision: int) -> str:
    """Name one state of one resource, opaquely: 16 characters that clients cannot be tempted to parse.

    Identity and revision make it unique: a revision is never issued twice.
    """
    digest = hashlib.sha256(f"{kind}:{identity}:{revision}".encode()).digest()
    return urlsafe_b64encode(digest[:12]).decode()


def check_etag(resource: str, seen: str, *, current: str) -> None:
    """Check that a resource, such as "flag 'x'", is as its editor has seen it; empty: whatever state it is in.

    `Changed` names the current etag.
    """
    if seen and seen != current:
        raise Changed.since_read(resource, current_etag=current)
