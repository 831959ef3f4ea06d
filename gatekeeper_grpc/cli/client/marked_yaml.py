"""YAML and JSON whose values know their lines, read and written so that a text stays the text that it was.

What is no text is decided as YAML 1.2 does: `on`, `no` and 2020-01-01 are texts, `1e3` is a number. Writing quotes a
text that a reader of YAML 1.1 or of 1.2 would take for something else.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from gatekeeper_grpc.cli.client.failures import Failure

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _TEXT = (f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str"))
# Of YAML 1.2, "Core Schema"; the first characters are those that a match may begin with.
_KINDS = (
    (_NULL, r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    (_BOOL, r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    (_INT, r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (_FLOAT, r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
)
# In JSON: an escape, or a character that YAML does not take as it is.
_UNLIKE_YAML = re.compile(r"\\u(d[89ab]..)\\u(d[c-f]..)|\\.|\t|[^\x20-\x7e\n\r]", re.IGNORECASE)
_WIDTH = 1 << 30
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the line on which it begins: a mapping of texts, a list, or a scalar."""

    line: int
    value: "dict[str, Node] | list[Node] | str | int | float | bool | None"

    def plain(self) -> Any:
        """Return the value without lines."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


def read_marked(text: str, name: str) -> Node:
    """Read a document of YAML or JSON.

    Raises:
        Failure: It is neither, or has a key twice, an alias or another type; names the line.
    """
    import yaml  # noqa: PLC0415 - no other command needs it

    try:
        root = yaml.compose(_as_yaml(text), Loader=_loader())
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise fault(name, line, f"is no YAML or JSON: {exc.problem}") from None
    except (yaml.YAMLError, RecursionError) as exc:
        raise fault(name, 1, f"is no YAML or JSON: {type(exc).__name__}") from None
    if root is None:
        return Node(1, {})
    return _Reader(name).node(root, 0)


def fault(name: str, line: int, what: str) -> Failure:
    """Make the failure of a file that is wrong on a line."""
    return Failure(f"{name}:{line}: {what}", 2)


def write_yaml(document: Any) -> str:
    """Return a document as YAML, a line for each scalar."""
    import yaml  # noqa: PLC0415 - no other command needs it

    return str(
        yaml.dump(
            document, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=False
        )
    )


def _as_yaml(text: str) -> str:
    """Return JSON as the same document of YAML, line by line; anything else as it is."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _UNLIKE_YAML.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    if found[1]:
        high, low = int(found[1], 16), int(found[2], 16)
        return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"
    if found[0] == "\t":
        return " "
    return found[0] if found[0].startswith("\\") or found[0].isprintable() else f"\\U{ord(found[0]):08x}"


class _Reader:
    """Turns the nodes of the parser into ours."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: set[int] = set()

    def node(self, source: Any, depth: int, line: int = 0) -> Node:
        """Return a node; without a line, that of its first character, which for an alias is elsewhere."""
        line = line or source.start_mark.line + 1
        if id(source) in self._seen:
            raise fault(self._name, line, "an alias is used: write the value out")
        if depth > _MAX_DEPTH:
            raise fault(self._name, line, "it is nested too deeply")
        self._seen.add(id(source))
        if source.id == "mapping":
            return Node(line, self._mapping(source, depth))
        if source.id == "sequence":
            return Node(line, [self.node(item, depth + 1) for item in source.value])
        return Node(line, self._scalar(source, line))

    def _mapping(self, source: Any, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key, value in source.value:
            line = key.start_mark.line + 1
            if key.id != "scalar":
                raise fault(self._name, line, "a name must be text")
            if key.value in found:
                raise fault(self._name, line, f"{key.value!r} stands here twice")
            # Its line is that of its name: a block begins on the next one.
            found[key.value] = self.node(value, depth + 1, line)
        return found

    def _scalar(self, source: Any, line: int) -> str | int | float | bool | None:
        text = str(source.value)
        match source.tag:
            case tag if tag == _TEXT:
                return text
            case tag if tag == _NULL:
                return None
            case tag if tag == _BOOL:
                return text.lower() == "true"
            case tag if tag == _INT:
                return int(text, 0 if text[:2] in ("0o", "0x") else 10)
            case tag if tag == _FLOAT:
                return float(text)
            case tag:
                raise fault(self._name, line, f"{tag} is no type of JSON")


def _loader() -> Any:
    import yaml  # noqa: PLC0415 - no other command needs it

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    return _with_kinds(Loader)


def _dumper() -> Any:
    import yaml  # noqa: PLC0415 - no other command needs it

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        pass

    def represent(dumper: Any, text: str) -> Any:
        return dumper.represent_scalar(_TEXT, text, style=None if text.isprintable() else '"')

    Dumper.add_representer(str, represent)
    return _with_kinds(Dumper)


def _with_kinds(tool: Any) -> Any:
    for tag, pattern, first in _KINDS:
        tool.add_implicit_resolver(tag, re.compile(pattern), first)
    return tool
