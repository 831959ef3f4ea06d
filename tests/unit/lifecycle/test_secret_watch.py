"""A changed file of a secret is used; one that cannot be used leaves the old value and is reported once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.config.secret_file import SecretFile
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.lifecycle import secret_watch
from gatekeeper_grpc.lifecycle.secret_watch import SecretWatch, WatchedSecret
from gatekeeper_grpc.scheduler import Scheduler
from tests.support.waiting import eventually

CANARY = "canary7f3a"


class Secret:
    """A file, and what was used of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.used: list[str] = []
        self.refusal: Exception | None = None
        self.file = SecretFile(variable="REDIS_URL_FILE", path=path)
        path.write_text("first")

    def use(self, text: str) -> None:
        if self.refusal:
            raise self.refusal
        self.used.append(text)


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    return Secret(tmp_path / "secret")


@pytest.fixture
def watched(secret: Secret) -> WatchedSecret:
    return WatchedSecret(file=secret.file, value="first", use=secret.use)


def checked(watched: WatchedSecret, times: int = 1) -> list[Any]:
    with capture_logs() as logs:
        for _ in range(times):
            watched.check()
    return [(log["event"], log.get("error")) for log in logs]


def test_a_file_that_has_not_changed_is_not_used_again(secret: Secret, watched: WatchedSecret) -> None:
    assert checked(watched, times=3) == []
    assert secret.used == []


def test_a_changed_file_is_used_once(secret: Secret, watched: WatchedSecret) -> None:
    secret.path.write_text(f"{CANARY}\n")

    assert checked(watched, times=3) == [("secret_changed", None)]
    assert secret.used == [CANARY]


def test_a_file_that_is_away_is_reported_once_and_changes_nothing(secret: Secret, watched: WatchedSecret) -> None:
    secret.path.unlink()
    fault = f"REDIS_URL_FILE: '{secret.path}' cannot be read: No such file or directory"

    assert checked(watched, times=3) == [("secret_not_used", fault)]
    assert (watched.value, watched.fault) == ("first", fault)
    secret.path.write_text("first")
    assert checked(watched) == []
    assert (watched.fault, secret.used) == ("", [])


@pytest.mark.parametrize("refusal", [ValueError("must be a key"), Unavailable("must be a key")], ids=type)
def test_a_refused_value_is_tried_again_until_it_can_be_used(
    secret: Secret, watched: WatchedSecret, refusal: Exception
) -> None:
    secret.refusal = refusal
    secret.path.write_text(CANARY)
    fault = f"REDIS_URL_FILE: '{secret.path}' has a new value, which cannot be used: must be a key"

    assert checked(watched, times=3) == [("secret_not_used", fault)]
    assert watched.value == "first"
    secret.refusal = None
    assert checked(watched) == [("secret_changed", None)]
    assert (secret.used, watched.fault) == ([CANARY], "")


@pytest.mark.parametrize("refusal", [None, Unavailable("not there")], ids=["taken", "refused"])
def test_a_value_that_was_refused_and_taken_back_is_not_kept_in_mind(
    secret: Secret, watched: WatchedSecret, refusal: Exception | None
) -> None:
    secret.refusal = Unavailable("not this one")
    secret.path.write_text(CANARY)
    watched.check()
    secret.refusal = refusal
    secret.path.write_text("first")

    assert checked(watched, times=3) == []
    assert secret.used == ([] if refusal else ["first"])
    assert watched.fault == ""


def test_a_watched_secret_does_not_show_its_value(watched: WatchedSecret) -> None:
    watched.value = CANARY

    assert CANARY not in repr(watched)


@contextmanager
def watching(secret: Secret) -> Iterator[SecretWatch]:
    watch, scheduler = (
        SecretWatch({"redis_url": secret.file}, {"redis_url": "first"}, {"redis_url": secret.use}),
        Scheduler(),
    )
    scheduler.start()
    watch.start(scheduler)
    try:
        yield watch
    finally:
        scheduler.close()
        watch.close()


def test_files_are_checked_again_and_again(secret: Secret) -> None:
    with watching(secret):
        secret.path.write_text("second")
        assert eventually(lambda: secret.used == ["second"])
        secret.path.write_text("third")
        assert eventually(lambda: secret.used == ["second", "third"])


def test_files_are_checked_at_once_when_asked(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_watch, "_INTERVAL_S", 3600.0)
    with watching(secret) as watch:
        secret.path.write_text("second")
        watch.reread()
        assert eventually(lambda: secret.used == ["second"])


def test_operators_are_told_which_old_secrets_are_in_use(secret: Secret) -> None:
    secret.path.unlink()
    with watching(secret) as watch:
        assert eventually(lambda: bool(list(watch.faults())))
        (fault,) = watch.faults()

    assert fault.startswith("an old secret is in use: REDIS_URL_FILE: ")


def test_secrets_that_the_start_alone_reads_are_not_watched(secret: Secret) -> None:
    secret.path.unlink()
    watch = SecretWatch({"admin_password": secret.file}, {"admin_password": "first"}, {})
    watch.reread()
    watch.close()

    assert list(watch.faults()) == []
