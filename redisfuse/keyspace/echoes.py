"""The server's messages about changes that this mount itself made: which of them are still to come.

A message does not say who changed the key. Whoever asks whether somebody else has changed a key since some moment must
begin when the messages about our own changes before that moment are through.
"""

import threading
import time
from collections.abc import Iterable

PATIENCE = 1.0  # seconds after a change in which its message is waited for
_MOST = 10_000  # keys; more are changed only by operations on whole directories


class Echoes:
    """Counts, for each key, changes of our own that were not heard of yet. Thread-safe."""

    def __init__(self) -> None:
        self._heard = threading.Condition()
        self._expected: dict[bytes, tuple[int, float]] = {}  # how many, and until when they are waited for

    def expect(self, keys: Iterable[bytes]) -> None:
        """These keys are about to be changed, each once."""
        until = time.monotonic() + PATIENCE
        with self._heard:
            if len(self._expected) > _MOST:
                now = time.monotonic()
                self._expected = {key: each for key, each in self._expected.items() if each[1] > now}
            for key in keys:
                self._expected[key] = (self._expected.get(key, (0, 0.0))[0] + 1, until)

    def made(self, key: bytes) -> None:
        """The change was made: its message is on the way, if it was not heard already."""
        with self._heard:
            found = self._expected.get(key)
            if found is not None:
                self._expected[key] = (found[0], time.monotonic() + PATIENCE)

    def among(self, keys: Iterable[bytes]) -> set[bytes]:
        """Those of these keys about which a message of our own change is to come."""
        if not self._expected:
            return set()
        with self._heard:
            return {key for key in keys if key in self._expected}

    def heard(self, keys: Iterable[bytes]) -> None:
        """Messages about these keys came."""
        if not self._expected:
            return
        with self._heard:
            for key in keys:
                found = self._expected.pop(key, None)
                if found is not None and found[0] > 1:
                    self._expected[key] = (found[0] - 1, found[1])
            self._heard.notify_all()

    def wait(self, key: bytes) -> None:
        """Return when the messages about our own changes of a key have come, or can't be expected any more."""
        if key not in self._expected:
            return
        with self._heard:
            while (found := self._expected.get(key)) is not None:
                left = found[1] - time.monotonic()
                if left <= 0:
                    del self._expected[key]
                    return
                self._heard.wait(left)
