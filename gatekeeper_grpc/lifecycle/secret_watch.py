"""Rereads the files of secrets while the server runs, and lets it use what has changed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from gatekeeper_grpc.config.secret_file import SecretFile
from gatekeeper_grpc.config.settings import Settings, secret_files
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.scheduler import OnDemandThread, Scheduler

_log = structlog.get_logger(__name__)

# A change is promised to be noticed within 10 s, on a busy machine as well.
_INTERVAL_S = 2.0
_REMEDY = "correct the file; it is read again without a restart"

Use = Callable[[str], object]
"""Takes a new value, or raises why it cannot be used, without the value."""


@dataclass(kw_only=True)
class WatchedSecret:
    """A secret in a file. What cannot be used is reported once, tried again, and changes nothing."""

    file: SecretFile
    value: str = field(repr=False)
    """The value in use."""
    use: Use
    fault: str = ""
    """Why the old value is in use; empty while the file has the value in use."""
    was_refused: bool = False
    """Whether a value was tried since that could not be used. Its user may try it once more, until it is withdrawn."""

    def check(self) -> None:
        """Read the file, and use what has changed."""
        before, self.fault = self.fault, self._use_new()
        if self.fault and self.fault != before:
            _log.error("secret_not_used", error=self.fault, remedy=_REMEDY)

    def _use_new(self) -> str:
        """Use the value of the file; return why it cannot be used, or nothing."""
        try:
            text = self.file.read()
        except ValueError as exc:
            return str(exc)
        if text == self.value:
            self._withdraw()
            return ""
        try:
            self.use(text)
        except (ValueError, GatekeeperError) as exc:
            self.was_refused = True
            return self.file.fault(f"has a new value, which cannot be used: {exc}")
        self.value, self.was_refused = text, False
        _log.info("secret_changed", variable=self.file.variable, path=str(self.file.path))
        return ""

    def _withdraw(self) -> None:
        """Let the value in use replace one that could not be used, and that the file no longer has."""
        if self.was_refused:
            self.was_refused = False
            with suppress(ValueError, GatekeeperError):  # It is in use all the same.
                self.use(self.value)


class SecretWatch:
    """Checks the files of secrets every 2 s from `start` to `close`, on a thread of its own; without files, never.

    Args:
        files: By the name of the setting.
        values: The values in use, by the same names.
        uses: What to do with a new value. Settings without an entry are read at the start alone.
    """

    def __init__(self, files: Mapping[str, SecretFile], values: Mapping[str, str], uses: Mapping[str, Use]) -> None:
        self._secrets = [
            WatchedSecret(file=file, value=values[name], use=uses[name]) for name, file in files.items() if name in uses
        ]
        self._thread = OnDemandThread("secrets", self._check)

    def start(self, scheduler: Scheduler) -> None:
        """Start to check."""
        if self._secrets:
            scheduler.add("secrets", self._thread.request, interval_s=_INTERVAL_S, blocks=False)

    def reread(self) -> None:
        """Check all files soon; does not wait."""
        _log.info("secrets_reread", files=len(self._secrets))
        if self._secrets:
            self._thread.request()

    def close(self) -> None:
        """Stop, and wait for the current check."""
        self._thread.close()

    def faults(self) -> Iterator[str]:
        """Yield, in sentences for operators, why old values are in use."""
        for secret in self._secrets:
            if secret.fault:
                yield f"an old secret is in use: {secret.fault}; {_REMEDY}"

    def _check(self) -> None:
        for secret in self._secrets:
            secret.check()


def watch_secrets(settings: Settings, uses: Mapping[str, Use]) -> SecretWatch:
    """Return what watches the files that the environment names, of the settings that have a use.

    Raises:
        SettingsError: A secret is given in a file and in the environment.
    """
    files = secret_files()
    return SecretWatch(files, {name: getattr(settings, name).get_secret_value() for name in files}, uses)
