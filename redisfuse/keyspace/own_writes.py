"""Recognizes the server's messages about changes that this mount made.

An invalidation message does not name the client that changed the key, so expected messages are counted.
"""

import threading
import time
from collections.abc import Iterable

INVALIDATION_TIMEOUT_SECONDS = 1.0  # how long after a write its message is expected
_MAX_EXPECTED_KEYS = 10_000  # only operations on whole directories write more at a time


class OwnWriteFilter:
    """Counts, for each key, the expected messages about the mount's own writes.

    Thread-safe; its lock is a leaf.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[bytes, tuple[int, float]] = {}  # number of messages, deadline (time.monotonic())

    def expect_writes(self, keys: Iterable[bytes]) -> None:
        """Expect one message about each of these keys, which are about to be written."""
        expires_at = time.monotonic() + INVALIDATION_TIMEOUT_SECONDS
        with self._lock:
            if len(self._expected) > _MAX_EXPECTED_KEYS:
                now = time.monotonic()
                self._expected = {key: entry for key, entry in self._expected.items() if entry[1] > now}
            for key in keys:
                self._expected[key] = (self._expected.get(key, (0, 0.0))[0] + 1, expires_at)

    def confirm_write(self, key: bytes) -> None:
        """Extend the wait for a message that has not arrived.

        The write was committed only now.
        """
        with self._lock:
            entry = self._expected.get(key)
            if entry is not None:
                self._expected[key] = (entry[0], time.monotonic() + INVALIDATION_TIMEOUT_SECONDS)

    def filter_own(self, keys: Iterable[bytes]) -> set[bytes]:
        """Return those of these keys for which a message about an own write is expected."""
        if not self._expected:
            return set()
        with self._lock:
            now = time.monotonic()
            return {key for key in keys if key in self._expected and self._expected[key][1] > now}

    def record_received(self, keys: Iterable[bytes]) -> None:
        """Record that messages about these keys have arrived."""
        if not self._expected:
            return
        with self._lock:
            for key in keys:
                entry = self._expected.pop(key, None)
                if entry is not None and entry[0] > 1:
                    self._expected[key] = (entry[0] - 1, entry[1])
