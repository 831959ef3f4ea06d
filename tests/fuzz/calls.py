"""Makes the calls of one client, by chance: which RPC, with which messages and metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.fuzz.contract import Message, Method
from tests.fuzz.odd import Metadata, damaged, huge, make_odd, odd_metadata
from tests.fuzz.valid import PASSWORDS, kind_of, valid_request
from tests.fuzz.world import World

DAMAGED = 0.35
"""The share of calls with damaged bytes."""
_ODD = 0.12
_ODD_METADATA = 0.03
_ODD_COUNT = 0.02
_HUGE = 0.001
_OWN_TOKEN = 0.05
# How often an RPC is called, compared with one that is not listed.
_WEIGHTS: Mapping[str, float] = {
    "CreateFlag": 2.0,
    "CreateSegment": 2.0,
    "CreateUser": 3.0,
    "UpdateFlag": 4.0,
    "UpdateSegment": 3.0,
    "UpdateUser": 3.0,
    "AddTargets": 2.0,
    "EvaluateFlags": 4.0,
    "BulkEvaluateFlags": 2.0,
    "WatchFlags": 0.5,
    "VerifyAuditLog": 0.1,
    "EraseUser": 0.3,
    "ExportUserData": 0.5,
    "RefreshToken": 0.3,
    "Logout": 0.2,
    # These hash passwords: 50 ms each and more.
    "Login": 0.3,
    "ChangePassword": 0.1,
    "CreateAdminUser": 0.2,
    "UpdateAdminUser": 0.2,
    "DeleteAdminUser": 0.1,
}
# Passwords that are wrong too often would lock out the address of all clients.
_UNDAMAGED = frozenset({"Login"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, as it is sent. `request` is its only message if that was sent as it is, and None otherwise."""

    method: Method
    messages: tuple[bytes, ...]
    metadata: Metadata
    request: Message | None
    is_honest: bool
    """Whether nothing was made odd: such a call fails only because of what others did."""

    def __str__(self) -> str:
        messages = " ".join(message[:2_000].hex() or "(empty)" for message in self.messages)
        names = " ".join(name for name, _ in self.metadata)
        return f"{self.method.path} with [{names}]: {messages or '(no message)'}"


class Caller:
    """Makes calls to `methods` from what a world knows. `token` is an admin's that stays valid."""

    def __init__(self, methods: Sequence[Method], world: World, token: str) -> None:
        self._methods = methods
        self._world = world
        self._token = token

    def next(self) -> Call:
        """Make the next call."""
        random = self._world.random
        (method,) = random.choices(self._methods, [self._weight(method) for method in self._methods])
        has_odd_count = random.random() < _ODD_COUNT
        count = random.choice((0, 2, 3)) if has_odd_count else random.randint(1, 4) if method.streams_requests else 1
        requests = [valid_request(method, self._world) for _ in range(count)]
        for later in requests[1:]:
            _leave_to_first(later)
        token = self._token_for(method, requests)
        is_damaged = random.random() < DAMAGED and method.name not in _UNDAMAGED
        is_odd = not is_damaged and random.random() < _ODD
        if is_odd and requests:
            make_odd(random.choice(requests), random)
        messages = [request.SerializeToString() for request in requests]
        if is_damaged and messages:
            damaged_one = random.randrange(len(messages))
            messages[damaged_one] = damaged(messages[damaged_one], random)
        if random.random() < _HUGE:
            messages, is_damaged = [huge(random)], True
        metadata: Metadata = (("authorization", f"Bearer {token}"),)
        has_odd_metadata = random.random() < _ODD_METADATA
        return Call(
            method=method,
            messages=tuple(messages),
            metadata=odd_metadata(random, token) if has_odd_metadata else metadata,
            request=requests[0] if len(requests) == 1 and not is_damaged else None,
            is_honest=not (is_damaged or is_odd or has_odd_metadata or has_odd_count),
        )

    def _weight(self, method: Method) -> float:
        """Create more while there is little, and delete more while there is much."""
        weight = _WEIGHTS.get(method.name, 1.0)
        if method.name.startswith(("Create", "Delete")):
            fullness = self._world.fullness(kind_of(method))
            return weight * (1.0 - fullness if method.name.startswith("Create") else fullness) + 0.02
        return weight

    def _token_for(self, method: Method, requests: list[Message]) -> str:
        """Use the token that an admin user of this client's own got, now and then, and to change its password."""
        world = self._world
        if method.name != "ChangePassword" and world.random.random() >= _OWN_TOKEN:
            return self._token
        token: str = world.taken("access_token", self._token)
        if method.name == "ChangePassword":
            for request in requests:
                request.current_password = world.passwords.get(world.owners.get(token, ""), "wrong-password-here")
                request.new_password = world.random.choice(PASSWORDS)
        return token


def _leave_to_first(later: Message) -> None:
    """Clear what only the first message of a stream may say."""
    for field in ("flag_keys", "min_revision", "etag", "flag", "update_mask", "rows"):
        if field in later.DESCRIPTOR.fields_by_name:
            later.ClearField(field)
