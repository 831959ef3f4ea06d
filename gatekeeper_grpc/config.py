"""Settings: every one of them, with its default, its unit and what it does. The only reader of the environment."""

from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """A setting has a value that cannot work; the message names the variable and never shows a secret."""


class Settings(BaseSettings):
    """What an operator can decide, read from environment variables.

    Durations are in seconds, addresses are host:port.
    """

    model_config = SettingsConfigDict(env_prefix="GATEKEEPER_", frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: SecretStr | None = Field(
        default=None,
        validation_alias="DATABASE_URL",
        description="PostgreSQL to use, as a libpq URI; with several hosts, the one that takes writes is found and"
        " followed. Absent: an embedded PostgreSQL under GATEKEEPER_DATA_DIR.",
    )
    read_database_url: SecretStr | None = Field(
        default=None,
        validation_alias="READ_DATABASE_URL",
        description="A read replica, as a libpq URI, that whole snapshots are loaded from; it may lag. Absent: none.",
    )
    migration_database_url: SecretStr | None = Field(
        default=None,
        description="DATABASE_URL for the role that owns the schema, where the serving role is a lesser one: for"
        " `gatekeeper migrate` and `gatekeeper audit archive`.",
    )
    require_least_privilege: bool = Field(
        default=False, description="Whether to refuse to serve with a database role that could rewrite the audit log."
    )
    data_dir: Path = Field(
        default=Path(".gatekeeper"), description="Where the embedded database and generated secrets are kept."
    )
    snapshot_file: Path | None = Field(
        default=None,
        description="File that keeps the last-known-good snapshot, to start from when the database is away; instances"
        " on one machine may share it. Absent: `snapshot` in GATEKEEPER_DATA_DIR.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        validation_alias="REDIS_URL",
        description="Redis to announce changes over, in addition to PostgreSQL, and to keep the last-known-good"
        " snapshot in: redis://[user:password@]host[:port][/db], rediss:// for TLS, unix:///path,"
        " or redis+sentinel://host,host/service[/db]. Redis Cluster is not supported. Absent: none.",
    )
    pg_bin: Path | None = Field(
        default=None, description="Folder with the programs of the embedded PostgreSQL. Absent: the bundled ones."
    )
    listen: str = Field(default="127.0.0.1:50051", description="Address of the gRPC services. Port 0: any free one.")
    health_listen: str = Field(
        default="127.0.0.1:50052",
        description="Address of a server for gRPC health alone, which answers when the other one is full.",
    )
    ops_listen: str = Field(
        default="127.0.0.1:9464",
        description="Address of `/metrics`, `/health` and `/ready` over HTTP. Keep it private.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that serve on one port, about one per core. Of several, a supervisor keeps each alive.",
    )
    reflection: bool = Field(default=True, description="Whether clients may ask for the contract by server reflection.")
    jwt_keys: SecretStr | None = Field(
        default=None,
        description="Sign access tokens, newest first: kid:secret[,kid:secret...], each secret 32 bytes or more."
        " Absent: those kept in GATEKEEPER_DATA_DIR, made there when the database is embedded.",
    )
    data_keys: SecretStr | None = Field(
        default=None,
        description="Encrypt client secrets and stored answers, newest first, written like GATEKEEPER_JWT_KEYS."
        " Absent: those kept in GATEKEEPER_DATA_DIR, made there when the database is embedded.",
    )
    audit_signing_key: SecretStr | None = Field(
        default=None,
        description="Signs audit checkpoints (Ed25519): 32 random bytes in base64. Absent: the one kept in"
        " GATEKEEPER_DATA_DIR, made there when the database is embedded; without one there are no checkpoints.",
    )
    erasure_key: SecretStr | None = Field(
        default=None,
        description="Key of the erasure ledger, 32 bytes or more; whoever has both can recognise an erased id."
        " Absent: the one kept in GATEKEEPER_DATA_DIR, made there when the database is embedded.",
    )
    erasure_ledger: Path | None = Field(
        default=None,
        description="File that remembers erasures outside the database, so that a restore brings nobody back."
        " Absent: `erasures` in GATEKEEPER_DATA_DIR.",
    )
    admin_password: SecretStr | None = Field(
        default=None,
        description="Password of the first admin user, `admin`, made when there is none. Absent: generated when the"
        " database is embedded.",
    )
    require_signed_calls: bool = Field(
        default=False, description="Whether evaluation calls must be signed with a client key."
    )
    allow_unsigned_bodies: bool = Field(
        default=True, description="Whether the signature of a unary call may leave out its body (UNSIGNED)."
    )
    access_token_ttl_s: int = Field(default=900, ge=60, le=3600, description="Life of an access token.")
    refresh_token_ttl_s: int = Field(default=2_592_000, ge=3600, description="Life of a refresh token.")
    bcrypt_cost: int = Field(default=12, ge=10, le=16, description="Cost of a password hash; each step doubles it.")
    evaluation_threads: int = Field(default=4, ge=1, le=64, description="Evaluations served at once; more is slower.")
    admin_threads: int = Field(default=8, ge=1, le=64, description="Admin calls served at once.")
    stream_threads: int = Field(default=16, ge=1, le=256, description="Bulk and import streams served at once.")
    max_watchers: int = Field(
        default=10_000,
        ge=1,
        le=100_000,
        description="WatchFlags streams open at once; each takes some 22 KiB, and 0.1 KiB for each flag key it names.",
    )
    db_pool_size: int = Field(default=10, ge=2, le=100, description="Connections to PostgreSQL held at most.")
    db_statement_timeout_s: float = Field(default=30.0, gt=0, description="The longest a statement may take.")
    db_hung_after_s: float = Field(
        default=0.75,
        ge=0.1,
        le=60,
        description="If PostgreSQL answers nothing for this long, it counts as hung: calls that wait for it fail, and"
        " new calls are refused, until it answers again. On a busy machine, four times as long. Slow statements are not"
        " affected.",
    )
    refresh_interval_s: float = Field(
        default=1.0, gt=0, le=60, description="How often to ask for the newest revision when none is announced."
    )
    reload_interval_s: float = Field(default=300.0, gt=0, description="How often to reload everything.")
    stale_after_s: float = Field(
        default=10.0, gt=0, description="Answers say `stale` when the database could not confirm them for this long."
    )
    ready_max_staleness_s: float | None = Field(
        default=None,
        gt=0,
        description="Not ready when the database could not confirm the snapshot for this long. Absent: an old answer is"
        " better than none.",
    )
    body_timeout_s: float = Field(default=5.0, gt=0, description="How long a request's message may take to arrive.")
    stream_idle_timeout_s: float = Field(default=60.0, gt=0, description="How long a stream may be silent.")
    drain_s: float = Field(
        default=1.0, ge=0, description="At SIGTERM: how long to go on serving after health says NOT_SERVING."
    )
    grace_s: float = Field(
        default=10.0, ge=0, description="At SIGTERM, after draining: how long calls may take to end."
    )
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="The least to log.")
    log_format: str = Field(default="auto", pattern="^(auto|json|console)$", description="auto: console on a terminal.")

    @property
    def is_embedded(self) -> bool:
        """Whether the database is the embedded one."""
        return self.database_url is None


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; `overrides` win. `SettingsError` names each variable that is wrong."""
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        faults = "; ".join(f"{_variable_at(error['loc'])}: {error['msg']}" for error in exc.errors(include_input=False))
        raise SettingsError(faults) from None


def variable_of(field: str) -> str:
    """Return the environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"GATEKEEPER_{field.upper()}"


def _variable_at(location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else "settings"
    return variable_of(name) if name in Settings.model_fields else name


def settings_table(settings: Settings | None = None) -> list[tuple[str, str, str]]:
    """Return (variable, value, description) of every setting.

    The defaults when no settings are given. Secrets are masked.
    """
    rows = []
    for name, field in Settings.model_fields.items():
        value = field.default if settings is None else getattr(settings, name)
        rows.append((variable_of(name), "" if value is None else str(value), field.description or ""))
    return rows


def settings_markdown() -> str:
    """Return the table of all settings and their defaults that README shows."""
    rows = [f"| `{name}` | {f'`{value}`' if value else ''} | {meaning} |" for name, value, meaning in settings_table()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])
