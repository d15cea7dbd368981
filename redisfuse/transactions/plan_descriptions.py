"""The plan of a rollback as printable text. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redisfuse.journal.descriptions import describe_state, format_change
from redisfuse.text import escape_text, format_local_time
from redisfuse.transactions.combined_change import CombinedChange

if TYPE_CHECKING:
    from redisfuse.journal.models import Change
    from redisfuse.transactions.rollback_plan import PlannedChange, RollbackConflict


def format_planned_change(change: Change) -> str:
    """Return a change as one line; a combined one with its range of ids."""
    text = format_change(change)
    if isinstance(change, CombinedChange):
        return f"{change.first_id}-{text} [{change.count:,} changes]"
    return text


def name_action(entry: PlannedChange) -> str:
    """Return the action for a change as one word."""
    if entry.conflict is not None:
        return "conflict"
    if entry.change.prior.kind == "directory":
        return "mkdir"
    if entry.change.new.kind == "directory":
        return "rmdir"
    if entry.inverse is None:
        return "restore" if entry.change.prior.kind != "absent" else "remove"
    if entry.inverse.is_noop:
        return "nothing"
    return "remove" if entry.inverse.desired_state.kind == "absent" else "restore"


def describe_action(entry: PlannedChange) -> str:
    """Return the action for a change as text."""
    change, reversal = entry.change, entry.inverse
    if entry.conflict is not None:
        return format_conflict(entry.conflict)
    if change.prior.kind == "directory":
        return "create the empty directory again"
    if change.new.kind == "directory":
        return "remove the empty directory"
    if reversal is None:
        return f"restore {describe_state(change.prior)}, if the changes above restore the value of this one"
    note = f" ({escape_text(reversal.note.encode())})" if reversal.note else ""
    if reversal.is_noop:
        return f"nothing to do{note}"
    if reversal.desired_state.kind == "absent":
        return f"remove{note}"
    if change.op == "expire" and not isinstance(change, CombinedChange):
        at = reversal.desired_state.expires_at if change.field is None else reversal.desired_state.field_expires_at
        return f"{'remove the expiry' if at is None else f'set the expiry to {format_local_time(at)}'}{note}"
    return f"restore {describe_state(reversal.desired_state)}{note}"


def format_conflict(conflict: RollbackConflict) -> str:
    """Return the reason of a conflict as text."""
    return f"conflict: {escape_text(conflict.reason.encode())}"
