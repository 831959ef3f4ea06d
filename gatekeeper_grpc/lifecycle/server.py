"""The composition root: builds one serving instance from its parts, starts it, drains it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial

import grpc
import structlog
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2_grpc

from gatekeeper_client.v1 import admin_service_pb2, auth_service_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from gatekeeper_client.v1.auth_service_pb2_grpc import add_AuthServiceServicer_to_server
from gatekeeper_client.v1.evaluation_service_pb2_grpc import add_EvaluationServiceServicer_to_server
from gatekeeper_grpc.auth.api_tokens import ApiTokenCache
from gatekeeper_grpc.auth.callers import CallerVerifier
from gatekeeper_grpc.auth.checkpoints import key_from_text
from gatekeeper_grpc.auth.client_calls import ClientVerifier
from gatekeeper_grpc.auth.client_keys import ClientKeyCache
from gatekeeper_grpc.auth.credential_refresh import CredentialRefresh
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.auth.lockout import LoginGuard
from gatekeeper_grpc.auth.nonces import Nonces, SharedNonces
from gatekeeper_grpc.auth.own_password import OwnPassword
from gatekeeper_grpc.auth.passwords import Passwords
from gatekeeper_grpc.auth.refused_credentials import RefusedCredentials, refused_api_tokens
from gatekeeper_grpc.auth.sessions import Sessions
from gatekeeper_grpc.auth.tokens import AccessTokens
from gatekeeper_grpc.cache.change_history import ChangeHistory
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.watcher_hub import WatcherHub
from gatekeeper_grpc.config.settings import Settings, SettingsError, variable_of
from gatekeeper_grpc.domain.client_key import EvaluationAccess
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.usage import UsageCounter, UsageWriter
from gatekeeper_grpc.embedded import is_disk_full
from gatekeeper_grpc.instrumentation.counters import USAGE_WAITING_ROWS
from gatekeeper_grpc.interceptors.chain import MAX_AGES_S, MESSAGE_TIMEOUT, STREAM_TIMEOUT, Stages
from gatekeeper_grpc.interceptors.line_samples import MINUTE_S, LineSamples
from gatekeeper_grpc.interceptors.login_checks import LoginChecks
from gatekeeper_grpc.interceptors.policy import POLICIES, check_policies
from gatekeeper_grpc.interceptors.request_scope import log_left_out
from gatekeeper_grpc.lifecycle.call_limits import rate_limits, watcher_limit
from gatekeeper_grpc.lifecycle.key_needs import use_data_keys
from gatekeeper_grpc.lifecycle.keys import Keys, erasure_ledger, load_metrics_token, parse_erasure_keys
from gatekeeper_grpc.lifecycle.limits import Limits, pool_sizes
from gatekeeper_grpc.lifecycle.listeners import ClientListener, ListenerPlan, plans_of, served_elsewhere
from gatekeeper_grpc.lifecycle.secret_watch import Use, watch_secrets
from gatekeeper_grpc.lifecycle.snapshot_sources import SnapshotSources, redis_bus
from gatekeeper_grpc.lifecycle.startup import DEFAULT_TIMEOUTS, EMBEDDED_TIMEOUTS, Startup, StartupTimeouts, State
from gatekeeper_grpc.operations.checkpoint_file import CheckpointFile
from gatekeeper_grpc.operations.health import ADMIN, AUTH, EVALUATION, HEALTH, HealthReporter
from gatekeeper_grpc.operations.health_server import HealthServer
from gatekeeper_grpc.operations.http_server import HttpServer
from gatekeeper_grpc.operations.metrics import InstanceMetrics
from gatekeeper_grpc.operations.reflection import SERVICE_V1, SERVICE_V1ALPHA, ReflectionServicer, descriptors
from gatekeeper_grpc.operations.tls_metrics import TlsMetrics
from gatekeeper_grpc.operations.traces import traces_of
from gatekeeper_grpc.scheduler import Scheduler
from gatekeeper_grpc.servicers.admin.service import AdminServicer
from gatekeeper_grpc.servicers.auth import AuthServicer
from gatekeeper_grpc.servicers.evaluation import EvaluationServicer
from gatekeeper_grpc.servicers.pacing import Pacer
from gatekeeper_grpc.store.audit.head_reporter import AuditHeadReporter
from gatekeeper_grpc.store.credential_changes import credentials_changed, may_change_credentials
from gatekeeper_grpc.store.maintenance import Maintenance
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.quotas import Quotas
from gatekeeper_grpc.store.stores import Stores
from gatekeeper_grpc.transport.admission import CallPools, PoolName
from gatekeeper_grpc.transport.connections import CHECK_CONNECTIONS_EVERY_S
from gatekeeper_grpc.transport.core import CORE_LOG
from gatekeeper_grpc.transport.drain import Drain, GoawayDrain, QuietDrain, Servers
from gatekeeper_grpc.transport.listener import NEW_CALLS, new_server, queued_by_method
from gatekeeper_grpc.transport.tls import CHECK_CERTIFICATE_EVERY_S, ServerTls
from gatekeeper_grpc.wire.paging import PageTokens
from gatekeeper_grpc.wire.watch import watch_message

_log = structlog.get_logger(__name__)

_ADMIN_SERVICE = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
_EVALUATE = f"/{EVALUATION}/EvaluateFlags"
_AUTH_SERVICE = auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"]
_MAINTENANCE_INTERVAL_S = 300.0
_AUDIT_HEAD_INTERVAL_S = 60.0
_CREDENTIAL_USES_INTERVAL_S = 60.0
_USAGE_INTERVAL_S = 60.0
# For what was counted since, when the instance stops.
_USAGE_FINISH_TIMEOUT_S = 1.0
# How long an instance may not know what others let pass.
_RATE_EXCHANGE_INTERVAL_S = 0.5
# How long the last spans may take to be sent: a receiver that is away must not hold up the end.
_LEAST_TRACES_S = 0.25
_MOST_TRACES_S = 2.0
# Within the margin that a process has to stop.
_SCHEDULER_CLOSE_TIMEOUT_S = 1.0


class GatekeeperServer:
    """One serving instance, from `start` to `stop`.

    Args:
        settings: What the operator decided.
        dsn: The database.
        keys: Sign and verify access tokens, encrypt what the database stores.
        prepare: Makes the database of a DSN, which may have changed, fit to serve from, before anything is loaded or
            written; raises why it is not, and `Unavailable` when the database does not answer.
        shares_port: Other workers serve on the same port, and their supervisor serves health.
        is_embedded: Whether the database is the embedded one; None: as the settings say, which name it to a worker.
        timeouts: How long to wait for the database before the last-known-good snapshot is served; None: as it suits the
            database.
        before_serving: Called once, when the first snapshot is there and no call has been served.

    Raises:
        SettingsError: The certificate of TLS cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        dsn: str,
        keys: Keys,
        prepare: Callable[[str], object] = lambda _: None,
        shares_port: bool = False,
        is_embedded: bool | None = None,
        timeouts: StartupTimeouts | None = None,
        before_serving: Callable[[], None] = lambda: None,
    ) -> None:
        check_policies(POLICIES, served_files())
        self._settings = settings
        self._before_serving = before_serving
        self._is_embedded = settings.is_embedded if is_embedded is None else is_embedded
        self._timeouts = timeouts or (EMBEDDED_TIMEOUTS if settings.is_embedded else DEFAULT_TIMEOUTS)
        self._limits = Limits.of(settings)
        self._keys = keys
        self.tls = ServerTls.of(settings)
        self.scheduler = Scheduler()
        self._build_cache()
        self._build_stores(dsn)
        self._build_startup(prepare)
        self._build_authentication()
        self.secrets = watch_secrets(settings, self._uses_of_secrets())
        self._build_operations()
        self._build_listeners(shares_port=shares_port)

    def _build_cache(self) -> None:
        """Build what serves: evaluation reads the cache, watchers hear of its changes."""
        settings = self._settings
        self.watchers = WatcherHub(ChangeHistory(), watch_message, capacity=settings.max_watchers)
        self.cache = SnapshotCache(
            stale_after_s=settings.stale_after_s,
            max_waiters=max(1, settings.evaluation_threads // 4),
            published=self._published,
        )

    def _build_stores(self, dsn: str) -> None:
        """Build what writes: the database, mutations, and what announces them."""
        settings, keys = self._settings, self._keys
        self.database = Database(
            dsn,
            pool_size=settings.db_pool_size,
            pool_min_size=settings.db_pool_min_size,
            pool_idle_s=settings.db_pool_idle_s,
            pool_wait_s=settings.db_pool_wait_s,
            statement_timeout_s=settings.db_statement_timeout_s,
            hung_after_s=settings.db_hung_after_s,
            is_storage_full=partial(is_disk_full, settings.data_dir) if settings.is_embedded else lambda: False,
        )
        self._bus = redis_bus(settings, keys)
        self._ledger = erasure_ledger(settings, keys.erasure)
        self.mutations = MutationRunner(
            self.database,
            keys.data,
            served_revision=self.cache.served_revision,
            announce=self._bus.announce if self._bus else lambda _: None,
        )
        self.stores = Stores(
            self.database,
            self.mutations,
            sealer=keys.data,
            recorder=self._ledger,
            quotas=Quotas(flags=settings.max_flags, segments=settings.max_segments, users=settings.max_users),
        )
        self._usage_counter = UsageCounter()
        self.usage = UsageWriter(self._usage_counter, self.stores.usage.add, waiting=USAGE_WAITING_ROWS.set)

    def _build_startup(self, prepare: Callable[[str], object]) -> None:
        """Build what fills the cache: the sources of snapshots, and the start-up that opens them."""
        settings, keys = self._settings, self._keys
        self.sources = SnapshotSources(settings, self.cache, self.database, self.mutations, bus=self._bus, keys=keys)
        self.startup = Startup(
            self.cache,
            self.sources.storages,
            sealer=keys.data,
            prepare=lambda: prepare(self.database.dsn),
            open_database=self._open_database,
            timeouts=self._timeouts,
            expect=self.sources.refresher.expect,
        )

    def _build_authentication(self) -> None:
        """Build what knows callers: admin users and their tools by tokens, clients by keys."""
        settings = self._settings
        self.login_guard = LoginGuard()
        self._passwords = Passwords(cost=settings.bcrypt_cost)
        self._metrics_token = load_metrics_token(settings)
        self._page_tokens = PageTokens([key.secret.encode() for key in self._keys.tokens.keys])
        self._access_tokens = AccessTokens(self._keys.tokens, ttl=timedelta(seconds=settings.access_token_ttl_s))
        self._refused_credentials = RefusedCredentials()
        self.client_keys = ClientKeyCache(self.stores.client_keys, self._keys.data.open)
        shared = self._bus.budgets if self._bus else None
        self.rate_limits = rate_limits(settings, is_embedded=self._is_embedded, shared=shared)
        self._refused_api_tokens = refused_api_tokens()
        self.api_tokens = ApiTokenCache(self.stores.api_tokens, self._refused_api_tokens)
        self._has_warned = False
        self._shared_nonces = self._share_nonces()
        self._credential_refresh = CredentialRefresh(
            partial(credentials_changed, self.database), self._load_credentials, checked=self._end_streams_of_keys
        )

    def _uses_of_secrets(self) -> Mapping[str, Use]:
        replica, bus, signer = self.sources.replica, self._bus, self._keys.audit
        return {
            "database_url": self.database.use,
            "jwt_keys": self._use_token_keys,
            "data_keys": self._use_data_keys,
            "metrics_token": self._metrics_token.use,
            "erasure_key": lambda text: self._ledger.use(parse_erasure_keys(text)),
            **({"read_database_url": replica.use} if replica else {}),
            **({"redis_url": bus.use_url} if bus else {}),
            **({"audit_signing_key": lambda text: signer.use(key_from_text(text))} if signer else {}),
        }

    def _use_token_keys(self, text: str) -> None:
        ring = KeyRing.parse(text)
        self._access_tokens.use_keys(ring)
        self._page_tokens.use([key.secret.encode() for key in ring.keys])

    def _use_data_keys(self, text: str) -> None:
        use_data_keys(self._keys.data, KeyRing.parse(text), self.database)
        if self._bus:
            self._bus.use_names(self._keys.data.fingerprints)

    def _audit_head(self) -> AuditHeadReporter:
        file, signer = self._settings.audit_checkpoint_file, self._keys.audit
        if file is None:
            return AuditHeadReporter(self.stores.audit, self.database)
        if signer is None:
            raise SettingsError(f"{variable_of('audit_checkpoint_file')} needs {variable_of('audit_signing_key')}")
        return AuditHeadReporter(self.stores.audit, self.database, keep=CheckpointFile(file, signer).keep)

    def _reasons(self) -> Iterator[str]:
        """Yield what operators should know although the instance serves."""
        yield from self.startup.reasons()
        yield from self.secrets.faults()

    def _build_operations(self) -> None:
        """Build what operators see: metrics, readiness, health, the audit head in the log."""
        settings = self._settings
        self._line_samples = LineSamples()
        self.pools = CallPools(pool_sizes(settings), watchers=watcher_limit(settings))
        self.audit_head = self._audit_head()
        self._traces = traces_of(settings)
        self.metrics = InstanceMetrics(
            settings,
            self.cache,
            database=self.database,
            pools=self.pools,
            watchers=self.watchers,
            refused_credentials=self._refused_credentials.counts,
            refused_api_tokens=self._refused_api_tokens.counts,
            rate_limits=self.rate_limits.decisions,
            unshared_nonces=self._shared_nonces.unshared if self._shared_nonces else lambda: 0,
            audit=self.audit_head,
            start_reasons=self._reasons,
            secret_faults=lambda: sum(1 for _ in self.secrets.faults()),
            writers=self.sources.writers,
            open_connections=self._count_connections,
            max_connections=self._limits.max_connections,
            further=[TlsMetrics(self.tls, CORE_LOG.failed_handshakes)] if self.tls else [],
        )
        self.health = HealthReporter(self.metrics.readiness)

    def _build_listeners(self, *, shares_port: bool) -> None:
        """Build what listens: gRPC, gRPC health, HTTP for operators."""
        plans = plans_of(self._settings, self._limits)
        servers = [self._grpc_server(plan, served_elsewhere(plan, plans), shares_port=shares_port) for plan in plans]
        self.listeners = [ClientListener(plan, server) for plan, server in zip(plans, servers, strict=True)]
        self.drain: Drain = QuietDrain(self.pools.hold) if self.tls else GoawayDrain(self.pools.hold)
        self._health_server = None if shares_port else HealthServer(self.health, reflection=self._settings.reflection)
        self._http_server = HttpServer(
            self.metrics, is_alive=self._is_alive, readiness=self.metrics.readiness, token=self._metrics_token
        )
        self.health_port = self.ops_port = 0

    @property
    def port(self) -> int:
        """Where evaluation is served; 0 of a Unix socket."""
        return self.listeners[0].port

    @property
    def admin_port(self) -> int:
        """Where AdminService and AuthService are served; 0 of a Unix socket."""
        return self.listeners[-1].port

    @property
    def client_ports(self) -> Mapping[str, int]:
        """The ports that clients call, as the log names them."""
        return {listener.plan.field.replace("listen", "port"): listener.port for listener in self.listeners}

    @property
    def servers(self) -> Servers:
        """Those that clients call, by their ports; without those on Unix sockets, whose connections look alike."""
        return {listener.port: listener.server for listener in self.listeners if listener.port}

    def _is_alive(self) -> bool:
        return all(listener.probe.answers() for listener in self.listeners)

    def start(self) -> None:
        """Open the database, load the first snapshot, serve.

        If the database is away, or slow to load, and a snapshot is stored, serve that one until the database is there.

        Raises:
            ListenError: An address cannot be listened on.
            Exception: What `prepare` raises, if the database is unfit, or away while no snapshot is stored.
        """
        try:
            self.scheduler.start()
            self.secrets.start(self.scheduler)
            self.startup.start()
            self.startup.wait()
            # Not before: a bound port takes calls, and workers share one.
            self._listen(self._settings, self.tls)
        except BaseException:
            self._close(by=time.monotonic())
            raise
        if self._traces:
            self._traces.start()
        self.sources.start_writing(self.scheduler)
        if self.tls:
            self.scheduler.add("certificate", self.tls.check, interval_s=CHECK_CERTIFICATE_EVERY_S, blocks=True)
        self.health.start(self.scheduler)
        self.scheduler.add("connections", self._check_connections, interval_s=CHECK_CONNECTIONS_EVERY_S, blocks=False)
        self._start_rate_exchange()
        tell_left_out = partial(log_left_out, self._line_samples)
        # Without a database, too: it bounds what is kept.
        self.scheduler.add("usage", self.usage.run, interval_s=_USAGE_INTERVAL_S, blocks=True)
        self.scheduler.add("line_samples", tell_left_out, interval_s=MINUTE_S, blocks=False)
        self.watchers.start()
        self._before_serving()
        for listener in self.listeners:
            listener.start()
        if self._health_server:
            self._health_server.start()

    def _listen(self, settings: Settings, tls: ServerTls | None) -> None:
        for listener in self.listeners:
            listener.bind(tls)
        if self._health_server:
            self.health_port = self._health_server.bind(settings.health_listen, tls if settings.health_tls else None)
        self.ops_port = self._http_server.start(
            settings.ops_listen, tls.http_context if tls and settings.ops_tls else None
        )

    def _start_rate_exchange(self) -> None:
        exchange, interval_s = self.rate_limits.exchange, _RATE_EXCHANGE_INTERVAL_S
        if exchange is not None:
            self.scheduler.add(
                "rate_exchange", exchange.run, interval_s=interval_s, blocks=True, is_due=exchange.has_work
            )

    def _published(self, snapshot: Snapshot) -> None:
        """Tell those who want to know of a new revision; does not block."""
        self.watchers.published(snapshot)
        if may_change_credentials(snapshot.commits):
            self._credential_refresh.request()

    def _load_credentials(self) -> None:
        self.client_keys.refresh()
        self.api_tokens.refresh()
        self._warn_of_bearer_keys()

    def _end_streams_of_keys(self) -> None:
        self.pools.open_streams.end_of_keys(lambda key_id: self.client_keys.find(key_id) is not None)

    def _warn_of_bearer_keys(self) -> None:
        """Warn once of secrets that travel unencrypted, unless TLS ends in front of this server."""
        listen = self._settings.listen
        is_safe = listen.is_local or self.tls is not None
        if not self._has_warned and not is_safe and self.client_keys.has_bearer_keys():
            self._has_warned = True
            _log.warning(
                "bearer_keys_without_tls",
                listen=str(listen),
                advice="set GATEKEEPER_TLS_CERT_FILE, let a proxy with TLS accept the calls, or use keys of"
                " CLIENT_KEY_TYPE_SIGNING",
            )

    def _open_database(self) -> None:
        """Start to read from the database and to write to it."""
        self.database.open()
        # First: the start is over as soon as there is a snapshot, and who comes then must be known.
        self._credential_refresh.start()
        self.sources.start()
        maintenance = Maintenance(self.database, self.stores.logins, self.stores.usage)
        add = self.scheduler.add
        add("maintenance", maintenance.run, interval_s=_MAINTENANCE_INTERVAL_S, blocks=True)
        add("audit_head", self.audit_head.run, interval_s=_AUDIT_HEAD_INTERVAL_S, blocks=True)
        add("credential_uses", self._flush_uses, interval_s=_CREDENTIAL_USES_INTERVAL_S, blocks=True)

    def _flush_uses(self) -> None:
        self.client_keys.uses.flush()
        self.api_tokens.uses.flush()

    def _finish_usage(self, *, within_s: float) -> None:
        """Write what was counted; what cannot be written is lost, and the log says how much."""
        error = None
        try:
            self.usage.finish(within_s=within_s)
        except GatekeeperError as exc:
            error = str(exc)
        if lost := self.usage.waiting_decisions:
            _log.warning("usage_lost", decisions=lost, error=error)

    def stop(self, *, announced: bool = True) -> None:
        """Drain: report NOT_SERVING, continue to serve for `drain_s`, then end calls within the grace period.

        Unannounced, it stops at once: another worker takes over the port, so health must not report NOT_SERVING there.
        """
        if announced:
            self.metrics.drain()
            self.health.drain()
            time.sleep(self._settings.drain_s)
        self.health.close()
        self.watchers.close()
        for listener in self.listeners:
            listener.probe.close()
        by = time.monotonic() + self._settings.grace_s
        self._end_calls(by=by)
        self._close(by=by)
        _log.info("stopped")

    def _count_connections(self) -> int:
        return sum(listener.sweeper.count() for listener in self.listeners)

    def _check_connections(self) -> None:
        for listener in self.listeners:
            listener.sweeper.check()
        if self._health_server:
            self._health_server.sweeper.check()

    def _close(self, *, by: float) -> None:
        """Close all parts, each before those that it depends on; what can wait is done at the time `by`."""
        if self._traces:
            self._traces.close(timeout_s=min(max(_LEAST_TRACES_S, by - time.monotonic()), _MOST_TRACES_S))
        is_open = self.startup.state is State.OPEN
        self.startup.close()
        if is_open:
            self.audit_head.close()
        self._finish_usage(within_s=_USAGE_FINISH_TIMEOUT_S if is_open else 0.0)
        for listener in self.listeners:
            listener.sweeper.close()
        self.pools.close()
        if self._health_server:
            self._health_server.stop()
        self._credential_refresh.close()
        self.secrets.close()
        self.sources.close()
        self.scheduler.close(timeout_s=_SCHEDULER_CLOSE_TIMEOUT_S)
        self.database.close()
        self._http_server.close()

    def _end_calls(self, *, by: float) -> None:
        """Have clients disconnect; end the calls that are left, at the time `by` at the latest."""
        self.drain.run(self.servers, by=by)
        stopped = [listener.server.stop(max(0.0, by - time.monotonic())) for listener in self.listeners]
        for each in stopped:
            each.wait(by - time.monotonic() + 1)

    def _stages(self, elsewhere: Mapping[str, str], evaluation: EvaluationServicer) -> Stages:
        settings = self._settings
        return Stages(
            elsewhere=elsewhere,
            verify_token=CallerVerifier(self._access_tokens, self.api_tokens).verify,
            check_caller=self.database.check_caller,
            note_lapsed=self.api_tokens.note_lapsed,
            pools=self.pools,
            clients=self._client_verifier(),
            rate_limits=self.rate_limits,
            samples=self._line_samples,
            message_checks=LoginChecks(self.login_guard).by_method(),
            answers={_EVALUATE: evaluation.answer_at_once} if settings.answer_at_once else {},
            message_timeout=replace(MESSAGE_TIMEOUT, limit_s=settings.body_timeout_s),
            stream_timeout=replace(STREAM_TIMEOUT, limit_s=settings.stream_idle_timeout_s),
            max_ages_s={
                **MAX_AGES_S,
                PoolName.BULK: settings.bulk_max_age_s,
                PoolName.PREVIEW: settings.bulk_max_age_s,
                PoolName.WATCH: settings.watch_max_age_s,
            },
        )

    def _grpc_server(self, plan: ListenerPlan, elsewhere: Mapping[str, str], *, shares_port: bool) -> grpc.Server:
        pool, most = self.pools[PoolName.OPERATIONS], plan.connections.most
        evaluation, proxies = self._evaluation_servicer(), self._settings.trusted_cidrs or None
        stages = self._stages(elsewhere, evaluation)
        new_calls = NEW_CALLS.of_each(len(self._settings.client_addresses))
        server = new_server(
            pool, stages, max_connections=most, shares_port=shares_port, new_calls=new_calls, proxies=proxies
        )
        if EVALUATION in plan.services:
            # Not registered by name: grpcio would not tell the authority, which signatures cover.
            add_EvaluationServiceServicer_to_server(evaluation, server)
        if ADMIN in plan.services:
            add_AdminServiceServicer_to_server(self._admin_servicer(), queued_by_method(server, _ADMIN_SERVICE))
            add_AuthServiceServicer_to_server(AuthServicer(self._sessions()), queued_by_method(server, _AUTH_SERVICE))
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, server)
        if plan.reflection:
            ReflectionServicer(plan.services).add_to(server)
        return server

    def _evaluation_servicer(self) -> EvaluationServicer:
        return EvaluationServicer(self.cache, self.watchers, self._pacer(), self._usage_counter)

    def _pacer(self) -> Pacer:
        unary_calls = self.pools[PoolName.EVALUATION]
        return Pacer(unary_calls.idle_s, budget_s=self._settings.bulk_cpu_budget_s)

    def _admin_servicer(self) -> AdminServicer:
        stores = self.stores
        return AdminServicer(
            stores=stores,
            refresher=self.sources.refresher,
            cache=self.cache,
            pacer=self._pacer(),
            passwords=self._passwords,
            own_password=OwnPassword(stores.admin_users, self._passwords, self.login_guard, stores.logins),
            client_keys=self.client_keys,
            api_tokens=self.api_tokens,
            sessions=self._sessions(),
            audit_signer=self._keys.audit,
            page_tokens=self._page_tokens,
        )

    def _client_verifier(self) -> ClientVerifier:
        return ClientVerifier(
            self.client_keys,
            self._shared_nonces or Nonces(),
            self._refused_credentials,
            access=EvaluationAccess(self._settings.evaluation_access),
            allow_unsigned_bodies=self._settings.unsigned_bodies,
        )

    def _share_nonces(self) -> SharedNonces | None:
        mode = self._settings.shared_nonces
        if self._bus is None or mode == "off":
            return None
        return SharedNonces(Nonces(), self._bus.nonces, is_strict=mode == "strict")

    def _sessions(self) -> Sessions:
        return Sessions(
            self.stores.logins,
            self._passwords,
            self._access_tokens,
            self.login_guard,
            refresh_ttl=timedelta(seconds=self._settings.refresh_token_ttl_s),
            session_max_age=timedelta(seconds=self._settings.session_max_age_s),
        )


def served_files() -> list[FileDescriptor]:
    """Return the files that define the services of a server."""
    services = (ADMIN, AUTH, EVALUATION, HEALTH, SERVICE_V1, SERVICE_V1ALPHA)
    return [descriptors().file_of(service) for service in services]
