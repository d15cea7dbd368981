"""The moments at which keys are known to expire.

A server tells of an expiry when it removes the key, which may be long after it has answered that there is no such key.
So whoever learns when a key will expire says so here, and the key is looked at again then.
"""

import heapq
import threading

MAX_QUEUED_KEYS = 200_000  # keys; about 40 MB when full


class ExpiryQueue:
    """Keys by the moment of their expiry, on the clock of time.monotonic(). Thread-safe; calls nothing."""

    def __init__(self, capacity: int = MAX_QUEUED_KEYS) -> None:
        """`capacity`: how many keys are remembered at most."""
        self._capacity = capacity
        self._lock = threading.Lock()
        self._heap: list[tuple[float, bytes]] = []
        self._deadlines: dict[bytes, float] = {}  # what counts: the heap also holds deadlines that were replaced

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._deadlines)

    def add(self, key: bytes, deadline: float) -> bool:
        """Remember a key's deadline, in place of the one it had; False if there is no room for another key."""
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
        """The earliest deadline."""
        with self._lock:
            heap = self._heap
            while heap and self._deadlines.get(heap[0][1]) != heap[0][0]:
                heapq.heappop(heap)
            return heap[0][0] if heap else None

    def pop_expired(self, now: float) -> list[bytes]:
        """The keys whose deadline has passed; they are forgotten here."""
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
        """Forget all."""
        with self._lock:
            self._heap.clear()
            self._deadlines.clear()
