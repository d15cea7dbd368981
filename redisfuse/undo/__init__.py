"""Taking changes back, applying refused ones, settling open ones: through the same steps as any edit (JOURNAL.md)."""

from redisfuse.undo.applying import apply
from redisfuse.undo.plan import Conflict, Plan, Planned, make_plan
from redisfuse.undo.recovery import recover
from redisfuse.undo.rollback import Report, Rollback
from redisfuse.undo.selection import Selection, select

__all__ = [
    "Conflict",
    "Plan",
    "Planned",
    "Report",
    "Rollback",
    "Selection",
    "apply",
    "make_plan",
    "recover",
    "select",
]
