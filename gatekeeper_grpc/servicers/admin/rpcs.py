"""What the RPCs of AdminService share: what they work with, and how every mutation ends."""

from typing import Any, TypedDict

from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceServicer
from gatekeeper.v1.audit_pb2 import AuditAnchor
from gatekeeper_grpc.auth.checkpoints import CheckpointSigner
from gatekeeper_grpc.auth.client_keys import ClientKeyCache
from gatekeeper_grpc.auth.own_password import OwnPassword
from gatekeeper_grpc.auth.passwords import Passwords
from gatekeeper_grpc.cache.refresher import Refresher
from gatekeeper_grpc.domain.mutation import Written
from gatekeeper_grpc.store.stores import Stores
from gatekeeper_grpc.wire.audit import anchor_to_proto
from gatekeeper_grpc.wire.paging import PageTokens


class MutationFields(TypedDict):
    """The fields that the response of every mutation has."""

    revision: int
    audit_anchor: AuditAnchor | None


class AdminRpcs(AdminServiceServicer):
    """The base of AdminService's topics.

    Args:
        stores: Read and write the database.
        refresher: Keeps the snapshot of this instance current.
        passwords: Hashes passwords.
        own_password: Changes the password of the caller.
        client_keys: The client keys in memory.
        audit_signer: Signs checkpoints of the audit log. None: this installation has no key for that.
        page_tokens: Makes and reads page tokens.
    """

    def __init__(
        self,
        stores: Stores,
        *,
        refresher: Refresher,
        passwords: Passwords,
        own_password: OwnPassword,
        client_keys: ClientKeyCache,
        audit_signer: CheckpointSigner | None,
        page_tokens: PageTokens,
    ) -> None:
        self.stores = stores
        self.refresher = refresher
        self.passwords = passwords
        self.own_password = own_password
        self.client_keys = client_keys
        self.audit_signer = audit_signer
        self.page_tokens = page_tokens

    def _refresh_after(self, written: Written[Any]) -> MutationFields:
        """Refresh this instance until it serves a mutation, and return the fields that the response must have.

        A handler cannot answer without these fields, so it cannot forget to refresh.

        Raises:
            Unavailable: The mutation is committed, and this instance cannot show it.
        """
        self.refresher.refresh_after_write(written.revision)
        return {"revision": written.revision, "audit_anchor": anchor_to_proto(written.anchor)}
