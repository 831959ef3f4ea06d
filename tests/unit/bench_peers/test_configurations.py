"""The configuration files that `bench.peers` writes (`bench.peers.configurations`)."""

import json
from typing import Any

import pytest

from bench.peers.configurations import WRITERS, flagd, flipt, go_feature_flag, unleash
from bench.peers.flags import MIX, NAMED_USERS, Kind, flags_of

FLAGS = flags_of(40)
KEYS = [flag.key for flag in FLAGS]


def by_kind(documents: dict[str, Any]) -> dict[Kind, Any]:
    """Return the documents of the first flag of each kind."""
    return {kind: documents[f"flag-{MIX.index(kind)}"] for kind in Kind}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_is_json_and_has_every_flag(name: str) -> None:
    text = json.dumps(WRITERS[name](FLAGS))

    assert all(f'"{key}"' in text for key in KEYS)


def test_flagd_has_rules_for_what_is_not_constant() -> None:
    flags = by_kind(flagd(FLAGS)["flags"])
    rules = {kind: json.dumps(flag["targeting"]) for kind, flag in flags.items() if "targeting" in flag}

    assert {kind: flag["defaultVariant"] for kind, flag in flags.items()} == {
        kind: "on" if kind is Kind.ON else "off" for kind in Kind
    }
    assert [kind for kind, flag in flags.items() if flag["state"] == "DISABLED"] == [Kind.DISABLED]
    assert rules.keys() == {Kind.ROLLOUT, Kind.NAMED, Kind.COUNTRY}
    assert '[["on", 50], ["off", 50]]' in rules[Kind.ROLLOUT]
    assert '[["on", 10], ["off", 90]]' in rules[Kind.COUNTRY]
    assert all(user_id in rules[Kind.NAMED] for user_id in NAMED_USERS)


def test_go_feature_flag_has_queries_and_percentages() -> None:
    flags = by_kind(go_feature_flag(FLAGS))

    assert {kind: flag["defaultRule"] for kind, flag in flags.items()} == {
        Kind.ROLLOUT: {"percentage": {"on": 50, "off": 50}},
        Kind.ON: {"variation": "on"},
        Kind.OFF: {"variation": "off"},
        Kind.DISABLED: {"variation": "off"},
        Kind.NAMED: {"variation": "off"},
        Kind.COUNTRY: {"percentage": {"on": 10, "off": 90}},
    }
    assert [kind for kind, flag in flags.items() if flag.get("disable")] == [Kind.DISABLED]
    assert flags[Kind.COUNTRY]["targeting"] == [{"query": 'country eq "CH"', "variation": "on"}]
    assert flags[Kind.NAMED]["targeting"][0]["query"].startswith('key in ["user-0", ')


def test_flipt_has_rollouts_whose_rest_is_false() -> None:
    document = flipt(FLAGS)
    flags = by_kind({flag["key"]: flag for flag in document["flags"]})

    assert [kind for kind, flag in flags.items() if flag["enabled"]] == [Kind.ON]
    assert {kind: flag["rollouts"] for kind, flag in flags.items() if flag["rollouts"]} == {
        Kind.ROLLOUT: [{"threshold": {"percentage": 50, "value": True}}],
        Kind.NAMED: [{"segment": {"key": "named", "value": True}}],
        Kind.COUNTRY: [
            {"segment": {"key": "country", "value": True}},
            {"threshold": {"percentage": 10, "value": True}},
        ],
    }
    named, country = (segment["constraints"][0] for segment in document["segments"])
    assert json.loads(named["value"]) == NAMED_USERS
    assert (country["property"], country["value"]) == ("country", "CH")


def test_unleash_has_a_strategy_for_each_way_to_true() -> None:
    document = unleash(FLAGS)
    strategies: dict[str, list[Any]] = {key: [] for key in KEYS}
    for strategy in document["featureStrategies"]:
        percent, constraints = strategy["parameters"]["rollout"], strategy["constraints"]
        strategies[strategy["featureName"]].append((percent, [each["contextName"] for each in constraints]))
    enabled = by_kind({each["featureName"]: each["enabled"] for each in document["featureEnvironments"]})

    assert by_kind(strategies) == {
        Kind.ROLLOUT: [("50", [])],
        Kind.ON: [("100", [])],
        Kind.OFF: [("100", [])],
        Kind.DISABLED: [("100", [])],
        Kind.NAMED: [("100", ["userId"])],
        Kind.COUNTRY: [("100", ["country"]), ("10", [])],
    }
    assert {kind for kind, is_enabled in enabled.items() if not is_enabled} == {Kind.OFF, Kind.DISABLED}
