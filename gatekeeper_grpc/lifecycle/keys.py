"""The keys of an installation: from the settings, or from the data directory."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import SecretStr

from gatekeeper_grpc.auth.checkpoints import CheckpointSigner, new_signing_key
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import MIN_SECRET_BYTES, KeyRing
from gatekeeper_grpc.config import Settings, SettingsError, variable_of
from gatekeeper_grpc.lifecycle.secrets_file import new_key_ring, read_secret, stored_secret
from gatekeeper_grpc.privacy.erasure_ledger import DEFAULT_NAME, ErasureLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of an installation; each has one use."""

    tokens: KeyRing
    """Sign access tokens."""
    data: DataKeys
    """Encrypt secrets and stored responses in the database."""
    erasure: bytes
    """Names erased user ids in the erasure ledger."""
    audit: CheckpointSigner | None = None
    """Signs audit checkpoints; None: there are no checkpoints."""


def load_keys(settings: Settings) -> Keys:
    """Return the keys from the settings or from the data directory; if the database is embedded, generate missing ones.

    Raises:
        SettingsError: A key is missing or malformed.
    """
    return Keys(
        tokens=_key_ring(settings, "jwt_keys", settings.jwt_keys),
        data=load_data_keys(settings),
        erasure=load_erasure_key(settings),
        audit=load_audit_signer(settings),
    )


def load_data_keys(settings: Settings) -> DataKeys:
    """Return the keys that encrypt data in the database.

    Raises:
        SettingsError: They are missing or malformed.
    """
    return DataKeys(_key_ring(settings, "data_keys", settings.data_keys))


def load_erasure_key(settings: Settings) -> bytes:
    """Return the key of the erasure ledger.

    Raises:
        SettingsError: It is missing or too short.
    """
    text = _key_text(settings, "erasure_key", settings.erasure_key, lambda: secrets.token_urlsafe(32))
    if text is None or len(text.encode()) < MIN_SECRET_BYTES:
        variable = variable_of("erasure_key")
        raise SettingsError(f"{variable} must be {MIN_SECRET_BYTES} bytes or more, the same for all instances")
    return text.encode()


def erasure_ledger(settings: Settings, keys: Keys) -> ErasureLedger:
    """Return the erasure ledger of the settings."""
    return ErasureLedger(settings.erasure_ledger or settings.data_dir / DEFAULT_NAME, keys.erasure)


def load_audit_signer(settings: Settings) -> CheckpointSigner | None:
    """Return the signer of audit checkpoints; None if there is no key.

    Raises:
        SettingsError: The key is malformed.
    """
    text = _key_text(settings, "audit_signing_key", settings.audit_signing_key, new_signing_key)
    if text is None:
        return None
    try:
        return CheckpointSigner.parse(text)
    except ValueError as exc:
        raise SettingsError(f"{variable_of('audit_signing_key')}: {exc}") from None


def _key_ring(settings: Settings, name: str, configured: SecretStr | None) -> KeyRing:
    text = _key_text(settings, name, configured, new_key_ring)
    if text is None:
        raise SettingsError(
            f"{variable_of(name)} is not set; all instances on a database need the same keys, kid:secret[,...]"
        )
    try:
        return KeyRing.parse(text)
    except ValueError as exc:
        raise SettingsError(f"{variable_of(name)}: {exc}") from None


def _key_text(settings: Settings, name: str, configured: SecretStr | None, make: Callable[[], str]) -> str | None:
    if configured is not None:
        return configured.get_secret_value()
    if settings.is_embedded:
        return stored_secret(settings.data_dir, name, make)
    return read_secret(settings.data_dir, name)
