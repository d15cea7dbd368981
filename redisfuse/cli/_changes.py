"""How commands show a change: as JSON, and as printable text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redisfuse.cli._output import bytes_to_json, format_utc

if TYPE_CHECKING:
    from redisfuse.journal.models import Change

STATE_STYLES = {
    "applied": "",
    "pending": "yellow",
    "failed": "dim",
    "unknown": "bold red",
    "refused": "magenta",
    "held": "yellow",
}


def change_to_json(change: Change) -> dict[str, Any]:
    """Return a change for JSON, without its contents."""
    return {
        "id": change.id,
        "group": change.group_id,
        "operation": change.operation_id,
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
        "reverts_through": change.reverts_through,
        "reverts_part": change.reverts_part,
        "applies": change.applies,
        "settled_at": format_utc(change.settled_at),
        "command": change.command,
        "pid": change.pid,
    }
