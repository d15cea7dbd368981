"""How commands show a change: as JSON, and as printable text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redisfuse.cli._output import bytes_to_json, escape_text, format_utc

if TYPE_CHECKING:
    from redisfuse.journal.models import Change, State

STATE_STYLES = {
    "applied": "",
    "pending": "yellow",
    "failed": "dim",
    "unknown": "bold red",
    "refused": "magenta",
    "held": "yellow",
}
MAX_PREVIEW_BYTES = 200  # bytes of a value in `format_state`


def change_to_json(change: Change) -> dict[str, Any]:
    """Return a change for JSON, without its contents."""
    return {
        "id": change.id,
        "group": change.group_id,
        "session": change.session_id,
        "server": change.server_name,
        "at": format_utc(change.recorded_at),
        "op": change.op,
        "path": bytes_to_json(change.path),
        "new_path": bytes_to_json(change.new_path),
        "key": bytes_to_json(change.key),
        "field": bytes_to_json(change.field),
        "state": change.outcome,
        "error": change.error,
        "prior_type": bytes_to_json(change.prior.type),
        "prior_size": change.prior.size,
        "prior_expires_at": format_utc(change.prior.expires_at),
        "new_type": bytes_to_json(change.new.type),
        "new_size": change.new.size,
        "new_expires_at": format_utc(change.new.expires_at),
        "reverts": change.reverts,
        "applies": change.applies,
        "settled_at": format_utc(change.settled_at),
    }


def format_change(change: Change) -> str:
    """Return a change as one printable line."""
    return f"{change.id}  {change.op}  {format_path(change)}  ({format_key(change)})"


def format_path(change: Change) -> str:
    """Return the changed path as printable text; for a rename both paths."""
    path = escape_text(change.path)
    return path if change.new_path is None else f"{path} → {escape_text(change.new_path)}"


def format_key(change: Change) -> str:
    """Return the key, or the key and its field, as printable text."""
    key = escape_text(change.key)
    return key if change.field is None else f"{key} field {escape_text(change.field)}"


def describe_state(state: State) -> str:
    """Return a short printable description of a state."""
    if state.kind == "absent":
        return "nothing"
    if state.kind == "directory":
        return "an empty directory"
    if state.kind == "slice":
        size = state.content.size if state.content else 0
        return f"{escape_text(state.type)}: {size} bytes at {state.offset} of {state.total_size}"
    if state.kind == "object":
        vendor = f" by {escape_text(state.dump_version.encode())}" if state.dump_version else ""
        dump = f"DUMP of {state.content.size} bytes{vendor}" if state.content else "no DUMP"
        return f"{escape_text(state.type)}, {dump}"
    return f"{escape_text(state.type)} of {state.size} bytes"


def format_state(state: State) -> str:
    """Return a state and the beginning of its content as one printable line."""
    text = describe_state(state)
    content = state.portable_copy if state.kind == "object" else state.content
    if content is None or not content.size:
        return text
    head = content.read_prefix(MAX_PREVIEW_BYTES)
    return f"{text}: {escape_text(head)}{'…' if content.size > len(head) else ''}"
