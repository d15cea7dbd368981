"""Ends iterations by cursor that a broken or hostile server never finishes.

That is SCAN, HSCAN and SSCAN. Pure.
"""

import time

from redisfuse.errors import UnavailableError

MAX_FRUITLESS_REPLIES = 1000
"""Replies without anything new. A table that has just lost most of its elements may need many, each of them fast."""

TIMEOUT_FACTOR = 2
"""An iteration is ended only after this many times the time-out."""


class ScanGuard:
    """The progress of one iteration. Not thread-safe."""

    def __init__(self, command: str, timeout: float) -> None:
        self._command = command
        self._patience = TIMEOUT_FACTOR * timeout
        self._max_replies = MAX_FRUITLESS_REPLIES
        self._reply_count = 0
        self._deadline = time.monotonic() + self._patience

    @property
    def is_exhausted(self) -> bool:
        """Whether there were more replies than progress explains."""
        return self._reply_count > self._max_replies and time.monotonic() > self._deadline

    def record_progress(self) -> None:
        """Note that the last reply had something new."""
        self._reply_count = 0
        self._deadline = time.monotonic() + self._patience

    def expect_elements(self, total: int, elements_per_reply: int) -> None:
        """Allow as many replies as a collection of `total` elements may need.

        A table has up to ten times as many buckets as elements (HASHTABLE_MIN_FILL of Redis), and a growing one is
        visited in both of its sizes.
        """
        self._max_replies = MAX_FRUITLESS_REPLIES + 16 * total // elements_per_reply

    def check(self, sent: bytes, received: bytes) -> None:
        """Count a reply. Raises UnavailableError if the iteration would never end."""
        self._reply_count += 1
        if received == sent != b"0":
            raise UnavailableError(f"the server replied to {self._command} with the cursor that was sent")
        if self.is_exhausted:
            raise UnavailableError(
                f"the server did not end {self._command} after {self._reply_count} replies without anything new, nor "
                f"within {self._patience:g} s"
            )
