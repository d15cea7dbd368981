"""The server's count of keys against the index: a guard against changes that nothing tells of.

The two may differ for good by what is expired and not removed yet, which the server counts and a scan does not find,
and for a moment by what has just changed. Any other difference that lasts is a reason to scan.
"""

_MISMATCHES_BEFORE_SCAN = 2  # times in a row that the counts must disagree
_MIN_SCAN_BACKOFF_SECONDS = (
    30.0  # seconds until the next scan for this reason, after one that found nothing; doubled each time
)
_MAX_SCAN_BACKOFF_SECONDS = 3600.0


class DriftDetector:
    """Judges pairs of counts. One thread at a time; pure."""

    def __init__(self) -> None:
        self._expected_difference: int | None = None  # the difference when the index was fresh
        self._mismatches = 0
        self._previous_pending_changes = 0
        self._backoff_seconds = 0.0
        self._suppressed_until = 0.0

    def reset(self) -> None:
        """The index is new: the difference that is found next is the one to be expected."""
        self._expected_difference = None
        self._mismatches = 0

    def check_counts(self, server_count: int, index_count: int, pending_changes: int, now: float) -> bool:
        """Whether the keys should be scanned. `told`: keys told of since the last time, or still to be looked at."""
        tolerance = pending_changes + self._previous_pending_changes
        self._previous_pending_changes = pending_changes
        offset = server_count - index_count
        if self._expected_difference is None:
            self._expected_difference = offset
        low, high = min(0, self._expected_difference) - tolerance, max(0, self._expected_difference) + tolerance
        self._mismatches = 0 if low <= offset <= high or now < self._suppressed_until else self._mismatches + 1
        return self._mismatches >= _MISMATCHES_BEFORE_SCAN

    def record_scan(self, found_differences: bool, now: float) -> None:
        """A scan was made because of that."""
        self._backoff_seconds = (
            0.0
            if found_differences
            else min(2 * self._backoff_seconds + _MIN_SCAN_BACKOFF_SECONDS, _MAX_SCAN_BACKOFF_SECONDS)
        )
        self._suppressed_until = now + self._backoff_seconds
