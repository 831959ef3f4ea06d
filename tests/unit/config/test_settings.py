"""Settings: each has a variable, a default and a description; a wrong one is named, a secret one never shown."""

import re

import pytest
from pydantic import SecretStr, ValidationError

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.config.settings import (
    Settings,
    SettingsError,
    load_settings,
    settings_table,
    unknown_variables,
    variable_of,
)
from gatekeeper_grpc.domain.rate import Rate

SECRETS = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_has_a_variable_of_its_own_and_a_description(field: str) -> None:
    rows = [row for row in settings_table() if row[0] == variable_of(field)]

    assert len(rows) == 1
    assert rows[0][2].endswith(".")


def test_durations_and_sizes_say_their_unit_in_their_name() -> None:
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation is float}
    numbers.remove("otel_traces_sampler_arg")  # A share, by the name that OpenTelemetry gave it.

    assert {name for name in numbers if not name.endswith("_s")} == set()


@pytest.mark.parametrize(
    ("field", "variable", "value"),
    [
        ("database_url", "DATABASE_URL", "postgresql://db/gatekeeper"),
        ("listen", "GATEKEEPER_LISTEN", "[::1]:12"),
        ("listen", "GATEKEEPER_LISTEN", "unix:/run/gatekeeper.sock"),
        ("stale_after_s", "GATEKEEPER_STALE_AFTER_S", "12.0"),
        ("log_level", "GATEKEEPER_LOG_LEVEL", "DEBUG"),
    ],
)
def test_a_setting_is_read_from_its_variable(
    field: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    read = getattr(load_settings(), field)

    assert (variable_of(field), str(read.get_secret_value() if field in SECRETS else read)) == (variable, value)


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEKEEPER_GRACE_S", "3")

    assert load_settings(grace_s=7).grace_s == 7


def test_without_a_database_url_the_database_is_the_embedded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().is_embedded

    monkeypatch.setenv("DATABASE_URL", "postgresql://db/gatekeeper")

    assert not load_settings().is_embedded


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().listen = ListenAddress(host="0.0.0.0")  # type: ignore[misc]


TYPO = "hunter2-typo"


@pytest.mark.parametrize(
    ("variable", "value", "right"),
    [
        ("GATEKEEPER_ACCESS_TOKEN_TTL_S", "59", "a whole number of 60 or more, at most 3600"),
        ("GATEKEEPER_REFRESH_INTERVAL_S", "-7", "a number above 0, at most 60"),
        ("GATEKEEPER_STALE_AFTER_S", "nan", "a number above 0, at most 31536000"),
        ("GATEKEEPER_DRAIN_S", "inf", "a number of 0 or more, at most 31536000"),
        ("GATEKEEPER_DRAIN_S", "1e300", "a number of 0 or more, at most 31536000"),
        ("GATEKEEPER_EVALUATION_THREADS", "2.5", "a whole number of 1 or more, at most 64"),
        ("GATEKEEPER_WORKERS", "70", "a whole number of 1 or more, at most 64"),
        ("GATEKEEPER_MAX_FLAGS", "0", "a whole number of 1 or more"),
        ("GATEKEEPER_READY_MAX_STALENESS_S", "-7", "a number above 0, at most 31536000"),
        ("GATEKEEPER_LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING or ERROR"),
        ("GATEKEEPER_LOG_FORMAT", "xml", "auto, json or console"),
        ("GATEKEEPER_REFLECTION", "perhaps", "true or false"),
    ],
)
def test_a_bad_value_is_refused_with_its_variable_and_what_would_be_right(
    variable: str, value: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as refused:
        load_settings()

    assert str(refused.value) == f"{variable}: '{value}' must be {right}"


@pytest.mark.parametrize(
    "variable", ["GATEKEEPER_STALE_AFTER_S", "GATEKEEPER_REFLECTION", "GATEKEEPER_LISTEN", "GATEKEEPER_LOG_LEVEL"]
)
def test_a_value_that_may_be_a_secret_in_the_wrong_variable_is_not_shown(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, TYPO)

    with pytest.raises(SettingsError) as refused:
        load_settings()

    assert str(refused.value).startswith(f"{variable}: must be ")
    assert TYPO not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"listen": "127.0.0.1:7", "health_listen": "0.0.0.0:7"},
            "GATEKEEPER_HEALTH_LISTEN: '0.0.0.0:7' must be another",
        ),
        ({"listen": "unix:/a", "health_listen": "unix:/a"}, "GATEKEEPER_HEALTH_LISTEN: 'unix:/a' must be another"),
        (
            {"listen": "unix:/a", "workers": 2},
            "GATEKEEPER_LISTEN: 'unix:/a' must be host:port with GATEKEEPER_WORKERS=2",
        ),
        ({"ops_listen": "unix:/a"}, "GATEKEEPER_OPS_LISTEN: 'unix:/a' must be host:port"),
        ({"admin_listen": "127.0.0.1:50051"}, "GATEKEEPER_ADMIN_LISTEN: '127.0.0.1:50051' must be another"),
        ({"admin_listen": "127.0.0.1:50052"}, "GATEKEEPER_HEALTH_LISTEN: '127.0.0.1:50052' must be another"),
        ({"admin_listen": "50061"}, "GATEKEEPER_ADMIN_LISTEN: '50061' must name a host before the port"),
        (
            {"admin_listen": "unix:/a", "workers": 2},
            "GATEKEEPER_ADMIN_LISTEN: 'unix:/a' must be host:port with GATEKEEPER_WORKERS=2",
        ),
        ({"admin_reflection": True}, "GATEKEEPER_ADMIN_LISTEN must be set with GATEKEEPER_ADMIN_REFLECTION"),
        (
            {"admin_listen": "0.0.0.0:1", "require_tls": True},
            "GATEKEEPER_TLS_CERT_FILE must be set to listen on 0.0.0.0:1",
        ),
    ],
)
def test_addresses_that_cannot_be_together_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(**settings)

    assert str(refused.value).startswith(complaint)


def test_an_unknown_variable_is_found_with_the_setting_that_it_may_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GATEKEEPER_WORKRES", "GATEKEEPER_FOO", "GATEKEEPER_SERVER", "GATEKEEPER_WORKERS"):
        monkeypatch.setenv(name, "1")

    assert list(unknown_variables()) == [("GATEKEEPER_FOO", None), ("GATEKEEPER_WORKRES", "GATEKEEPER_WORKERS")]


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEKEEPER_BCRYPT_COST", "9")
    monkeypatch.setenv("GATEKEEPER_DB_POOL_SIZE", "1")

    with pytest.raises(SettingsError, match=r"GATEKEEPER_BCRYPT_COST.*; GATEKEEPER_DB_POOL_SIZE"):
        load_settings()


CANARY = "canary-31415926535897932384626433832795"


@pytest.mark.parametrize("field", sorted(SECRETS))
def test_a_secret_is_masked_wherever_settings_are_shown(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable_of(field), CANARY)
    loaded = load_settings()

    assert getattr(loaded, field) == SecretStr(CANARY)
    assert dict(row[:2] for row in settings_table(loaded))[variable_of(field)] == "**********"
    assert CANARY not in f"{loaded!r} {loaded} {loaded.model_dump_json()} {settings_table(loaded)}"


def test_the_table_shows_values_when_given_settings_and_defaults_otherwise() -> None:
    shown = [
        dict(row[:2] for row in settings_table(settings))["GATEKEEPER_LISTEN"]
        for settings in (None, load_settings(listen="127.0.0.1:9"))
    ]

    assert shown == ["127.0.0.1:50051", "127.0.0.1:9"]


@pytest.mark.parametrize(("access", "allowed"), [("open", True), ("key", True), ("signed", False), ("SIGNED", False)])
def test_bodies_must_be_signed_where_signatures_are_required(
    access: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEKEEPER_EVALUATION_ACCESS", access)

    assert load_settings().unsigned_bodies is allowed


def test_nonces_are_shared_over_redis_alone() -> None:
    with pytest.raises(SettingsError, match="GATEKEEPER_SHARED_NONCES: 'strict' needs REDIS_URL"):
        load_settings(shared_nonces="strict")

    assert load_settings(shared_nonces="strict", REDIS_URL="redis://127.0.0.1:1/0").shared_nonces == "strict"
    assert load_settings().shared_nonces == "off"


def test_unsigned_bodies_and_required_signatures_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match="GATEKEEPER_ALLOW_UNSIGNED_BODIES must not be set with"):
        load_settings(evaluation_access="signed", allow_unsigned_bodies=True)

    assert not load_settings(evaluation_access="signed", allow_unsigned_bodies=False).unsigned_bodies
    assert not load_settings(allow_unsigned_bodies=False).unsigned_bodies


def test_a_rate_is_written_as_text_and_off_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEKEEPER_LOGIN_RATE", " 7/min burst 9 ")
    monkeypatch.setenv("GATEKEEPER_MUTATION_RATE", "OFF")

    settings = load_settings()

    assert settings.login_rate == Rate(count=7, unit="min", burst=9)
    assert settings.mutation_rate is None


def test_a_limit_of_addresses_that_is_on_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().address_rate is None
    monkeypatch.setenv("GATEKEEPER_ADDRESS_RATE", "on")

    assert load_settings().address_rate == Rate(count=1_000, unit="min", burst=1_000)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GATEKEEPER_LOGIN_RATE", "5/h", "GATEKEEPER_LOGIN_RATE: '5/h' must be a rate such as 50/s"),
        ("GATEKEEPER_TRUSTED_CIDRS", "10.0.0.0/99", "GATEKEEPER_TRUSTED_CIDRS: must be networks or addresses such as"),
        ("GATEKEEPER_TRUSTED_CIDRS", "::/0", "GATEKEEPER_TRUSTED_CIDRS: must not contain all addresses"),
    ],
)
def test_a_rate_or_network_that_is_wrong_is_refused_with_what_is_right(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError, match=re.escape(message)):
        load_settings()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (
            {"db_pool_size": 4, "db_pool_min_size": 5},
            "GATEKEEPER_DB_POOL_MIN_SIZE: '5' must be at most GATEKEEPER_DB_POOL_SIZE, which is 4",
        ),
        ({"db_pool_min_size": -1}, "GATEKEEPER_DB_POOL_MIN_SIZE: must be a whole number of 0 or more, at most 100"),
        ({"db_pool_idle_s": "0.5"}, "GATEKEEPER_DB_POOL_IDLE_S: '0.5' must be a number of 1 or more"),
        ({"db_pool_wait_s": "60"}, "GATEKEEPER_DB_POOL_WAIT_S: '60' must be a number of 0.1 or more, at most 30"),
    ],
    ids=["more than there may be", "minimum", "idle", "wait"],
)
def test_a_setting_of_the_pool_that_cannot_be_is_refused(given: dict[str, object], fault: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load_settings(**given)

    assert fault in str(refusal.value)
