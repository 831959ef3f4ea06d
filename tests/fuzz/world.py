"""What one fuzzing client knows of the server: what exists, with its etags, and what earlier answers offered."""

from collections.abc import Mapping
from random import Random
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from tests.fuzz.contract import Message, Method

# The fields of responses that hold a thing, and the field that is its name.
_KEYS: Mapping[str, str] = {
    "flag": "key",
    "segment": "key",
    "user": "user_id",
    "admin_user": "username",
    "client_key": "key_id",
    "api_token": "token_id",
}
# The field of a Delete request that names the thing.
_DELETED_BY: Mapping[str, tuple[str, str]] = {
    "DeleteFlag": ("flag", "key"),
    "DeleteSegment": ("segment", "key"),
    "DeleteUser": ("user", "user_id"),
    "DeleteAdminUser": ("admin_user", "username"),
}
_KEPT = 50
ODD_USER_IDS = (
    *("on", "off", "ALL", "IN", "11", "0", "admin", "true", "key", "null", "EQUALS", "flag", "reason", "é" * 128),
    *(
        "a b",
        "a'b",
        '"quoted"',
        "ann@example.com",
        "ann",
        "annette",
        "%s",
        "../..",
        "x" * 256,
        "👩",
    ),
)


class World:
    """The knowledge of one client. Its names are its own but for `shared` ones, on which clients meet.

    Args:
        random: Decides everything.
        client: A number that no other client has.
        size: How many names of a kind it uses; with it, how much the server has to keep.
    """

    def __init__(self, random: Random, *, client: int, size: int = 60) -> None:
        self.random = random
        shared = [f"shared{number}" for number in range(4)]
        own = [f"c{client}.{number}" for number in range(size)]
        self.names: Mapping[str, list[str]] = {
            "flag": [*own, *shared, "on", "11"],
            "segment": [*own, *shared, "EQUALS"],
            "user": [*own, *shared, *ODD_USER_IDS],
            "admin_user": [f"{name}@example.com" for name in own[:12]],
            "client_key": [],
            "api_token": [],
        }
        self.etags: dict[str, dict[str, str]] = {kind: {} for kind in _KEYS}
        self.offered: dict[str, list[Any]] = {}
        """By name of a field, what answers offered for it: tokens, anchors."""
        self.pages: dict[str, list[Message]] = {}
        """By name of an RPC, requests for next pages."""
        self.passwords: dict[str, str] = {}
        """By username, those that this client has set."""
        self.owners: dict[str, str] = {}
        """By access token, who logged in."""
        self.revision = 0

    def existing(self, kind: str) -> str:
        """The name of something that exists, as far as this client knows; else any name of the kind."""
        known = self.etags[kind]
        return self.random.choice([*known] or self.names[kind] or ["none"])

    def new(self, kind: str) -> str:
        """A name that nothing has, as far as this client knows, if there is one."""
        free = [name for name in self.names[kind] if name not in self.etags[kind]]
        return self.random.choice(free or self.names[kind])

    def fullness(self, kind: str) -> float:
        """The share of its names that exist."""
        return len(self.etags[kind]) / max(1, len(self.names[kind]))

    def offer(self, field: str, value: Any) -> None:
        """Remember a value to send in a field of this name."""
        values = self.offered.setdefault(field, [])
        values.append(value)
        del values[:-_KEPT]

    def taken(self, field: str, default: Any) -> Any:
        """A value that was offered for a field; else `default`."""
        return self.random.choice(self.offered.get(field) or [default])

    def learn(self, method: Method, request: Message, response: Message) -> None:
        """Take over what an answer tells about the state of the server."""
        if getattr(request, "validate_only", False):
            return
        self.revision = max(self.revision, getattr(response, "revision", 0))
        for kind, key in _KEYS.items():
            if kind in response.DESCRIPTOR.fields_by_name and (thing := getattr(response, kind)).ByteSize():
                self.etags[kind][getattr(thing, key)] = getattr(thing, "etag", "")
        self._learn_offers(method, request, response)
        self._learn_passwords(method, request, response)
        self._forget_deleted(method, request)

    def forget(self, kind: str, name: str) -> None:
        """Note that something does not exist."""
        self.etags[kind].pop(name, None)
        if kind == "admin_user":
            self.passwords.pop(name, None)

    def _learn_offers(self, method: Method, request: Message, response: Message) -> None:
        for field in ("access_token", "refresh_token", "secret"):
            if value := getattr(response, field, ""):
                self.offer(field, value)
        for session in getattr(response, "sessions", ()):
            if session.username in self.names["admin_user"]:  # Not the one that the clients use.
                self.offer("session_id", session.session_id)
        if "audit_anchor" in response.DESCRIPTOR.fields_by_name and response.audit_anchor.seq:
            self.offer("anchor", response.audit_anchor)
        if token := getattr(response, "next_page_token", ""):
            following = type(request)()
            following.CopyFrom(request)
            following.page_token = token
            self.pages.setdefault(method.name, []).append(following)
            del self.pages[method.name][:-_KEPT]

    def _learn_passwords(self, method: Method, request: Message, response: Message) -> None:
        if method.name == "Login":
            self.owners[response.access_token] = request.username
        elif method.name == "CreateAdminUser" or "password" in getattr(request, "update_mask", FieldMask()).paths:
            self.passwords[request.admin_user.username] = request.password

    def _forget_deleted(self, method: Method, request: Message) -> None:
        if method.name in _DELETED_BY:
            kind, field = _DELETED_BY[method.name]
            self.forget(kind, getattr(request, field))
        elif method.name == "EraseUser":
            self.forget("user", request.user_id)
