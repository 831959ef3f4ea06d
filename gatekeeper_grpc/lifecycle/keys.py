"""The keys of an installation: from the settings, or from the data directory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import SecretStr

from gatekeeper_grpc.auth.checkpoints import CheckpointSigner, new_signing_key
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.config.settings import Settings, SettingsError, variable_of
from gatekeeper_grpc.lifecycle.secrets_file import new_key_ring, read_secret, stored_secret
from gatekeeper_grpc.operations.bearer_token import BearerToken
from gatekeeper_grpc.privacy.erasure_ledger import DEFAULT_NAME, UNNAMED, ErasureLedger

Key = TypeVar("Key")

parse_erasure_keys = partial(KeyRing.parse, unnamed_kid=UNNAMED)
"""Reads a ring, in which the key of an earlier release stands without a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of an installation; each has one use."""

    tokens: KeyRing
    """Sign access tokens."""
    data: DataKeys
    """Encrypt secrets and stored responses in the database."""
    erasure: KeyRing
    """Names erased user ids in the erasure ledger."""
    audit: CheckpointSigner | None = None
    """Signs audit checkpoints; None: there are no checkpoints."""


def load_keys(settings: Settings) -> Keys:
    """Return the keys from the settings or from the data directory; if the database is embedded, generate missing ones.

    Raises:
        SettingsError: A key is missing or malformed.
    """
    return Keys(
        tokens=_required(settings, "jwt_keys", KeyRing.parse, new_key_ring),
        data=load_data_keys(settings),
        erasure=_required(settings, "erasure_key", parse_erasure_keys, new_key_ring),
        audit=load_audit_signer(settings),
    )


def check_keys(settings: Settings) -> None:
    """Check the keys as `load_keys` would, and generate none.

    Raises:
        SettingsError: A key is malformed, or is missing while the database is not embedded, or the erasure ledger needs
            a key that is missing.
        Unavailable: The erasure ledger cannot be read.
    """
    rings: Mapping[str, Callable[[str], KeyRing]] = {
        "jwt_keys": KeyRing.parse,
        "data_keys": KeyRing.parse,
        "erasure_key": parse_erasure_keys,
    }
    for name, parse in rings.items():
        if _found(settings, name, parse) is None and not settings.is_embedded:
            raise _missing(name)
    ring = _found(settings, "erasure_key", parse_erasure_keys)
    if ring and (missing := erasure_ledger(settings, ring).missing()):
        raise SettingsError(f"{variable_of('erasure_key')}: {missing}")
    _found(settings, "audit_signing_key", CheckpointSigner.parse)
    load_metrics_token(settings)


def load_data_keys(settings: Settings) -> DataKeys:
    """Return the keys that encrypt data in the database.

    Raises:
        SettingsError: They are missing or malformed.
    """
    return DataKeys(_required(settings, "data_keys", KeyRing.parse, new_key_ring))


def load_audit_signer(settings: Settings) -> CheckpointSigner | None:
    """Return the signer of audit checkpoints; None if there is no key.

    Raises:
        SettingsError: The key is malformed.
    """
    return _optional(settings, "audit_signing_key", CheckpointSigner.parse, new_signing_key)


def load_metrics_token(settings: Settings) -> BearerToken:
    """Return what `/metrics` asks for.

    Raises:
        SettingsError: The token is malformed.
    """
    secret = settings.metrics_token
    try:
        return BearerToken(secret.get_secret_value() if secret else "")
    except ValueError as exc:
        raise SettingsError(f"{variable_of('metrics_token')}: {exc}") from None


def erasure_ledger(settings: Settings, ring: KeyRing) -> ErasureLedger:
    """Return the erasure ledger of the settings."""
    return ErasureLedger(ledger_path(settings), ring)


def ledger_path(settings: Settings) -> Path:
    """Return the file of the erasure ledger."""
    return settings.erasure_ledger or settings.data_dir / DEFAULT_NAME


def _required(settings: Settings, name: str, parse: Callable[[str], Key], make: Callable[[], str]) -> Key:
    key = _optional(settings, name, parse, make)
    if key is None:
        raise _missing(name)
    return key


def _missing(name: str) -> SettingsError:
    return SettingsError(
        f"{variable_of(name)} is not set; all instances on a database need the same (see `gatekeeper config`)"
    )


def _optional(settings: Settings, name: str, parse: Callable[[str], Key], make: Callable[[], str]) -> Key | None:
    """Parse the key of a setting, else of the file of that name; make a file if the database is embedded."""
    if settings.is_embedded and getattr(settings, name) is None:
        stored_secret(settings.data_dir, name, make)
    return _found(settings, name, parse)


def _found(settings: Settings, name: str, parse: Callable[[str], Key]) -> Key | None:
    """Parse the key of a setting, else of the file of that name; None if there is neither."""
    configured: SecretStr | None = getattr(settings, name)
    text = read_secret(settings.data_dir, name) if configured is None else configured.get_secret_value()
    try:
        return None if text is None else parse(text)
    except ValueError as exc:
        raise SettingsError(f"{variable_of(name)}: {exc}") from None
