"""The etag: an opaque name of one state of one resource, used to detect concurrent changes."""

import hashlib
from base64 import urlsafe_b64encode

from gatekeeper_grpc.domain.errors import Changed


def etag(kind: str, identity: int, revision: int) -> str:
    """Name one state of one resource, in 16 opaque characters, so that no client parses it.

    Identity and revision make it unique: a revision is never issued twice.
    """
    digest = hashlib.sha256(f"{kind}:{identity}:{revision}".encode()).digest()
    return urlsafe_b64encode(digest[:12]).decode()


def check_etag(resource: str, seen: str, *, current: str) -> None:
    """Check that a resource, such as "flag 'x'", is in the state that its editor has read. Empty `seen`: any state.

    Raises:
        Changed: It is in another state; names the current etag.
    """
    if seen and seen != current:
        raise Changed.since_read(resource, current_etag=current)
