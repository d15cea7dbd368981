"""Taking changes back, applying refused ones, settling open ones: all through the same steps as any edit (JOURNAL.md)."""

from redisfuse.undo.recovery import recover

__all__ = ["recover"]
