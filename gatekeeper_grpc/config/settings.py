"""All settings, each with default, unit and meaning. The only module that reads the environment."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.config.networks import Networks
from gatekeeper_grpc.config.secret_file import SUFFIX, SecretFile
from gatekeeper_grpc.config.setting_errors import PREFIX, fault_of, nearest_variable
from gatekeeper_grpc.domain.rate import Rate

# No duration is longer: clocks and timers overflow at some point above.
_YEAR_S = 31_536_000
# Without a user: its password would be in log lines.
_OTLP_ENDPOINT = re.compile(r"https?://[^/@\s]+:\d{1,5}/?")
# Of evaluations of one address, if the operator leaves it to us.
_ADDRESS_RATE = "1000/min"
# Of the client commands, which read them without this module.
_CLIENT_VARIABLES = (
    *("GATEKEEPER_SERVER", "GATEKEEPER_TOKEN", "GATEKEEPER_TOKEN_FILE"),
    *("GATEKEEPER_CONTEXT", "GATEKEEPER_SERVER_CA_FILE", "GATEKEEPER_CLIENT_CERT_FILE", "GATEKEEPER_CLIENT_KEY_FILE"),
)


def _listen_address(value: object) -> object:
    return ListenAddress.parse(value.strip()) if isinstance(value, str) else value


def _rate(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    return None if text == "off" else Rate.parse(text)


def _address_rate(value: object) -> object:
    return _rate(_ADDRESS_RATE if isinstance(value, str) and value.strip().lower() == "on" else value)


def _otlp_endpoint(value: str | None) -> str | None:
    if value is not None and not _OTLP_ENDPOINT.fullmatch(value):
        raise ValueError("must be http://host:port or https://host:port, of a receiver of OTLP over gRPC")
    return value


def _networks(value: object) -> object:
    return Networks.parse(value) if isinstance(value, str) else value


# NoDecode: pydantic-settings would take the text for JSON, because the type is a dataclass.
Address = Annotated[ListenAddress, NoDecode, BeforeValidator(_listen_address)]
OptionalAddress = Annotated[ListenAddress | None, NoDecode, BeforeValidator(_listen_address)]
RateLimit = Annotated[Rate | None, NoDecode, BeforeValidator(_rate)]
AddressRateLimit = Annotated[Rate | None, NoDecode, BeforeValidator(_address_rate)]


class SettingsError(Exception):
    """A setting has an invalid value. The message names the variable and never shows a secret."""


class Settings(BaseSettings):
    """What an operator can set, read from environment variables. An empty one counts as absent.

    A secret may be in a file instead, which the variable with the suffix _FILE names.

    Durations are in seconds, addresses are host:port or unix:path. A rate such as "5/min burst 20" allows 20 calls at
    once and then 5 a minute; without a burst, as many at once as in one unit, s or min. "off": no limit.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        # What a template passes for a variable that nobody set.
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    database_url: SecretStr | None = Field(default=None, validation_alias="DATABASE_URL")
    """PostgreSQL, as a libpq URI. Of several hosts, the server finds the one that takes writes, and follows it. Absent:
    an embedded PostgreSQL under GATEKEEPER_DATA_DIR.
    """
    read_database_url: SecretStr | None = Field(default=None, validation_alias="READ_DATABASE_URL")
    """A read replica, as a libpq URI, for loading whole snapshots. It may lag. Absent: none."""
    migration_database_url: SecretStr | None = None
    """The database as the role that owns the schema, if the serving role is a lesser one: for `gatekeeper migrate` and
    `gatekeeper audit archive`. Absent: DATABASE_URL.
    """
    require_least_privilege: bool = False
    """Whether to refuse to serve with a database role that can rewrite the audit log."""
    data_dir: Path = Path(".gatekeeper")
    """Directory of the embedded database and of generated secrets."""
    snapshot_file: Path | None = None
    """File of the last-known-good snapshot, for a start without the database. Instances on one machine may share it.
    Absent: `snapshot` in GATEKEEPER_DATA_DIR.
    """
    redis_url: SecretStr | None = Field(default=None, validation_alias="REDIS_URL")
    """Redis to announce changes over, in addition to PostgreSQL, to keep the last-known-good snapshot in, and to count
    calls in for the rate limits of all instances: redis://[user:password@]host[:port][/db], rediss:// for TLS,
    unix:///path, or redis+sentinel://host,host/service[/db]. Redis Cluster is not supported. Absent: none.
    """
    pg_bin: Path | None = None
    """Directory of the programs of the embedded PostgreSQL. Absent: the bundled ones."""
    listen: Address = ListenAddress(host="127.0.0.1", port=50051)
    """Address of the gRPC services: host:port, or unix:path with one worker. Port 0: any free one."""
    admin_listen: OptionalAddress = None
    """Address of AdminService and AuthService, as GATEKEEPER_LISTEN, which then serves evaluation alone. Both have the
    same TLS. Absent: all are served on GATEKEEPER_LISTEN.
    """
    health_listen: Address = ListenAddress(host="127.0.0.1", port=50052)
    """Address of a server for gRPC health alone, as GATEKEEPER_LISTEN. It answers even if the main server is saturated.
    """
    ops_listen: Address = ListenAddress(host="127.0.0.1", port=9464)
    """Address of `/metrics`, `/livez` and `/readyz` over HTTP: host:port. Keep it private."""
    tls_cert_file: Path | None = None
    """Certificate of the server for GATEKEEPER_LISTEN and GATEKEEPER_ADMIN_LISTEN, followed by those that lead to its
    issuer, in PEM. A new one is used within 5 s, without a restart. Absent: no TLS.
    """
    tls_key_file: Path | None = None
    """Private key of GATEKEEPER_TLS_CERT_FILE in PEM, without a passphrase."""
    tls_client_ca_file: Path | None = None
    """Certificates, in PEM, of which one must have issued the certificate of each client; its name is in the log of its
    calls. Absent: clients need no certificate.
    """
    tls_min_version: Literal["1.2", "1.3"] = "1.3"
    """Oldest version of TLS that is accepted: 1.3 or 1.2."""
    require_tls: bool = False
    """Whether to refuse to serve gRPC without TLS on an address that is neither loopback nor a Unix socket."""
    health_tls: bool = False
    """Whether GATEKEEPER_HEALTH_LISTEN speaks TLS, with the same certificate. Clients need none."""
    ops_tls: bool = False
    """Whether GATEKEEPER_OPS_LISTEN speaks HTTPS, with the same certificate. Clients need none."""
    metrics_token: SecretStr | None = None
    """What `/metrics` asks for as `authorization: Bearer ...`: 16 or more printable ASCII characters. Absent: nothing.
    """
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that serve on one port; about one per core. With more than one, a supervisor replaces those that die or
    hang.
    """
    reflection: bool = True
    """Whether clients may read the contract by server reflection."""
    admin_reflection: bool | None = None
    """The same on GATEKEEPER_ADMIN_LISTEN. Absent: as GATEKEEPER_REFLECTION."""
    jwt_keys: SecretStr | None = None
    """Keys that sign access tokens, newest first: kid:secret[,kid:secret...], each secret 32 bytes or more. Absent:
    those in GATEKEEPER_DATA_DIR, which are generated if the database is embedded.
    """
    data_keys: SecretStr | None = None
    """Keys that encrypt client secrets and stored responses, newest first, in the form of GATEKEEPER_JWT_KEYS. Absent:
    those in GATEKEEPER_DATA_DIR, which are generated if the database is embedded.
    """
    audit_signing_key: SecretStr | None = None
    """Key that signs audit checkpoints (Ed25519): 32 random bytes in base64. Absent: the one in GATEKEEPER_DATA_DIR,
    which is generated if the database is embedded. Without a key there are no checkpoints.
    """
    audit_checkpoint_file: Path | None = None
    """File that has the newest signed checkpoint of the audit log, replaced within a minute after a change. Needs
    GATEKEEPER_AUDIT_SIGNING_KEY. Absent: none.
    """
    erasure_key: SecretStr | None = None
    """Keys that name people in the erasure ledger, newest first, in the form of GATEKEEPER_JWT_KEYS; one may be a
    secret alone, whose kid is `unnamed`. Anyone who has keys and ledger can recognise an erased id. Absent: those in
    GATEKEEPER_DATA_DIR, which are generated if the database is embedded.
    """
    erasure_ledger: Path | None = None
    """File that records erasures outside the database, so that a restore does not bring erased people back. Absent:
    `erasures` in GATEKEEPER_DATA_DIR.
    """
    admin_password: SecretStr | None = None
    """Password of the first admin user, `admin`, who is created if there is none: 12 to 1,024 characters. Absent:
    generated if the database is embedded.
    """
    kernel: Annotated[Literal["auto", "off"], BeforeValidator(str.lower)] = "auto"
    """Who draws the users of a rollout. auto: the kernel in C, if it was built and runs here, else Python. off: Python.
    Both draw the same users.
    """
    evaluation_access: Annotated[Literal["open", "key", "signed"], BeforeValidator(str.lower)] = "open"
    """Who may evaluate. open: anybody who reaches the port. key: calls with a bearer key or a signature. signed: calls
    with a signature alone.
    """
    allow_unsigned_bodies: bool | None = None
    """Whether the signature of a unary call may leave out the body (UNSIGNED). It must not if
    GATEKEEPER_EVALUATION_ACCESS is signed. Absent: it may if that is not signed.
    """
    shared_nonces: Annotated[Literal["off", "on", "strict"], BeforeValidator(str.lower)] = "off"
    """Whether a signed call is served once by all instances and workers together, which takes a question to Redis. off:
    once by each worker. on: while Redis is away, once by each worker. strict: while Redis is away, signed calls are
    refused. Needs REDIS_URL.
    """
    access_token_ttl_s: int = Field(default=900, ge=60, le=3600)
    """Lifetime of an access token."""
    refresh_token_ttl_s: int = Field(default=2_592_000, ge=3600, le=10 * _YEAR_S)
    """Lifetime of a refresh token: a session that is not used for so long ends."""
    session_max_age_s: int = Field(default=7_776_000, ge=3600, le=10 * _YEAR_S)
    """Longest lifetime of a session, however often its tokens are refreshed."""
    login_rate: RateLimit = Rate(count=5, unit="min", burst=20)
    """How often an address may call Login and ChangePassword; an IPv6 address counts by its /64."""
    mutation_rate: RateLimit = Rate(count=10, unit="min", burst=60)
    """How often an admin user may make changes. On loopback, a server with an embedded database does not limit them."""
    token_mutation_rate: RateLimit = Rate(count=300, unit="min", burst=600)
    """How often an API token may make changes, with the same exemption."""
    admin_read_rate: RateLimit = Rate(count=50, unit="s", burst=50)
    """How often an admin user, or an API token, may read by AdminService."""
    standard_tier_rate: RateLimit = Rate(count=600, unit="s", burst=600)
    """How often the holder of a client key of RATE_TIER_STANDARD may evaluate, where evaluation requires a key. 1,000
    contexts of a bulk evaluation count as one call.
    """
    high_tier_rate: RateLimit = Rate(count=6_000, unit="s", burst=6_000)
    """How often the holder of a client key of RATE_TIER_HIGH may evaluate, where evaluation requires a key."""
    address_rate: AddressRateLimit = None
    """How often an address may evaluate; on: 1000/min. Loopback and GATEKEEPER_TRUSTED_CIDRS are exempt. Absent: any
    number of times.
    """
    trusted_cidrs: Annotated[Networks, NoDecode, BeforeValidator(_networks)] = Networks()
    """Networks whose proxies say by `x-forwarded-for` for whom they call, such as 10.0.0.0/8,fd00::/8. An address in
    them has no limit of its own. Absent: none.
    """
    bcrypt_cost: int = Field(default=12, ge=10, le=16)
    """Cost of a password hash. Each step doubles the time. After a change, each password is hashed again at the next
    login.
    """
    evaluation_threads: int = Field(default=4, ge=1, le=64)
    """Evaluations that run at the same time. More is slower."""
    admin_threads: int = Field(default=8, ge=1, le=64)
    """Reads of AdminService that run at the same time. Half as many writes do."""
    answer_at_once: bool = True
    """Whether small calls of EvaluateFlags are answered where they arrive, on the one thread that serves gRPC. False: a
    worker answers each call, which costs half of the calls a second.
    """
    stream_threads: int = Field(default=16, ge=1, le=256)
    """Bulk evaluations that run at the same time."""
    bulk_cpu_budget_s: float = Field(default=20.0, gt=0, le=_YEAR_S)
    """CPU time that one message of BulkEvaluateFlags or PreviewFlagChange may take, for each 1,000 flags or part of
    them. A full message of 5,000 users takes about 5 s for 1,000 flags.
    """
    max_watchers: int = Field(default=10_000, ge=1, le=100_000)
    """Maximum number of open WatchFlags streams. Each takes some 22 KiB, and 0.1 KiB for each flag key it names."""
    max_watchers_per_address: int | None = Field(default=None, ge=1)
    """Maximum number of open WatchFlags streams of an address, with the exemptions of GATEKEEPER_ADDRESS_RATE. Absent:
    as many as there may be in all.
    """
    max_flags: int = Field(default=20_000, ge=1)
    """Maximum number of flags of the installation. Set it alike on every instance, as the next two."""
    max_segments: int = Field(default=2_000, ge=1)
    """Maximum number of segments of the installation."""
    max_users: int = Field(default=10_000_000, ge=1)
    """Maximum number of users with stored attributes in the installation."""
    max_connections: int = Field(default=10_000, ge=16, le=100_000)
    """Maximum number of client connections, fewer if the limit of open files leaves no room for them. One address has
    half of them at most. When three quarters are taken, the longest idle one without a call is closed. Each takes some
    20 KiB, with TLS 50 KiB. GATEKEEPER_ADMIN_LISTEN has an eighth of them.
    """
    db_pool_size: int = Field(default=10, ge=2, le=100)
    """Maximum number of connections to PostgreSQL of each worker, and 5 more outside the pool."""
    db_pool_min_size: int = Field(default=2, ge=0, le=100)
    """How many of them are kept open although nothing uses them."""
    db_pool_idle_s: float = Field(default=600.0, ge=1, le=_YEAR_S)
    """After how long without use the others are closed."""
    db_pool_wait_s: float = Field(default=1.0, ge=0.1, le=30)
    """How long a call waits for a connection, and four round trips to the database. Then it fails with
    RESOURCE_EXHAUSTED.
    """
    db_statement_timeout_s: float = Field(default=30.0, gt=0, le=_YEAR_S)
    """Maximum duration of a statement."""
    db_hung_after_s: float = Field(default=0.75, ge=0.1, le=60)
    """If PostgreSQL answers nothing for this long, it counts as hung: calls that wait for it fail, and new calls are
    refused, until it answers again. On a busy machine, four times as long. Slow statements are not affected.
    """
    refresh_interval_s: float = Field(default=1.0, gt=0, le=60)
    """How often to read the newest revision if none is announced."""
    reload_interval_s: float = Field(default=300.0, gt=0, le=_YEAR_S)
    """How often to reload everything."""
    stale_after_s: float = Field(default=10.0, gt=0, le=_YEAR_S)
    """Answers are marked `stale` if the database has not confirmed them for this long."""
    ready_max_staleness_s: float | None = Field(default=None, gt=0, le=_YEAR_S)
    """Not ready if the database has not confirmed the snapshot for this long. Absent: ready with a snapshot of any age.
    """
    body_timeout_s: float = Field(default=5.0, gt=0, le=_YEAR_S)
    """How long the message of a request may take to arrive."""
    stream_idle_timeout_s: float = Field(default=15.0, gt=0, le=_YEAR_S)
    """How long a stream may be silent: without a message, or, in bulk evaluation and previews, without one that has
    contexts.
    """
    bulk_max_age_s: float = Field(default=3_600.0, gt=0, le=_YEAR_S)
    """How long a bulk evaluation or a preview may be open. Then it ends with UNAVAILABLE."""
    watch_max_age_s: float = Field(default=43_200.0, gt=0, le=_YEAR_S)
    """How long WatchFlags may be open, give or take a fifth. Then it ends with UNAVAILABLE."""
    drain_s: float = Field(default=1.0, ge=0, le=_YEAR_S)
    """At SIGTERM: how long to serve on after health reports NOT_SERVING."""
    grace_s: float = Field(default=10.0, ge=0, le=_YEAR_S)
    """At SIGTERM, after the drain: how long calls may take to end."""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)] = "INFO"
    """Lowest level that is logged: DEBUG, INFO, WARNING or ERROR."""
    log_format: Annotated[Literal["auto", "json", "console"], BeforeValidator(str.lower)] = "auto"
    """auto, json or console. auto is console on a terminal, otherwise json."""
    otel_exporter_otlp_endpoint: Annotated[str | None, AfterValidator(_otlp_endpoint)] = Field(
        default=None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    """Where traces are sent, by OTLP over gRPC: http://host:port, or https://host:port for TLS. Needs the extra `otel`.
    Absent: nothing is traced.
    """
    otel_exporter_otlp_headers: SecretStr | None = Field(default=None, validation_alias="OTEL_EXPORTER_OTLP_HEADERS")
    """What the receiver of traces asks for: name=value[,name=value...]. Absent: nothing."""
    otel_exporter_otlp_protocol: Annotated[Literal["grpc"], BeforeValidator(str.lower)] = Field(
        default="grpc", validation_alias="OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    """grpc: traces are sent in no other way."""
    otel_traces_sampler_arg: float = Field(default=1.0, ge=0, le=1, validation_alias="OTEL_TRACES_SAMPLER_ARG")
    """Share of the calls to trace, from 0 to 1. A client that sends `traceparent` decides for its calls itself."""

    @model_validator(mode="after")
    def _check_signed_bodies(self) -> Self:
        if self.evaluation_access == "signed" and self.allow_unsigned_bodies:
            raise ValueError(
                "GATEKEEPER_ALLOW_UNSIGNED_BODIES must not be set with GATEKEEPER_EVALUATION_ACCESS=signed: a signature"
                " that leaves out the body can be sent with any body"
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        """Refuse settings of TLS that lack others."""
        files = ("tls_cert_file", "tls_key_file")
        missing = [name for name in files if getattr(self, name) is None]
        for name in (*files, "tls_client_ca_file", "health_tls", "ops_tls"):
            if missing and getattr(self, name):
                raise ValueError(f"{variable_of(missing[0])} must be set with {variable_of(name)}")
        for name, address in self.client_addresses.items():
            if self.require_tls and missing and not address.is_local:
                raise ValueError(
                    f"{variable_of(missing[0])} must be set to listen on {address}, because GATEKEEPER_REQUIRE_TLS is"
                    f" set; without TLS, only this machine may reach {variable_of(name)}"
                )
        return self

    @model_validator(mode="after")
    def _check_admin_reflection(self) -> Self:
        if self.admin_reflection is not None and self.admin_listen is None:
            raise ValueError("GATEKEEPER_ADMIN_LISTEN must be set with GATEKEEPER_ADMIN_REFLECTION")
        return self

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        if self.db_pool_min_size > self.db_pool_size:
            raise ValueError(
                f"GATEKEEPER_DB_POOL_MIN_SIZE: '{self.db_pool_min_size}' must be at most GATEKEEPER_DB_POOL_SIZE, which"
                f" is {self.db_pool_size}"
            )
        return self

    @model_validator(mode="after")
    def _check_shared_nonces(self) -> Self:
        if self.shared_nonces != "off" and self.redis_url is None:
            raise ValueError(
                f"GATEKEEPER_SHARED_NONCES: '{self.shared_nonces}' needs REDIS_URL, where instances remember nonces"
            )
        return self

    @model_validator(mode="after")
    def _check_addresses(self) -> Self:
        """Refuse addresses that are valid alone and cannot be together."""
        if self.ops_listen.is_unix:
            raise ValueError(
                f"GATEKEEPER_OPS_LISTEN: '{self.ops_listen}' must be host:port: HTTP is not served on a Unix socket"
            )
        for name, address in self.client_addresses.items():
            if address.is_unix and self.workers > 1:
                raise ValueError(
                    f"{variable_of(name)}: '{address}' must be host:port with GATEKEEPER_WORKERS={self.workers}:"
                    " workers cannot share a Unix socket"
                )
        named = list(self.addresses.items())
        for number, (later, address) in enumerate(named):
            for earlier, taken in named[:number]:
                if address.overlaps(taken):
                    other = f"{variable_of(earlier)}, which is {taken}"
                    raise ValueError(f"{variable_of(later)}: '{address}' must be another address than {other}")
        return self

    @property
    def client_addresses(self) -> Mapping[str, ListenAddress]:
        """Where clients call, by the field of the setting: one address, or two."""
        own = {} if self.admin_listen is None else {"admin_listen": self.admin_listen}
        return {"listen": self.listen, **own}

    @property
    def addresses(self) -> Mapping[str, ListenAddress]:
        """All addresses to listen on, by the field of the setting."""
        return {**self.client_addresses, "health_listen": self.health_listen, "ops_listen": self.ops_listen}

    @property
    def unsigned_bodies(self) -> bool:
        """Whether the signature of a unary call may leave out the body."""
        is_allowed = self.allow_unsigned_bodies
        return self.evaluation_access != "signed" if is_allowed is None else is_allowed

    @property
    def has_tls(self) -> bool:
        """Whether clients are served with TLS."""
        return self.tls_cert_file is not None

    @property
    def is_embedded(self) -> bool:
        """Whether the database is the embedded one."""
        return self.database_url is None


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment and the files that it names; `overrides` take precedence.

    Raises:
        SettingsError: Names each variable with an invalid value.
    """
    try:
        from_files: dict[str, Any] = {
            field: file.read() for field, file in secret_files().items() if field not in overrides
        }
    except ValueError as exc:
        raise SettingsError(str(exc)) from None
    try:
        return Settings(**from_files, **overrides)
    except ValidationError as exc:
        raise SettingsError("; ".join(map(_fault, exc.errors()))) from None


def secret_files() -> Mapping[str, SecretFile]:
    """Return the files that the environment names, by the field of the setting.

    Raises:
        SettingsError: A secret is given twice, in a file and in the environment.
    """
    named = {field: os.environ.get(variable_of(field) + SUFFIX) for field in secret_fields()}
    for field, path in named.items():
        if path and os.environ.get(variable_of(field)):
            raise SettingsError(f"{variable_of(field)}{SUFFIX}: must not be set together with {variable_of(field)}")
    return {
        field: SecretFile(variable=variable_of(field) + SUFFIX, path=Path(path))
        for field, path in named.items()
        if path
    }


def secret_fields() -> list[str]:
    """Return the fields whose values are secret."""
    return [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]


def unknown_variables() -> Iterator[tuple[str, str | None]]:
    """Yield each variable that begins like a setting and is none, with the setting that it may be meant to be."""
    files = [variable_of(field) + SUFFIX for field in secret_fields()]
    known = [*map(variable_of, Settings.model_fields), *files, *_CLIENT_VARIABLES]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            yield name, nearest_variable(name, known)


def variable_of(field: str) -> str:
    """Return the environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"{PREFIX}{field.upper()}"


def _fault(error: Any) -> str:
    """Name the variable and what it must be."""
    if not error["loc"]:
        return fault_of(error, None)
    location = str(error["loc"][0])
    fields = {name: field for name, field in Settings.model_fields.items() if location in {name, variable_of(name)}}
    name, field = next(iter(fields.items()))
    return f"{variable_of(name)}: {fault_of(error, field)}"


def settings_table(settings: Settings | None = None) -> list[tuple[str, str, str]]:
    """Return (variable, value, meaning) of every setting; the defaults if `settings` is None. Masks secrets."""
    rows = []
    for name, field in Settings.model_fields.items():
        value = field.default if settings is None else getattr(settings, name)
        meaning = " ".join((field.description or "").split())  # The docstring under the field, on one line.
        rows.append((variable_of(name), "" if value is None else str(value), meaning))
    return rows


def settings_markdown() -> str:
    """Return the table of all settings and their defaults for README."""
    rows = [f"| `{name}` | {f'`{value}`' if value else ''} | {meaning} |" for name, value, meaning in settings_table()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])
