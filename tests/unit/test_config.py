"""Settings: each has a variable, a default and a description; a wrong one is named, a secret one never shown."""

import pytest
from pydantic import SecretStr, ValidationError

from gatekeeper_grpc.config import Settings, SettingsError, load_settings, settings_table, variable_of

SECRETS = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_has_a_variable_of_its_own_and_a_description(field: str) -> None:
    rows = [row for row in settings_table() if row[0] == variable_of(field)]

    assert len(rows) == 1
    assert rows[0][2].endswith(".")


def test_durations_and_sizes_say_their_unit_in_their_name() -> None:
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation is float}

    assert {name for name in numbers if not name.endswith("_s")} == set()


@pytest.mark.parametrize(
    ("field", "variable"),
    [("database_url", "DATABASE_URL"), ("listen", "GATEKEEPER_LISTEN"), ("stale_after_s", "GATEKEEPER_STALE_AFTER_S")],
)
def test_a_setting_is_read_from_its_variable(field: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "12")

    value = getattr(load_settings(), field)

    assert (variable_of(field), str(value.get_secret_value() if field in SECRETS else value)) in {
        (variable, "12"),
        (variable, "12.0"),
    }


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEKEEPER_GRACE_S", "3")

    assert load_settings(grace_s=7).grace_s == 7


def test_without_a_database_url_the_database_is_the_embedded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().is_embedded

    monkeypatch.setenv("DATABASE_URL", "postgresql://db/gatekeeper")

    assert not load_settings().is_embedded


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().listen = "0.0.0.0:1"  # type: ignore[misc]


TYPO = "hunter2-typo"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("GATEKEEPER_ACCESS_TOKEN_TTL_S", "59", id="below the least"),
        pytest.param("GATEKEEPER_ACCESS_TOKEN_TTL_S", "3601", id="above the greatest"),
        pytest.param("GATEKEEPER_BCRYPT_COST", "9", id="a cost that is too cheap"),
        pytest.param("GATEKEEPER_REFRESH_INTERVAL_S", "-7", id="a negative interval"),
        pytest.param("GATEKEEPER_STALE_AFTER_S", "nan", id="not a number"),
        pytest.param("GATEKEEPER_STALE_AFTER_S", TYPO, id="text for a number"),
        pytest.param("GATEKEEPER_EVALUATION_THREADS", "2.5", id="a fraction of a thread"),
        pytest.param("GATEKEEPER_WORKERS", "-3", id="fewer workers than none"),
        pytest.param("GATEKEEPER_WORKERS", "70", id="more workers than allowed"),
        pytest.param("GATEKEEPER_READY_MAX_STALENESS_S", "-7", id="never fresh enough"),
        pytest.param("GATEKEEPER_LOG_LEVEL", "LOUD", id="an unknown word"),
        pytest.param("GATEKEEPER_REFLECTION", TYPO, id="neither yes nor no"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable_and_not_shown(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as refused:
        load_settings()

    assert str(refused.value).startswith(f"{variable}: ")
    assert value not in str(refused.value)


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


@pytest.mark.parametrize(("required", "allowed"), [("false", True), ("true", False)])
def test_bodies_must_be_signed_where_signatures_are_required(
    required: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEKEEPER_REQUIRE_SIGNED_CALLS", required)

    assert load_settings().unsigned_bodies is allowed


def test_unsigned_bodies_and_required_signatures_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match="GATEKEEPER_ALLOW_UNSIGNED_BODIES must not be set with"):
        load_settings(require_signed_calls=True, allow_unsigned_bodies=True)

    assert not load_settings(require_signed_calls=True, allow_unsigned_bodies=False).unsigned_bodies
    assert not load_settings(allow_unsigned_bodies=False).unsigned_bodies
