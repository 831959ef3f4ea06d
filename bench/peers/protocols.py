"""The work of `bench.peers` in the protocol of each product: what is sent, and how an answer is read."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlencode

from bench.peers.flags import Flag, User
from bench.peers.messages import STRUCT, message_types
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, EvaluateFlagsResponse

Values = dict[str, bool]


class Call(NamedTuple):
    """One call: where it goes, what it carries, and how to read the answer. Without a body it is a GET."""

    path: str
    body: bytes | None
    read: Callable[[bytes], Values]


class Protocol(ABC):
    """How a product is asked for flags."""

    grpc: ClassVar[bool] = False
    evaluates: ClassVar[bool] = True

    @abstractmethod
    def all_flags(self, flags: Sequence[Flag], user: User) -> Call:
        """Ask for all flags of one user."""

    @abstractmethod
    def one_flag(self, flag: Flag, user: User) -> Call | None:
        """Ask for one flag of one user; None if the protocol has no such call."""


class Gatekeeper(Protocol):
    """`EvaluateFlags`, over gRPC."""

    grpc = True

    def all_flags(self, flags: Sequence[Flag], user: User) -> Call:  # noqa: ARG002
        """Name no flag, which means all."""
        return self._call(user, ())

    def one_flag(self, flag: Flag, user: User) -> Call:
        """Name one flag."""
        return self._call(user, [flag.key])

    def _call(self, user: User, keys: Iterable[str]) -> Call:
        request = EvaluateFlagsRequest(context=EvaluationContext(user_id=user.user_id), flag_keys=keys)
        request.context.attributes.update(user.attributes)
        return Call("/gatekeeper.v1.EvaluationService/EvaluateFlags", request.SerializeToString(), self._read)

    @staticmethod
    def _read(answer: bytes) -> Values:
        return dict(EvaluateFlagsResponse.FromString(answer).flags)


class Empty(Gatekeeper):
    """The same, to `bench.empty`, whose answers are empty."""

    evaluates = False


_FLAGD = message_types(
    "flagd.evaluation.v1",
    {
        "ResolveAllRequest": {"context": (1, STRUCT)},
        "ResolveAllResponse": {"flags": (1, "*Entry")},
        "Entry": {"key": (1, "string"), "value": (2, "AnyFlag")},
        "AnyFlag": {"bool_value": (3, "bool")},
        "ResolveBooleanRequest": {"flag_key": (1, "string"), "context": (2, STRUCT)},
        "ResolveBooleanResponse": {"value": (1, "bool")},
    },
)


class Flagd(Protocol):
    """`flagd.evaluation.v1.Service`, over gRPC."""

    grpc = True

    def all_flags(self, flags: Sequence[Flag], user: User) -> Call:  # noqa: ARG002
        """ResolveAll."""
        request = _FLAGD["ResolveAllRequest"](context=_targeting(user))
        return Call("/flagd.evaluation.v1.Service/ResolveAll", request.SerializeToString(), self._read)

    def one_flag(self, flag: Flag, user: User) -> Call:
        """ResolveBoolean."""
        request = _FLAGD["ResolveBooleanRequest"](flag_key=flag.key, context=_targeting(user))

        def read(answer: bytes) -> Values:
            return {flag.key: _FLAGD["ResolveBooleanResponse"].FromString(answer).value}

        return Call("/flagd.evaluation.v1.Service/ResolveBoolean", request.SerializeToString(), read)

    @staticmethod
    def _read(answer: bytes) -> Values:
        entries = _FLAGD["ResolveAllResponse"].FromString(answer).flags
        return {entry.key: entry.value.bool_value for entry in entries}


class Ofrep(Protocol):
    """The OpenFeature Remote Evaluation Protocol, over HTTP."""

    def all_flags(self, flags: Sequence[Flag], user: User) -> Call:  # noqa: ARG002
        """Evaluate in bulk."""
        return Call("/ofrep/v1/evaluate/flags", _json({"context": _targeting(user)}), self._read)

    def one_flag(self, flag: Flag, user: User) -> Call:
        """Evaluate one flag."""
        path = f"/ofrep/v1/evaluate/flags/{flag.key}"
        return Call(path, _json({"context": _targeting(user)}), lambda answer: _ofrep_values([json.loads(answer)]))

    @staticmethod
    def _read(answer: bytes) -> Values:
        return _ofrep_values(json.loads(answer)["flags"])


def _ofrep_values(entries: Iterable[Mapping[str, Any]]) -> Values:
    """Read values; a disabled flag has none, or null."""
    return {entry["key"]: entry["value"] for entry in entries if isinstance(entry.get("value"), bool)}


_FLIPT = message_types(
    "flipt.evaluation",
    {
        "EvaluationRequest": {
            "namespace_key": (2, "string"),
            "flag_key": (3, "string"),
            "entity_id": (4, "string"),
            "context": (5, "*Entry"),
        },
        "Entry": {"key": (1, "string"), "value": (2, "string")},
        "BatchEvaluationRequest": {"requests": (3, "*EvaluationRequest")},
        "BatchEvaluationResponse": {"responses": (2, "*EvaluationResponse")},
        "EvaluationResponse": {"boolean_response": (2, "BooleanEvaluationResponse")},
        "BooleanEvaluationResponse": {"enabled": (1, "bool"), "flag_key": (6, "string")},
    },
)


class FliptGrpc(Protocol):
    """`flipt.evaluation.EvaluationService`, over gRPC. `Batch` asks for each flag by its key."""

    grpc = True

    def all_flags(self, flags: Sequence[Flag], user: User) -> Call:
        """Batch."""
        request = _FLIPT["BatchEvaluationRequest"](requests=[self._request(flag, user) for flag in flags])
        return Call("/flipt.evaluation.EvaluationService/Batch", request.SerializeToString(), self._read_batch)

    def one_flag(self, flag: Flag, user: User) -> Call:
        """Boolean."""
        body = self._request(flag, user).SerializeToString()
        return Call("/flipt.evaluation.EvaluationService/Boolean", body, self._read)

    @staticmethod
    def _request(flag: Flag, user: User) -> Any:
        context = [_FLIPT["Entry"](key=name, value=value) for name, value in user.attributes.items()]
        return _FLIPT["EvaluationRequest"](
            namespace_key="default", flag_key=flag.key, entity_id=user.user_id, context=context
        )

    @staticmethod
    def _read_batch(answer: bytes) -> Values:
        batch = _FLIPT["BatchEvaluationResponse"].FromString(answer)
        booleans = [response.boolean_response for response in batch.responses]
        return {boolean.flag_key: boolean.enabled for boolean in booleans if boolean.flag_key}

    @staticmethod
    def _read(answer: bytes) -> Values:
        boolean = _FLIPT["BooleanEvaluationResponse"].FromString(answer)
        return {boolean.flag_key: boolean.enabled}


class FliptHttp(Protocol):
    """The same over HTTP."""

    def all_flags(self, flags: Sequence[Flag], user: User) -> Call:
        """Evaluate a batch."""
        body = _json({"requests": [self._request(flag, user) for flag in flags]})
        return Call("/evaluate/v1/batch", body, self._read_batch)

    def one_flag(self, flag: Flag, user: User) -> Call:
        """Evaluate a boolean flag."""
        return Call("/evaluate/v1/boolean", _json(self._request(flag, user)), self._read)

    @staticmethod
    def _request(flag: Flag, user: User) -> dict[str, Any]:
        return {
            "namespaceKey": "default",
            "flagKey": flag.key,
            "entityId": user.user_id,
            "context": user.attributes,
        }

    @staticmethod
    def _read_batch(answer: bytes) -> Values:
        responses = json.loads(answer)["responses"]
        booleans = [response["booleanResponse"] for response in responses if "booleanResponse" in response]
        return {boolean["flagKey"]: boolean.get("enabled", False) for boolean in booleans}

    @staticmethod
    def _read(answer: bytes) -> Values:
        boolean = json.loads(answer)
        return {boolean["flagKey"]: boolean.get("enabled", False)}


class Unleash(Protocol):
    """The frontend API of Unleash, over HTTP: it answers with the flags that are true, and has no call for one."""

    def all_flags(self, flags: Sequence[Flag], user: User) -> Call:  # noqa: ARG002
        """Ask for the enabled flags."""
        properties = {f"properties[{name}]": value for name, value in user.attributes.items()}
        return Call(f"/api/frontend?{urlencode({'userId': user.user_id, **properties})}", None, self._read)

    def one_flag(self, flag: Flag, user: User) -> Call | None:  # noqa: ARG002
        """Return None."""
        return None

    @staticmethod
    def _read(answer: bytes) -> Values:
        return {toggle["name"]: toggle["enabled"] for toggle in json.loads(answer)["toggles"]}


def protocol_of(name: str, scheme: str) -> Protocol:
    """Return the protocol of a peer; the scheme of its URL decides where there are two.

    Raises:
        LookupError: there is no such protocol over this scheme.
    """
    protocols: dict[tuple[str, str], type[Protocol]] = {
        ("flagd", "grpc"): Flagd,
        ("ofrep", "http"): Ofrep,
        ("flipt", "grpc"): FliptGrpc,
        ("flipt", "http"): FliptHttp,
        ("unleash", "http"): Unleash,
    }
    if (name, scheme) not in protocols:
        known = ", ".join(f"{known_name} {known_scheme}://" for known_name, known_scheme in protocols)
        raise LookupError(f"{name} {scheme}:// is none of {known}")
    return protocols[name, scheme]()


def _targeting(user: User) -> dict[str, str]:
    return {"targetingKey": user.user_id, **user.attributes}


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
