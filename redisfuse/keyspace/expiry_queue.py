"""The times at which keys are known to expire.

The server announces an expiry when it deletes the key, which may be long after it has begun to reply that there is no
such key. So a caller that learns a key's expiry time adds it here, and the key is verified then.
"""

import heapq
import threading

MAX_QUEUED_KEYS = 200_000  # about 40 MB when full


class ExpiryQueue:
    """Keys by their expiry time, on the clock of time.monotonic().

    Thread-safe; its lock is a leaf.
    """

    def __init__(self, capacity: int = MAX_QUEUED_KEYS) -> None:
        """Create a queue of at most `capacity` keys."""
        self._capacity = capacity
        self._lock = threading.Lock()  # guards all below
        self._heap: list[tuple[float, bytes]] = []  # also holds deadlines that have been replaced
        self._deadlines: dict[bytes, float] = {}  # the current ones

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._deadlines)

    def add(self, key: bytes, deadline: float) -> bool:
        """Set a key's deadline, replacing its former one.

        Returns False if there is no room for another key.
        """
        with self._lock:
            if self._deadlines.get(key) == deadline:
                return True
            if key not in self._deadlines and len(self._deadlines) >= self._capacity:
                return False
            self._deadlines[key] = deadline
            heapq.heappush(self._heap, (deadline, key))
            if len(self._heap) > 2 * self._capacity:
                self._heap = [(moment, name) for name, moment in self._deadlines.items()]
                heapq.heapify(self._heap)
            return True

    def next_deadline(self) -> float | None:
        """Return the earliest deadline."""
        with self._lock:
            heap = self._heap
            while heap and self._deadlines.get(heap[0][1]) != heap[0][0]:
                heapq.heappop(heap)
            return heap[0][0] if heap else None

    def pop_expired(self, now: float) -> list[bytes]:
        """Remove and return the keys whose deadline has passed."""
        keys = []
        with self._lock:
            heap = self._heap
            while heap and heap[0][0] <= now:
                deadline, key = heapq.heappop(heap)
                if self._deadlines.get(key) == deadline:
                    del self._deadlines[key]
                    keys.append(key)
        return keys

    def clear(self) -> None:
        """Remove all keys."""
        with self._lock:
            self._heap.clear()
            self._deadlines.clear()
