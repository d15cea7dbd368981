"""The plan of a rollback in numbers, in bounded memory.

Counts by folder and action, and the first conflicts.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redisfuse.transactions.combined_change import count_changes
from redisfuse.transactions.plan_descriptions import name_action

if TYPE_CHECKING:
    from redisfuse.transactions.rollback_plan import PlannedChange, RollbackConflict

MAX_LISTED_CHANGES = 10  # of a longer plan only the summary is printed, unless --verbose
MAX_LISTED_CONFLICTS = 20
MAX_COUNTED_FOLDERS = 10_000  # rows in memory; with more, the deepest folders are counted as the ones above them


class PlanSummary:
    """Counts the entries of a plan.

    `repeated_keys`: the keys, with their servers, that several entries may be of.
    """

    def __init__(self, repeated_keys: Set[tuple[str, bytes]]) -> None:
        self._repeated_keys = repeated_keys
        self._repeated_targets: set[tuple[bytes, bytes | None]] = set()
        self._single_targets = 0
        self.entry_count = 0
        self.change_count = 0
        self.first_entries: list[PlannedChange] = []
        self.conflict_count = 0
        self.conflict_ids: set[int] = set()
        self.first_conflicts: list[RollbackConflict] = []
        self.folders = FolderCounter()

    @property
    def target_count(self) -> int:
        """The number of keys and fields."""
        return self._single_targets + len(self._repeated_targets)

    def add(self, entry: PlannedChange) -> None:
        """Count an entry."""
        change, count = entry.change, count_changes([entry.change])
        self.entry_count += 1
        self.change_count += count
        if (change.server_name, change.key) in self._repeated_keys:
            self._repeated_targets.add((change.key, change.field))
        else:
            self._single_targets += 1
        if self.entry_count <= MAX_LISTED_CHANGES:
            self.first_entries.append(entry)
        if entry.conflict is not None:
            self.conflict_count += 1
            self.conflict_ids.add(change.id)
            if self.conflict_count <= MAX_LISTED_CONFLICTS:
                self.first_conflicts.append(entry.conflict)
        self.folders.add(change.path, name_action(entry), count)


@dataclass(slots=True)
class FolderRow:
    """The entries of one folder with the same action."""

    folder: bytes  # with a slash at its end
    action: str
    entries: int = 0
    changes: int = 0


@dataclass(slots=True)
class FolderCounter:
    """Counts entries by folder and action.

    With too many folders, those that are deeper than `depth` are counted as the folder above them.
    """

    depth: int | None = None  # components; None: any
    _rows: dict[tuple[bytes, str], FolderRow] = field(default_factory=dict)

    def add(self, path: bytes, action: str, changes: int) -> None:
        """Count an entry."""
        self._count(path.rpartition(b"/")[0], action, 1, changes)
        while len(self._rows) > MAX_COUNTED_FOLDERS and self._reduce():
            pass

    def build_rows(self, max_rows: int) -> tuple[list[FolderRow], int]:
        """Return the largest rows, and the number of those that are left out."""
        while len(self._rows) > max_rows and self._reduce():
            pass
        rows = sorted(self._rows.values(), key=lambda row: -row.entries)
        return rows[:max_rows], max(0, len(rows) - max_rows)

    def _count(self, folder: bytes, action: str, entries: int, changes: int) -> None:
        if self.depth is not None:
            folder = b"/".join(folder.split(b"/")[: self.depth])
        row = self._rows.get((folder, action))
        if row is None:
            row = self._rows[folder, action] = FolderRow((folder or b".") + b"/", action)
        row.entries += entries
        row.changes += changes

    def _reduce(self) -> bool:
        """Count the deepest folders as the ones above them.

        Returns False if all are at the top.
        """
        deepest = max(folder.count(b"/") + 1 for folder, _ in self._rows)
        if deepest <= 1:
            return False
        self.depth = deepest - 1
        rows, self._rows = self._rows, {}
        for (folder, action), row in rows.items():
            self._count(folder, action, row.entries, row.changes)
        return True
