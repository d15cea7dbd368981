"""The server's messages about changes that this mount itself made: which of them are still to come.

A message does not say who changed the key.
"""

import threading
import time
from collections.abc import Iterable

INVALIDATION_TIMEOUT_SECONDS = 1.0  # seconds after a change in which its message is expected
_MAX_EXPECTED_KEYS = 10_000  # keys; more are changed only by operations on whole directories


class OwnWriteFilter:
    """Counts, for each key, changes of our own that were not heard of yet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[bytes, tuple[int, float]] = {}  # how many, and until when

    def expect_writes(self, keys: Iterable[bytes]) -> None:
        """These keys are about to be changed, each once."""
        until = time.monotonic() + INVALIDATION_TIMEOUT_SECONDS
        with self._lock:
            if len(self._expected) > _MAX_EXPECTED_KEYS:
                now = time.monotonic()
                self._expected = {key: each for key, each in self._expected.items() if each[1] > now}
            for key in keys:
                self._expected[key] = (self._expected.get(key, (0, 0.0))[0] + 1, until)

    def confirm_write(self, key: bytes) -> None:
        """The change was made: its message is on the way, if it was not heard already."""
        with self._lock:
            found = self._expected.get(key)
            if found is not None:
                self._expected[key] = (found[0], time.monotonic() + INVALIDATION_TIMEOUT_SECONDS)

    def filter_own(self, keys: Iterable[bytes]) -> set[bytes]:
        """Those of these keys about which a message of our own change is to come."""
        if not self._expected:
            return set()
        with self._lock:
            now = time.monotonic()
            return {key for key in keys if key in self._expected and self._expected[key][1] > now}

    def record_received(self, keys: Iterable[bytes]) -> None:
        """Messages about these keys came."""
        if not self._expected:
            return
        with self._lock:
            for key in keys:
                found = self._expected.pop(key, None)
                if found is not None and found[0] > 1:
                    self._expected[key] = (found[0] - 1, found[1])
