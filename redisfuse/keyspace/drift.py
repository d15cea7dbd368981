"""The server's count of keys against the index: a guard against changes that nothing tells of.

The two may differ for good by what is expired and not removed yet, which the server counts and a scan does not find,
and for a moment by what has just changed. Any other difference that lasts is a reason to scan.
"""

_DOUBTS = 2  # times in a row that the counts must disagree
_FIRST_PATIENCE = 30.0  # seconds until the next scan for this reason, after one that found nothing; doubled each time
_LONGEST_PATIENCE = 3600.0


class SizeWatch:
    """Judges pairs of counts. One thread at a time; pure."""

    def __init__(self) -> None:
        self._offset: int | None = None  # the difference when the index was fresh
        self._doubts = 0
        self._told_before = 0
        self._patience = 0.0
        self._quiet_until = 0.0

    def fresh(self) -> None:
        """The index is new: the difference that is found next is the one to be expected."""
        self._offset = None
        self._doubts = 0

    def judge(self, size: int, indexed: int, told: int, now: float) -> bool:
        """Whether the keys should be scanned. `told`: keys told of since the last time, or still to be looked at."""
        tolerance = told + self._told_before
        self._told_before = told
        offset = size - indexed
        if self._offset is None:
            self._offset = offset
        low, high = min(0, self._offset) - tolerance, max(0, self._offset) + tolerance
        self._doubts = 0 if low <= offset <= high or now < self._quiet_until else self._doubts + 1
        return self._doubts >= _DOUBTS

    def scanned(self, found_something: bool, now: float) -> None:
        """A scan was made because of that."""
        self._patience = 0.0 if found_something else min(2 * self._patience + _FIRST_PATIENCE, _LONGEST_PATIENCE)
        self._quiet_until = now + self._patience
