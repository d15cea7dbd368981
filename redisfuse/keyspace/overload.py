"""Whether the server changes faster than this process can follow.

Pure but for the clock that it is given; one thread at a time judges each thing.
"""

MAX_PENDING_KEYS = 500_000  # keys told of and not looked at yet
MAX_LAG_SECONDS = 2.0  # seconds between being told of a key and having looked at it
LAG_GRACE_SECONDS = 5.0  # seconds for which the lag may be longer
MAX_DISCONNECTS = 3  # times that a busy connection may be lost
DISCONNECT_WINDOW_SECONDS = 60.0  # seconds in which they count
BUSY_KEYS_PER_SECOND = (
    5_000  # keys told of a second, from which on a lost connection was probably cut off for falling behind
)
MIN_BACKOFF_SECONDS = 60.0  # seconds without following, after giving up; doubled each time
MAX_BACKOFF_SECONDS = 900.0


class OverloadDetector:
    """Judges what it is told of; what it answers with True is a reason to give up following for a while."""

    def __init__(self) -> None:
        self._connected_at = 0.0
        self._invalidated_keys = 0
        self._disconnect_times: list[float] = []
        self._lagging_since: float | None = None
        self._backoff_seconds = MIN_BACKOFF_SECONDS

    def record_connect(self, now: float) -> None:
        """Following began."""
        self._connected_at = now
        self._invalidated_keys = 0
        self._lagging_since = None

    def record_invalidations(self, key_count: int, pending_count: int) -> bool:
        """So many keys were told of, and so many are to be looked at."""
        self._invalidated_keys += key_count
        return pending_count > MAX_PENDING_KEYS

    def record_verification(self, lag: float, now: float) -> bool:
        """Keys were looked at, so many seconds after they were told of."""
        if lag < MAX_LAG_SECONDS:
            self._lagging_since = None
            return False
        if self._lagging_since is None:
            self._lagging_since = now
        return now - self._lagging_since > LAG_GRACE_SECONDS

    def record_disconnect(self, now: float) -> bool:
        """The connection was lost."""
        if self._invalidated_keys < BUSY_KEYS_PER_SECOND * (now - self._connected_at):
            return False
        self._disconnect_times = [
            moment for moment in self._disconnect_times if now - moment < DISCONNECT_WINDOW_SECONDS
        ] + [now]
        return len(self._disconnect_times) >= MAX_DISCONNECTS

    def start_backoff(self) -> float:
        """Following was given up; answer for how many seconds."""
        self._disconnect_times = []
        self._lagging_since = None
        seconds, self._backoff_seconds = self._backoff_seconds, min(2 * self._backoff_seconds, MAX_BACKOFF_SECONDS)
        return seconds
