"""All stores of an instance, over one database and one ledger."""

from gatekeeper_grpc.store.admin_users import AdminUserStore
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.client_keys import ClientKeyStore
from gatekeeper_grpc.store.erasure import ErasureStore, Recorder
from gatekeeper_grpc.store.exports import ExportStore
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.members import MemberStore
from gatekeeper_grpc.store.mutations import Ledger, Sealer
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.segments import SegmentStore
from gatekeeper_grpc.store.targets import TargetStore
from gatekeeper_grpc.store.users import UserStore


class Stores:
    """Reads and writes everything but snapshots.

    Args:
        database: Where it is kept.
        ledger: Carries out the mutations.
        sealer: Encrypts client secrets.
        recorder: Remembers outside the database who was erased.
    """

    def __init__(self, database: Database, ledger: Ledger, *, sealer: Sealer, recorder: Recorder) -> None:
        self.logins = LoginStore(database)
        self.flags = FlagStore(database, ledger)
        self.targets = TargetStore(database, ledger)
        self.segments = SegmentStore(database, ledger)
        self.members = MemberStore(database, ledger)
        self.users = UserStore(database, ledger)
        self.admin_users = AdminUserStore(database, ledger)
        self.client_keys = ClientKeyStore(database, ledger, sealer)
        self.erasures = ErasureStore(database, ledger, recorder)
        self.exports = ExportStore(database)
        self.audit = AuditStore(database)
