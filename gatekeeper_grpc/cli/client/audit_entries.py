"""How entries of the audit log are printed."""

import json
from typing import Any

from gatekeeper_grpc.cli.client.output import Column, Kind, choice_of, text_of, time_of

_SHORT_CHARS = 40
# By every change: the entry says the same.
_ALWAYS_CHANGED = ("revision", "update_time")


def _document_of(entry: Any) -> dict[str, Any]:
    try:
        document = json.loads(entry.document)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _reason_of(entry: Any) -> str:
    return str(_document_of(entry).get("change_reason") or "")


def _changes_of(entry: Any) -> str:
    """Say which fields of the resource changed, and how."""
    states = [_document_of(entry).get(name) for name in ("before", "after")]
    before, after = (state if isinstance(state, dict) else {} for state in states)
    if not (before and after):
        return ""
    changed = [name for name in after if name not in _ALWAYS_CHANGED and before.get(name) != after[name]]
    return ", ".join(f"{name}: {_short(before.get(name))} -> {_short(after[name])}" for name in changed)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHORT_CHARS else f"{text[:_SHORT_CHARS]}…"


ENTRY = Kind(
    plural="audit_entries",
    name_of=text_of("seq"),
    columns=(
        Column("SEQ", text_of("seq")),
        Column("TIME", time_of("create_time")),
        Column("ACTOR", text_of("actor")),
        Column("ACTION", text_of("action")),
        Column("RESOURCE", lambda entry: f"{choice_of('resource_type')(entry)} {entry.resource_key}", is_wide=True),
        Column("REVISION", text_of("revision"), is_wide=True),
        Column("CHANGES", _changes_of),
        Column("REASON", _reason_of),
    ),
)
