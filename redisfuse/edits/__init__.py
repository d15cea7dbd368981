"""The only way anything in Redis is changed: watch, journal, execute (JOURNAL.md)."""

from redisfuse.edits.basis import Basis
from redisfuse.edits.edits import Edits
from redisfuse.edits.no_edits import NoEdits

__all__ = ["Basis", "Edits", "NoEdits"]
