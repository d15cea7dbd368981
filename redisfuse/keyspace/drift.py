"""Compares the server's count of keys with the index.

A difference shows changes that no message announced. The counts may differ permanently by the keys that have expired
but are not deleted yet, which the server counts and a scan does not return, and briefly by keys that have just changed.
Any other difference that lasts is a reason to scan.
"""

_MISMATCHES_BEFORE_SCAN = 2  # consecutive mismatches
_MIN_SCAN_BACKOFF_SECONDS = 30.0  # after a scan that found no difference; doubled each time
_MAX_SCAN_BACKOFF_SECONDS = 3600.0


class DriftDetector:
    """Checks pairs of counts. Pure; one thread at a time."""

    def __init__(self) -> None:
        self._expected_difference: int | None = None  # the difference when the index was new
        self._mismatches = 0
        self._previous_pending_changes = 0
        self._backoff_seconds = 0.0
        self._suppressed_until = 0.0

    def reset(self) -> None:
        """Expect the next difference from now on: the index is new."""
        self._expected_difference = None
        self._mismatches = 0

    def check_counts(self, server_count: int, index_count: int, pending_changes: int, now: float) -> bool:
        """Return whether a scan is needed.

        `pending_changes`: keys that were announced since the last call, or are not verified yet.
        """
        tolerance = pending_changes + self._previous_pending_changes
        self._previous_pending_changes = pending_changes
        difference = server_count - index_count
        if self._expected_difference is None:
            self._expected_difference = difference
        low, high = min(0, self._expected_difference) - tolerance, max(0, self._expected_difference) + tolerance
        is_match = low <= difference <= high or now < self._suppressed_until
        self._mismatches = 0 if is_match else self._mismatches + 1
        return self._mismatches >= _MISMATCHES_BEFORE_SCAN

    def record_scan(self, found_differences: bool, now: float) -> None:
        """Record the result of a scan that `check_counts` caused."""
        if found_differences:
            self._backoff_seconds = 0.0
        else:
            self._backoff_seconds = min(
                2 * self._backoff_seconds + _MIN_SCAN_BACKOFF_SECONDS, _MAX_SCAN_BACKOFF_SECONDS
            )
        self._suppressed_until = now + self._backoff_seconds
