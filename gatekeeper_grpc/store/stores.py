"""All stores of an instance, over one database and one mutation runner."""

from gatekeeper_grpc.domain.sealer import Sealer
from gatekeeper_grpc.store.admin_users import AdminUserStore
from gatekeeper_grpc.store.api_tokens import ApiTokenStore
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.client_keys import ClientKeyStore
from gatekeeper_grpc.store.configuration.store import ConfigurationStore
from gatekeeper_grpc.store.erasure import ErasureStore, Recorder
from gatekeeper_grpc.store.exports import ExportStore
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.members import MemberStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.quotas import Quotas
from gatekeeper_grpc.store.segments import SegmentStore
from gatekeeper_grpc.store.targets import TargetStore
from gatekeeper_grpc.store.usage import UsageStore
from gatekeeper_grpc.store.users import UserStore


class Stores:
    """Reads and writes everything except snapshots.

    Args:
        database: The database.
        mutations: Carries out the mutations.
        sealer: Encrypts client secrets.
        recorder: Records erasures outside the database.
        quotas: How much an installation may have.
    """

    def __init__(
        self, database: Database, mutations: MutationRunner, *, sealer: Sealer, recorder: Recorder, quotas: Quotas
    ) -> None:
        self.logins = LoginStore(database)
        self.flags = FlagStore(database, mutations, quotas=quotas)
        self.targets = TargetStore(database, mutations)
        self.segments = SegmentStore(database, mutations, quotas=quotas)
        self.members = MemberStore(database, mutations)
        self.configurations = ConfigurationStore(database, mutations, quotas=quotas)
        self.users = UserStore(database, mutations, quotas=quotas)
        self.admin_users = AdminUserStore(database, mutations)
        self.client_keys = ClientKeyStore(database, mutations, sealer)
        self.api_tokens = ApiTokenStore(database, mutations)
        self.erasures = ErasureStore(database, mutations, recorder)
        self.exports = ExportStore(database)
        self.audit = AuditStore(database)
        self.usage = UsageStore(database)

    def current_revision(self) -> int:
        """Read the current revision.

        Raises:
            Unavailable: The database cannot be reached.
        """
        return self.audit.head().revision
