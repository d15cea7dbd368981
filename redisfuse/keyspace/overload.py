"""Detects that the server changes faster than this process can follow.

Pure: the caller passes the time. Each method is called by one thread at a time.
"""

MAX_PENDING_KEYS = 500_000  # keys that are announced and not verified yet
MAX_LAG_SECONDS = 2.0  # between the announcement of a key and its verification
LAG_GRACE_SECONDS = 5.0  # how long the lag may be longer
MAX_DISCONNECTS = 3  # times that a busy connection may be lost
DISCONNECT_WINDOW_SECONDS = 60.0  # the period in which they count
BUSY_KEYS_PER_SECOND = 5_000  # above this rate, the server probably closed a lost connection because it fell behind
MIN_BACKOFF_SECONDS = 60.0  # without tracking, after the first overload; doubled each time
MAX_BACKOFF_SECONDS = 900.0


class OverloadDetector:
    """Counts announcements, lag and disconnects.

    A result of True is a reason to suspend tracking.
    """

    def __init__(self) -> None:
        self._connected_at = 0.0
        self._invalidated_keys = 0
        self._disconnect_times: list[float] = []
        self._lagging_since: float | None = None
        self._backoff_seconds = MIN_BACKOFF_SECONDS

    def record_connect(self, now: float) -> None:
        """Record that tracking has started."""
        self._connected_at = now
        self._invalidated_keys = 0
        self._lagging_since = None

    def record_invalidations(self, key_count: int, pending_count: int) -> bool:
        """Record that keys were announced, and how many are not verified yet."""
        self._invalidated_keys += key_count
        return pending_count > MAX_PENDING_KEYS

    def record_verification(self, lag: float, now: float) -> bool:
        """Record that keys were verified, `lag` seconds after their announcement."""
        if lag < MAX_LAG_SECONDS:
            self._lagging_since = None
            return False
        if self._lagging_since is None:
            self._lagging_since = now
        return now - self._lagging_since > LAG_GRACE_SECONDS

    def record_disconnect(self, now: float) -> bool:
        """Record that the connection was lost."""
        if self._invalidated_keys < BUSY_KEYS_PER_SECOND * (now - self._connected_at):
            return False
        recent = [moment for moment in self._disconnect_times if now - moment < DISCONNECT_WINDOW_SECONDS]
        self._disconnect_times = [*recent, now]
        return len(self._disconnect_times) >= MAX_DISCONNECTS

    def start_backoff(self) -> float:
        """Record that tracking is suspended; return for how many seconds."""
        self._disconnect_times = []
        self._lagging_since = None
        seconds, self._backoff_seconds = self._backoff_seconds, min(2 * self._backoff_seconds, MAX_BACKOFF_SECONDS)
        return seconds
