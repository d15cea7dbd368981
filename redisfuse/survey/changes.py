"""Counts the changes of keys, from the server's messages.

The server announces the keys that change (`keyspace/tracking.py`), not how often within one turn of its event loop, and
not in which database. So the counts are lower bounds, and include other databases of the server.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from redisfuse.client.client import RedisClient
from redisfuse.errors import RedisFuseError, UnavailableError
from redisfuse.keyspace.heartbeat import Heartbeat
from redisfuse.keyspace.tracking import FlushProbe, TrackingClient

MAX_COUNTED_KEYS = 100_000
"""Keys whose changes are counted. Beyond it, the half with the fewest changes is dropped."""


class ChangeCounter:
    """Counts the changes on one or more nodes. Thread-safe."""

    def __init__(self, clients: Sequence[RedisClient], prefix: bytes) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[bytes] = Counter()  # guarded by _lock
        self._total = 0
        self._started_at = time.monotonic()
        self._error: RedisFuseError | None = None
        self._trackers = [TrackingClient(client, self, prefix=prefix) for client in clients]

    def start(self) -> None:
        """Begin to count."""
        self._started_at = time.monotonic()
        for tracker in self._trackers:
            tracker.start()

    def close(self) -> None:
        """End the connections."""
        for tracker in self._trackers:
            tracker.close()

    def snapshot(self, limit: int) -> tuple[float, int, list[tuple[bytes, int]]]:
        """Return the seconds, the number of changes, and the keys that changed most.

        Raises UnavailableError if changes can't be received.
        """
        with self._lock:
            if self._error is not None:
                raise UnavailableError(str(self._error))
            return time.monotonic() - self._started_at, self._total, self._counts.most_common(limit)

    # -- the messages; called by the threads of the trackers ----------------------------------------------------------

    def on_invalidate(self, keys: list[bytes]) -> None:
        """Count these keys."""
        with self._lock:
            self._total += len(keys)
            self._counts.update(keys)
            if len(self._counts) > MAX_COUNTED_KEYS:
                self._counts = Counter(dict(self._counts.most_common(MAX_COUNTED_KEYS // 2)))

    def on_unsupported(self, reason: str) -> None:
        """Keep the reason for `snapshot`."""
        with self._lock:
            self._error = UnavailableError(reason)

    def on_connect_failed(self, error: RedisFuseError) -> None:
        """Keep the error until a connection succeeds."""
        with self._lock:
            self._error = error

    def on_disconnect(self, error: RedisFuseError) -> None:
        """Keep the error until the connection is made again."""
        with self._lock:
            self._error = error

    def on_connect(self) -> None:
        """Forget the last error."""
        with self._lock:
            self._error = None

    def on_flush(self, probe: FlushProbe) -> None:
        """Ignore: a flush announces no keys."""

    def on_swapdb(self) -> None:
        """Ignore."""

    def on_heartbeat(self, heartbeat: Heartbeat, invalidated_keys: int) -> None:
        """Ignore."""

    def on_silence(self, seconds: float) -> None:
        """Ignore: the messages arrive later."""

    def on_answer(self) -> None:
        """Ignore."""
