"""What a server was asked so far, and the brake on how fast it is asked."""

import threading
import time


class ClientStats:
    """Running totals since the Server was made; thread-safe. For `status` and for tests that count."""

    __slots__ = ("_lock", "bytes_received", "bytes_sent", "commands", "connects", "reconnects", "round_trips")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.commands = 0
        self.round_trips = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.connects = 0
        self.reconnects = 0

    def add(
        self,
        *,
        commands: int = 0,
        round_trips: int = 0,
        bytes_sent: int = 0,
        bytes_received: int = 0,
        connects: int = 0,
        reconnects: int = 0,
    ) -> None:
        """Add to the totals."""
        with self._lock:
            self.commands += commands
            self.round_trips += round_trips
            self.bytes_sent += bytes_sent
            self.bytes_received += bytes_received
            self.connects += connects
            self.reconnects += reconnects

    def snapshot(self) -> dict[str, int]:
        """All totals at one moment, by name."""
        with self._lock:
            return {name: getattr(self, name) for name in self.__slots__ if name != "_lock"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.snapshot()})"


class TokenBucket:
    """At most `rate` commands a second over all connections (0: no limit), as a token bucket of a tenth of a second.

    Takers go into debt and sleep it off, so that a batch larger than the bucket is only late, never refused.
    """

    __slots__ = ("_lock", "_rate", "_refilled_at", "_tokens")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._tokens = self._capacity
        self._refilled_at = time.monotonic()

    @property
    def _capacity(self) -> float:
        return max(1.0, self._rate / 10)

    def acquire(self, count: int) -> None:
        """Wait until `commands` more may be sent."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._capacity, self._tokens + (now - self._refilled_at) * self._rate) - count
            self._refilled_at = now
            wait = -self._tokens / self._rate
        if wait > 0:
            time.sleep(wait)
