"""What is wrong with settings, in words for operators: pydantic's own speak of patterns and types."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic.fields import FieldInfo

PREFIX = "GATEKEEPER_"
"""What the names of variables begin with, but those of database URLs."""
# What may be repeated, by what the type of a field contains. Anything else may be a secret in the wrong variable.
_HARMLESS = {
    "Address": re.compile(r"[\w.*\[\]-]{0,64}(:[\da-f.\]]{0,5}){1,8}|unix:[\w./-]{0,120}|\d{1,5}", re.IGNORECASE),
    "int": re.compile(r"[-+]?[\d.]{1,20}"),
    "float": re.compile(r"[-+]?([\d.]{1,20}(e[-+]?\d{1,3})?|inf|nan)", re.IGNORECASE),
    "Rate": re.compile(r"\d{1,9}(/[a-z]{0,6})?( burst \d{0,9})?"),
    "Literal": re.compile(r"[a-z]{1,10}", re.IGNORECASE),
    "bool": re.compile(r"[a-z]{1,10}|\d{1,2}", re.IGNORECASE),
}
_BOUNDS = {"gt": " above {}", "ge": " of {} or more", "le": ", at most {}"}
_NUMERIC_TYPES = re.compile(r"(int|float)_\w+|greater_than\w*|less_than\w*|finite_number")


def fault_of(error: Mapping[str, Any], field: FieldInfo | None) -> str:
    """Say what a value must be, as "'70' must be ..."; leave out a value that may be a secret.

    Args:
        error: One of pydantic's, with its input.
        field: Of the value; None if the error is about several.
    """
    if field is None:
        return _reason(error, None)
    return f"{_quoted(error.get('input'), field)}{_reason(error, field)}"


def nearest_variable(name: str, known: list[str]) -> str | None:
    """Return the variable that somebody may have meant; None if none is near."""
    stems = {variable.removeprefix(PREFIX): variable for variable in known}
    return next((stems[stem] for stem in get_close_matches(name.removeprefix(PREFIX), stems, n=1)), None)


def _reason(error: Mapping[str, Any], field: FieldInfo | None) -> str:
    kind = str(error["type"])
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if field is not None and _NUMERIC_TYPES.fullmatch(kind):
        return f"must be {_number_of(field)}"
    if kind.startswith("bool"):
        return "must be true or false"
    if kind == "literal_error":
        return f"must be {error['ctx']['expected'].replace(chr(39), '')}"
    return str(error["msg"])


def _number_of(field: FieldInfo) -> str:
    """Return what numbers a field takes, such as "a whole number of 1 or more, at most 64"."""
    kind = "a whole number" if "int" in str(field.annotation) else "a number"
    limits = [(name, getattr(bound, name)) for bound in field.metadata for name in _BOUNDS if hasattr(bound, name)]
    return "".join([kind, *(_BOUNDS[name].format(limit) for name, limit in limits)])


def _quoted(value: object, field: FieldInfo) -> str:
    forms = [form for kind, form in _HARMLESS.items() if kind in str(field.annotation)]
    return f"'{value}' " if isinstance(value, str) and any(form.fullmatch(value) for form in forms) else ""
