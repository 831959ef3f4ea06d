"""Configuration files with the flags of `bench.peers` for each product, as JSON, which YAML contains."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.peers.flags import COUNTRY, NAMED_USERS, OTHERS_PERCENT, ROLLOUT_PERCENT, Flag, Kind

Document = dict[str, Any]


def flagd(flags: Sequence[Flag]) -> Document:
    """Return flag definitions of flagd, for `--uri file:...`."""
    return {"flags": {flag.key: _flagd_flag(flag) for flag in flags}}


def _flagd_flag(flag: Flag) -> Document:
    rules = {
        Kind.ROLLOUT: _fractional(ROLLOUT_PERCENT),
        Kind.NAMED: {"if": [{"in": [{"var": "targetingKey"}, NAMED_USERS]}, "on", "off"]},
        Kind.COUNTRY: {"if": [{"==": [{"var": "country"}, COUNTRY]}, "on", _fractional(OTHERS_PERCENT)]},
    }
    definition = {
        "state": "DISABLED" if flag.kind is Kind.DISABLED else "ENABLED",
        "variants": {"on": True, "off": False},
        "defaultVariant": "on" if flag.kind is Kind.ON else "off",
    }
    return definition | ({"targeting": rules[flag.kind]} if flag.kind in rules else {})


def _fractional(percent: int) -> Document:
    return {"fractional": [["on", percent], ["off", 100 - percent]]}


def go_feature_flag(flags: Sequence[Flag]) -> Document:
    """Return flags of GO Feature Flag, which speaks OFREP, for a file retriever."""
    return {flag.key: _goff_flag(flag) for flag in flags}


def _goff_flag(flag: Flag) -> Document:
    users = ", ".join(f'"{user_id}"' for user_id in NAMED_USERS)
    queries = {Kind.NAMED: f"key in [{users}]", Kind.COUNTRY: f'country eq "{COUNTRY}"'}
    percents = {Kind.ROLLOUT: ROLLOUT_PERCENT, Kind.COUNTRY: OTHERS_PERCENT}
    definition: Document = {"variations": {"on": True, "off": False}}
    if flag.kind in queries:
        definition["targeting"] = [{"query": queries[flag.kind], "variation": "on"}]
    if flag.kind in percents:
        percent = percents[flag.kind]
        definition["defaultRule"] = {"percentage": {"on": percent, "off": 100 - percent}}
    else:
        definition["defaultRule"] = {"variation": "on" if flag.kind is Kind.ON else "off"}
    return definition | ({"disable": True} if flag.kind is Kind.DISABLED else {})


def flipt(flags: Sequence[Flag]) -> Document:
    """Return the features.yaml of Flipt. A boolean flag that no rollout decides answers whether it is enabled."""
    named = {"type": "ENTITY_ID_COMPARISON_TYPE", "property": "entityId", "operator": "isoneof"}
    country = {"type": "STRING_COMPARISON_TYPE", "property": "country", "operator": "eq", "value": COUNTRY}
    users = "[" + ",".join(f'"{user_id}"' for user_id in NAMED_USERS) + "]"
    return {
        "version": "1.2",
        "namespace": "default",
        "flags": [_flipt_flag(flag) for flag in flags],
        "segments": [
            _flipt_segment(Kind.NAMED, named | {"value": users}),
            _flipt_segment(Kind.COUNTRY, country),
        ],
    }


def _flipt_segment(kind: Kind, constraint: Document) -> Document:
    return {"key": kind.value, "name": kind.value, "match_type": "ALL_MATCH_TYPE", "constraints": [constraint]}


def _flipt_flag(flag: Flag) -> Document:
    percents = {Kind.ROLLOUT: ROLLOUT_PERCENT, Kind.COUNTRY: OTHERS_PERCENT}
    rollouts: list[Document] = []
    if flag.kind in (Kind.NAMED, Kind.COUNTRY):
        rollouts.append({"segment": {"key": flag.kind.value, "value": True}})
    if flag.kind in percents:
        rollouts.append({"threshold": {"percentage": percents[flag.kind], "value": True}})
    return {
        "key": flag.key,
        "name": flag.key,
        "type": "BOOLEAN_FLAG_TYPE",
        "enabled": flag.kind is Kind.ON,
        "rollouts": rollouts,
    }


def unleash(flags: Sequence[Flag]) -> Document:
    """Return an export of Unleash, for IMPORT_FILE. Several strategies of a flag are alternatives."""
    return {
        "features": [{"name": flag.key, "type": "release", "project": "default"} for flag in flags],
        "featureStrategies": [strategy for flag in flags for strategy in _unleash_strategies(flag)],
        "featureEnvironments": [
            {"name": flag.key, "featureName": flag.key, "environment": "development", "enabled": _is_enabled(flag)}
            for flag in flags
        ],
        "contextFields": [{"name": "country"}],
        "featureTags": [],
        "segments": [],
        "tagTypes": [],
    }


def _is_enabled(flag: Flag) -> bool:
    """Whether Unleash has the flag on; it has one state for a flag that is off, and for one that is disabled."""
    return flag.kind not in (Kind.OFF, Kind.DISABLED)


def _unleash_strategies(flag: Flag) -> list[Document]:
    named = {"contextName": "userId", "operator": "IN", "values": NAMED_USERS}
    country = {"contextName": "country", "operator": "IN", "values": [COUNTRY]}
    match flag.kind:
        case Kind.ROLLOUT:
            return [_gradual(flag, ROLLOUT_PERCENT)]
        case Kind.NAMED:
            return [_gradual(flag, 100, named)]
        case Kind.COUNTRY:
            return [_gradual(flag, 100, country), _gradual(flag, OTHERS_PERCENT)]
        case _:
            return [_gradual(flag, 100)]


def _gradual(flag: Flag, percent: int, *constraints: Document) -> Document:
    parameters = {"rollout": str(percent), "stickiness": "userId", "groupId": flag.key}
    return {
        "name": "flexibleRollout",
        "featureName": flag.key,
        "parameters": parameters,
        "constraints": list(constraints),
    }


WRITERS: dict[str, Callable[[Sequence[Flag]], Document]] = {
    "flagd": flagd,
    "ofrep": go_feature_flag,
    "flipt": flipt,
    "unleash": unleash,
}
