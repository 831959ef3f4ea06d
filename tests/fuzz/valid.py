"""Requests that a server should accept: of every RPC, about what exists. A field has a rule, or goes by its type."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict

from tests.fuzz.contract import Message, Method
from tests.fuzz.world import World
from tests.support.operators import in_s

PASSWORDS = ("correct-horse-battery", "tr0ubadour-staple!", "пароль-длинный-очень")
_NO_SESSION = "00000000-0000-4000-8000-000000000000"
_ATTRIBUTES = ("plan", "country", "age", "version", "joined", "email", "/address/city")
_STRINGS = ("gold", "eu", "DE", "ann@example.com", "11", "ann", "IN")
_TIMES = ("2026-01-31T12:00:00Z", "1999-12-31T23:59:59.999+14:00")
_VERSIONS = ("1.2.3", "2.0.0-rc.1", "0.0.1+build")
_OPERANDS: Mapping[tuple[str, ...], tuple[Any, ...]] = {
    ("EQUALS", "IN"): (*_STRINGS, 5, 5.5, True, ["a", 1]),
    ("CONTAINS",): (*_STRINGS, 5),
    ("STARTS_WITH", "ENDS_WITH"): _STRINGS,
    ("GREATER_THAN", "GREATER_OR_EQUAL", "LESS_THAN", "LESS_OR_EQUAL"): (0, 18, -1.5, 1e15),
    ("EXISTS",): (),
    ("BEFORE", "AFTER"): _TIMES,
    (
        *("SEMVER_EQUAL", "SEMVER_GREATER", "SEMVER_GREATER_OR_EQUAL"),
        *("SEMVER_LESS", "SEMVER_LESS_OR_EQUAL"),
    ): _VERSIONS,
}
_MANY = frozenset({"IN", "CONTAINS", "STARTS_WITH", "ENDS_WITH"})
_FLAG_MASK = ("description", "enabled", "default_value", "rollout_percentage", "segment_targets", "tags", "owner")
_MASKS: Mapping[str, tuple[str, ...]] = {
    "UpdateFlag": _FLAG_MASK,
    "PreviewFlagChange": _FLAG_MASK,
    "UpdateSegment": ("description", "match", "conditions"),
    "UpdateUser": ("attributes", "attributes.plan", "attributes.age", "attributes./address/city"),
    "UpdateAdminUser": ("role", "enabled", "password"),
}


def valid_request(method: Method, world: World) -> Message:
    """Make a request that the server should accept, if what it names still exists."""
    pages = world.pages.get(method.name)
    if pages and world.random.random() < 0.5:
        return pages.pop()
    request = method.request()
    for field in request.DESCRIPTOR.fields:
        _fill(request, field, method, world)
    _name_etag(request, method, world)
    _know_password(request, method, world)
    return request


def _name_etag(request: Message, method: Method, world: World) -> None:
    """Put in the etag of what the request names, in half of all cases."""
    kind = kind_of(method)
    thing = getattr(request, kind) if kind in request.DESCRIPTOR.fields_by_name else request
    named_by = [field for field in ("key", "flag_key", "segment_key", "user_id", "username") if hasattr(thing, field)]
    if named_by and "etag" in thing.DESCRIPTOR.fields_by_name and world.random.random() < 0.5:
        thing.etag = world.etags[kind].get(getattr(thing, named_by[0]), "")


def _know_password(request: Message, method: Method, world: World) -> None:
    """Log in with a password that is right, as far as this client knows."""
    if method.name == "Login" and world.passwords:
        request.username = world.random.choice([*world.passwords])
        request.password = world.passwords[request.username]


def _fill(message: Message, field: FieldDescriptor, method: Method, world: World) -> None:
    """Fill a field by its rule; without one by its type; or, if it is optional, leave it."""
    rule = _RULES.get(field.name)
    if rule is not None:
        _put(message, field, rule(method, world))
    elif field.message_type is not None and field.message_type.file.package == message.DESCRIPTOR.file.package:
        inner = getattr(message, field.name)
        for part in [inner.add()] if field.is_repeated else [inner]:
            for inner_field in part.DESCRIPTOR.fields:
                _fill(part, inner_field, method, world)
    elif field.type == FieldDescriptor.TYPE_STRING and world.random.random() < 0.3:
        _put(message, field, world.random.choice(_STRINGS))


def _put(message: Message, field: FieldDescriptor, value: Any) -> None:
    """Set a field to a value; to a dict as JSON, to a message by copying, to None not at all."""
    if value is None:
        return
    if field.is_repeated and not isinstance(value, dict):
        _extend(getattr(message, field.name), value, field)
    elif isinstance(value, dict):
        ParseDict(value, getattr(message, field.name))
    elif field.message_type is not None:
        getattr(message, field.name).MergeFromString(value.SerializeToString())
    else:
        setattr(message, field.name, value)


def _extend(repeated: Any, values: list[Any], field: FieldDescriptor) -> None:
    for value in values:
        if field.message_type is None:
            repeated.append(value)
        else:
            ParseDict(value, repeated.add())


# --- The rules, by name of a field: what it may hold -----------------------------------------------------------------


_KINDS = {
    "Flag": "flag",
    "Segment": "segment",
    "AdminUser": "admin_user",
    "User": "user",
    "ClientKey": "client_key",
    "ApiToken": "api_token",
}


def kind_of(method: Method) -> str:
    """What kind of thing a method is about, by its name."""
    return next((kind for word, kind in _KINDS.items() if word in method.name), "flag")


def _name(method: Method, world: World) -> str:
    kind = kind_of(method)
    return world.new(kind) if method.name.startswith("Create") else world.existing(kind)


def _user_id(method: Method, world: World) -> str:
    if method.name == "CreateUser":
        return world.new("user")
    known = method.name in {"GetUser", "UpdateUser", "DeleteUser"}
    return world.existing("user") if known else world.random.choice(world.names["user"])


def _user_ids(_method: Method, world: World) -> list[str]:
    return world.random.sample(world.names["user"], world.random.randint(1, 8))


def _mask(method: Method, world: World) -> FieldMask | None:
    paths = _MASKS.get(method.name)
    if paths is None:
        return None
    chosen = world.random.sample(paths, world.random.randint(1, min(3, len(paths))))
    if "attributes" in chosen:
        chosen = ["attributes"]
    return FieldMask(paths=chosen)


def _conditions(_method: Method, world: World) -> list[dict[str, Any]]:
    return [_condition(world) for _ in range(world.random.randint(0, 3))]


def _condition(world: World) -> dict[str, Any]:
    operators, operands = world.random.choice([*_OPERANDS.items()])
    operator = world.random.choice(operators)
    count = min(len(operands), world.random.randint(1, 3) if operator in _MANY else 1)
    return {
        "attribute": world.random.choice(_ATTRIBUTES),
        "operator": f"CONDITION_OPERATOR_{operator}",
        "values": world.random.sample(operands, count),
        "negate": world.random.random() < 0.2,
    }


def _attributes(_method: Method, world: World) -> dict[str, Any]:
    values = (*_STRINGS, *_TIMES, *_VERSIONS, 17, 18.5, True, None, ["a", 1], {"city": "Köln"})
    chosen = world.random.sample(_ATTRIBUTES, world.random.randint(0, 4))
    return {name: world.random.choice(values) for name in chosen}


def _segment_targets(_method: Method, world: World) -> list[dict[str, Any]]:
    known = [*world.etags["segment"]]
    chosen = world.random.sample(known, min(len(known), world.random.randint(0, 2)))
    return [{"segmentKey": key, "value": world.random.random() < 0.5} for key in chosen]


def _contexts(method: Method, world: World) -> list[dict[str, Any]]:
    ids = _user_ids(method, world)
    return [{"userId": user_id, "attributes": _attributes(method, world)} for user_id in ids]


def _request_id(_method: Method, world: World) -> str:
    if world.random.random() < 0.8:
        return ""
    if world.random.random() < 0.9:
        world.offer("request_id", str(UUID(int=world.random.getrandbits(128), version=4)))
    return str(world.taken("request_id", ""))


def _flag_keys(_method: Method, world: World) -> list[str]:
    known = [*world.etags["flag"]]
    return world.random.sample(known, min(len(known), world.random.randint(0, 3)))


def _min_revision(_method: Method, world: World) -> int:
    return world.random.choice((0, 0, 1, world.revision))


_Rule = Callable[[Method, World], Any]


def _one_of(*values: Any) -> _Rule:
    return lambda _method, world: world.random.choice(values)


def _none(_method: Method, _world: World) -> None:
    return None


_RULES: Mapping[str, _Rule] = {
    "key": _name,
    "flag_key": lambda _method, world: world.existing("flag"),
    "segment_key": lambda _method, world: world.existing("segment"),
    "token_id": lambda _method, world: world.existing("api_token"),
    "key_id": lambda _method, world: world.existing("client_key"),
    "user_id": _user_id,
    "user_ids": _user_ids,
    "username": lambda method, world: (
        world.new("admin_user") if method.name == "CreateAdminUser" else world.existing("admin_user")
    ),
    "password": _one_of(*PASSWORDS),
    "current_password": _one_of(*PASSWORDS),
    "new_password": _one_of(*PASSWORDS),
    "refresh_token": lambda _method, world: world.taken("refresh_token", "none"),
    "session_id": lambda _method, world: world.taken("session_id", _NO_SESSION),
    "role": _one_of(1, 2, 3),
    "tier": _one_of(1, 2, 3),
    "type": _one_of(1, 2),
    "match": _one_of(1, 2),
    "rollout_percentage": _one_of(0, 1, 50, 99, 100),
    "enabled": _one_of(True, True, False),
    "value": _one_of(True, False),
    "variant": _one_of("on", "off"),
    "default_value": _one_of(True, False),
    "include_details": _one_of(True, False),
    "description": _one_of("", "a text", "for ann and IN", "Ünïcödé"),
    "owner": _one_of("", "team-a", "ann"),
    "tags": lambda _method, world: world.random.sample(["a", "b", "on", "ann"], world.random.randint(0, 2)),
    "name": _one_of("shop", "checkout"),
    "change_reason": _one_of("", "", "because", "ann asked", "11"),
    "validate_only": _one_of(False, False, False, False, True),
    "request_id": _request_id,
    "etag": _none,
    "update_mask": _mask,
    "conditions": _conditions,
    "attributes": _attributes,
    "segment_targets": _segment_targets,
    "contexts": _contexts,
    "flag_keys": _flag_keys,
    "min_revision": _min_revision,
    "from_revision": _min_revision,
    "anchor": lambda _method, world: world.taken("anchor", None),
    "page_size": _one_of(0, 1, 2, 100, 1_000),
    "page_token": _none,
    "key_prefix": _one_of("", "c", "shared"),
    "actor": _one_of("", "", "admin:admin"),
    "action": _one_of("", "", "CreateFlag"),
    "event": _one_of("", "", "login_failed", "user_read"),
    "resource_type": _one_of(0, 0, 1),
    "resource_key": _none,
    "start_time": _none,
    "end_time": _none,
    "start_revision": _one_of(0, 1),
    "end_revision": _one_of(0, 0, 1_000_000),
    "create_time": _none,
    "update_time": _none,
    "expire_time": lambda method, _world: in_s(3_600) if method.name == "CreateApiToken" else None,
    "revoke_time": _none,
    "last_used_time": _none,
    "service": _one_of("", "gatekeeper.v1.EvaluationService"),
    "host": _one_of("", "localhost"),
}
