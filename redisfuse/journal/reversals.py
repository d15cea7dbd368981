"""Which changes were taken back.

A rollback's change names the change that it reverts or, if it took back many changes of one key or field by their net
effect, the first and the last of them. A rollback can itself be rolled back: then the changes are in effect again. A
rollback of some places of a text names the change, too, which stays in effect.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from more_itertools import chunked

from redisfuse.journal.reader import JournalReader

IDS_PER_QUERY = 1000

_SELECT_REVERTING = """
SELECT wanted.value, later.id FROM json_each(:ids) AS wanted CROSS JOIN changes AS later ON later.reverts = wanted.value
WHERE later.reverts IS NOT NULL AND +later.state = 'applied'
UNION ALL
SELECT change.id, later.id FROM json_each(:ids) AS wanted
    CROSS JOIN changes AS change ON change.id = wanted.value
    CROSS JOIN changes AS later ON later."key" = change."key" AND later.reverts_through >= change.id
WHERE later.reverts_through IS NOT NULL AND later.reverts <= change.id AND later.field IS change.field
    AND +later.state = 'applied' AND (SELECT server FROM sessions WHERE id = later.session)
        IS (SELECT server FROM sessions WHERE id = change.session)
"""


_SELECT_PARTLY_REVERTING = (
    _SELECT_REVERTING.replace("later.reverts =", "later.reverts_part =")
    .replace("later.reverts IS", "later.reverts_part IS")
    .replace("later.reverts <=", "later.reverts_part <=")
)


class ReversalIndex:
    """Looks up which changes are in effect, many at a time, and remembers it.

    It shows the journal as it was at each look-up; for a later one, create another index.
    """

    def __init__(self, reader: JournalReader) -> None:
        self._reader = reader
        self._reverting_ids: dict[int, list[int]] = {}  # by change; none: looked up, and no change reverts it
        self._reverted: dict[int, bool] = {}

    def find_reverting_ids(self, change_ids: Iterable[int]) -> dict[int, list[int]]:
        """Return the ids of the applied changes that reverted these, newest first.

        A change that was never reverted is left out.
        """
        wanted = list(dict.fromkeys(change_ids))
        self._load([id for id in wanted if id not in self._reverting_ids])
        return {id: self._reverting_ids[id] for id in wanted if self._reverting_ids[id]}

    def find_reverted(self, change_ids: Iterable[int]) -> set[int]:
        """Return those of these changes that a change in effect has reverted."""
        wanted = list(change_ids)
        # A rollback is newer than what it reverts: each level of look-ups has newer changes than the one before it.
        levels = [wanted]
        while levels[-1]:
            reverting = self.find_reverting_ids(id for id in levels[-1] if id not in self._reverted)
            levels.append(sorted({later for ids in reverting.values() for later in ids}))
        for level in reversed(levels):
            for id in sorted(level, reverse=True):
                if id not in self._reverted:
                    self._reverted[id] = any(not self._reverted[later] for later in self._reverting_ids[id])
        return {id for id in wanted if self._reverted[id]}

    def find_partly_reverting_ids(self, change_ids: Iterable[int]) -> dict[int, list[int]]:
        """Return the ids of the changes in effect that took back a part of these.

        The newest is first. A change without any is left out.
        """
        found: dict[int, list[int]] = {}
        for batch in chunked(dict.fromkeys(change_ids), IDS_PER_QUERY):
            rows = set(self._reader.query(_SELECT_PARTLY_REVERTING.replace(":ids", "?"), (json.dumps(batch),) * 2))
            reverted = self.find_reverted({later for _, later in rows})
            for id, later in sorted(rows, reverse=True):
                if later not in reverted:
                    found.setdefault(id, []).append(later)
        return found

    def _load(self, change_ids: Collection[int]) -> None:
        for batch in chunked(change_ids, IDS_PER_QUERY):
            self._reverting_ids |= {id: [] for id in batch}
            rows = self._reader.query(_SELECT_REVERTING.replace(":ids", "?"), (json.dumps(batch),) * 2)
            for id, later in sorted(set(rows), reverse=True):
                self._reverting_ids[id].append(later)
