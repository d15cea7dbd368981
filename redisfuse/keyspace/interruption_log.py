"""The log lines of a mount that stops and resumes tracking the server's changes."""

from __future__ import annotations

import logging
import time

from redisfuse.errors import RedisFuseError

log = logging.getLogger(__name__)


class InterruptionLog:
    """Logs why tracking ended, why it does not resume, and when it resumes.

    Each reason is logged once. Called by the monitor's threads, without a lock: at worst two lines are out of order.
    """

    def __init__(self) -> None:
        self._began_at: float | None = None  # time.monotonic(); None: tracking works, or has not begun yet
        self._reason = ""  # the last one that was logged

    def begin(self) -> None:
        """Note that tracking has ended; the caller logs the reason."""
        if self._began_at is None:
            self._began_at = time.monotonic()

    def record_disconnect(self, error: RedisFuseError) -> None:
        """Log why the connection ended."""
        self.begin()
        self._reason = str(error)
        log.warning("tracking the server's changes was interrupted: %s", error)

    def record_connect_failure(self, error: RedisFuseError) -> None:
        """Log why reconnecting fails, unless that is known."""
        if self._began_at is not None and str(error) != self._reason:
            self._reason = str(error)
            log.warning("tracking the server's changes was interrupted, and reconnecting fails: %s", error)

    def record_connect(self) -> None:
        """Log that tracking has resumed, if it was interrupted."""
        if self._began_at is not None:
            seconds = time.monotonic() - self._began_at
            self._began_at = None
            log.info("tracking the server's changes was interrupted for %.1f s, and has resumed", seconds)
