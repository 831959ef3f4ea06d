"""Signing evaluation calls as a client does that follows the contract, or one that does not."""

import hashlib
import secrets
import time
from dataclasses import dataclass, field

from gatekeeper_grpc.auth.signatures import sign

AUTHORITY = "flags.example:50051"
EVALUATE = "/gatekeeper.v1.EvaluationService/EvaluateFlags"

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Signer:
    """A client key that signs."""

    key_id: str
    secret: bytes = field(repr=False)

    def signed(
        self,
        body: bytes,
        *,
        off_s: int = 0,
        nonce: str = "",
        content: str = "",
        authority: str = AUTHORITY,
        method: str = EVALUATE,
    ) -> Metadata:
        """Return the metadata that signs a call: now, with a new nonce and the hash of its body, unless told."""
        parts = {
            "key_id": self.key_id,
            "timestamp": str(int(time.time()) + off_s),
            "nonce": nonce or secrets.token_hex(16),
            "content_sha256": content or hashlib.sha256(body).hexdigest(),
        }
        signature = sign(self.secret, authority=authority, method=method, **parts)
        headers = {**parts, "signature": signature}
        return tuple((f"x-gatekeeper-{name.replace('_', '-')}", value) for name, value in headers.items())
