"""What the RPCs of AdminService share: what they work with, and how every mutation ends."""

from dataclasses import dataclass
from typing import Any, TypedDict

from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceServicer
from gatekeeper_client.v1.audit_pb2 import AuditAnchor
from gatekeeper_grpc.auth.api_tokens import ApiTokenCache
from gatekeeper_grpc.auth.checkpoints import CheckpointSigner
from gatekeeper_grpc.auth.client_keys import ClientKeyCache
from gatekeeper_grpc.auth.own_password import OwnPassword
from gatekeeper_grpc.auth.passwords import Passwords
from gatekeeper_grpc.auth.sessions import Sessions
from gatekeeper_grpc.cache.refresher import Refresher
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.mutation import Written
from gatekeeper_grpc.servicers.pacing import Pacer
from gatekeeper_grpc.store.stores import Stores
from gatekeeper_grpc.wire.audit import anchor_to_proto
from gatekeeper_grpc.wire.paging import PageTokens


class MutationFields(TypedDict):
    """The fields that the response of every mutation has."""

    revision: int
    audit_anchor: AuditAnchor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class AdminRpcs(AdminServiceServicer):
    """The base of AdminService's topics."""

    stores: Stores
    """Read and write the database."""
    refresher: Refresher
    """Keeps the snapshot of this instance current."""
    cache: SnapshotCache
    """That snapshot."""
    pacer: Pacer
    """Has previews leave CPU to other calls."""
    passwords: Passwords
    """Hashes passwords."""
    own_password: OwnPassword
    """Changes the password of the caller."""
    sessions: Sessions
    """Begins a session for a caller who must change the password before a login."""
    client_keys: ClientKeyCache
    """The client keys in memory."""
    api_tokens: ApiTokenCache
    """The API tokens in memory."""
    audit_signer: CheckpointSigner | None
    """Signs checkpoints of the audit log. None: this installation has no key for that."""
    page_tokens: PageTokens
    """Makes and reads page tokens."""

    def _refresh_after(self, written: Written[Any]) -> MutationFields:
        """Refresh this instance until it serves a mutation, and return the fields that the response must have.

        A handler cannot answer without these fields, so it cannot forget to refresh.

        Raises:
            Unavailable: The mutation is committed, and this instance cannot show it.
        """
        self.refresher.refresh_after_write(written.revision)
        return {"revision": written.revision, "audit_anchor": anchor_to_proto(written.anchor)}
