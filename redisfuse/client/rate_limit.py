"""The limit on commands a second."""

import threading
import time


class TokenBucket:
    """A limit of `rate` commands a second over all connections.

    0: unlimited. The bucket holds a tenth of a second's tokens. A caller may overdraw the bucket and then sleeps until
    the debt is repaid. So a batch that is larger than the bucket is delayed, never refused. Thread-safe.
    """

    __slots__ = ("_lock", "_refilled_at", "_tokens", "rate")

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._tokens = self._capacity
        self._refilled_at = time.monotonic()

    @property
    def _capacity(self) -> float:
        return max(1.0, self.rate / 10)

    def acquire(self, count: int) -> None:
        """Block until `count` more commands may be sent."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._capacity, self._tokens + (now - self._refilled_at) * self.rate) - count
            self._refilled_at = now
            wait = -self._tokens / self.rate
        if wait > 0:
            time.sleep(wait)
