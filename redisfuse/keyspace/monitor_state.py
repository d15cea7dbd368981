"""The state that the monitor's threads share.

Coherence, scan requests, and the errors that waiting callers get.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Literal, Protocol

from redisfuse.errors import RedisFuseError, TryAgainError, UnavailableError
from redisfuse.keyspace.reconciler import ShardIndex

_SCAN_INTERVAL_FACTOR = 10  # periodic scans leave this many times their own duration between them


@dataclass(frozen=True, slots=True)
class ScanReasons:
    """Why a scan is made."""

    index_suspect: bool  # the index may be wrong
    drift_detected: bool  # because of the server's count of keys


class KeyspaceState(Protocol):
    """The state of the keyspace as a whole, with all of its shards."""

    is_closing: bool

    @property
    def is_coherent(self) -> bool:
        """Whether every change is announced."""

    @property
    def is_index_current(self) -> bool:
        """Whether the index is complete, and follows the servers."""

    @property
    def degraded_reason(self) -> str:
        """Why the keyspace is not coherent; empty if it is."""

    def record_verified_batch(self) -> None:
        """Note that the verifying thread has finished a batch, or found no dirty keys."""

    def notify(self) -> None:
        """Wake all waiting threads."""

    def request_rescan(self) -> None:
        """Request a scan of a suspect index."""

    def wait_until_ready(self, timeout: float | None) -> None:
        """Wait until the index is current, up to `timeout` seconds."""

    def close(self) -> None:
        """End all waits."""


class MonitorState:
    """Coherence and scan requests.

    Thread-safe; each method is one step under one lock, a leaf. There are three phases. *Coherent*: tracking works, and
    every change is announced. *Polling*: there is no tracking, and the keyspace is scanned periodically. Neither: the
    connection is being established or the server is silent, and scans wait for it.
    """

    def __init__(self, reconciler: ShardIndex, *, rescan_interval: float, timeout: float) -> None:
        """Create the state; `rescan_interval` and `timeout` in seconds."""
        self._reconciler = reconciler
        self._rescan_interval = rescan_interval
        self._timeout = timeout

        self._condition = threading.Condition()  # guards what is below; notified whenever a waiting thread may continue
        self.is_closing = False
        self.is_coherent: bool = False
        self.is_silent = False  # the server does not answer, but the connection is not lost
        self._batches_to_verify = 0  # after a silence, before the index is right again
        self._degraded_reason = "not started"
        self._scan_error: RedisFuseError | None = None  # why the index is not complete
        self._failing_since: float | None = None
        self._lost_since: float | None = None  # since when connections are lost before the index is complete
        self._is_polling = False
        self._resume_tracking_at: float | None = None  # when to try tracking again, while polling
        self._next_scan_at = 0.0
        self._scan_requested = False
        self._index_suspect = False
        self._drift_detected = False

    @property
    def is_index_current(self) -> bool:
        """Whether the index is complete, and follows the server."""
        return self._reconciler.is_ready and not self.is_silent and not self._batches_to_verify

    @property
    def degraded_reason(self) -> str:
        """Why the keyspace is not coherent; empty if it is."""
        return "" if self.is_coherent else self._degraded_reason

    # -- transitions --------------------------------------------------------------------------------------------------

    def begin_connecting(self) -> None:
        """Note that the first connection is being established."""
        self._degraded_reason = "connecting"

    def become_coherent(self) -> None:
        """Enter the coherent phase and request a scan."""
        with self._condition:
            self.is_coherent = True
            self.is_silent = False
            self._is_polling = False
            self._scan_error = None
            self._failing_since = None
            self._request_scan()

    def pause(self, reason: str) -> None:
        """Leave all phases until `begin_connecting`: nothing is followed or scanned."""
        with self._condition:
            self.is_coherent = self.is_silent = self._is_polling = self._scan_requested = False
            self._batches_to_verify = 0
            self._degraded_reason = reason
            self._scan_error = None
            self._failing_since = self._lost_since = None

    def begin_silence(self, reason: str) -> bool:
        """Leave the coherent phase for as long as the server is silent.

        Returns False if this is another phase.
        """
        with self._condition:
            if not self.is_coherent:
                return False
            self.is_coherent = False
            self.is_silent = True
            self._degraded_reason = reason
            return True

    def end_silence(self) -> bool:
        """Enter the coherent phase again.

        Listings still wait until the keys that changed meanwhile are verified. Returns False if the phase was not left
        because of a silence.
        """
        with self._condition:
            if not self.is_silent:
                return False
            self.is_coherent = True
            self.is_silent = False
            # One batch may have been taken before the messages arrived, the next one contains their keys.
            self._batches_to_verify = 2 if self._reconciler.dirty_count else 0
            self._condition.notify_all()
            return True

    def record_verified_batch(self) -> None:
        """Note that the verifying thread has finished a batch, or found no dirty keys."""
        if self._batches_to_verify:
            with self._condition:
                self._batches_to_verify = self._batches_to_verify - 1 if self._reconciler.dirty_count else 0
                self._condition.notify_all()

    def lose_coherence(self, error: RedisFuseError) -> None:
        """Leave the coherent phase.

        Waiting threads wait for the next connection. The error is raised in them after a silence, or if connections are
        lost for as long as the time-out before the index is complete.
        """
        with self._condition:
            self.is_coherent = False
            self._degraded_reason = str(error)
            now = time.monotonic()
            if self.is_silent or (
                not self._reconciler.is_ready
                and self._lost_since is not None
                and now - self._lost_since >= self._timeout
            ):
                self._scan_error = error
                self._condition.notify_all()
            if self._reconciler.is_ready or self._lost_since is None:
                self._lost_since = now
            self.is_silent = False

    def enter_polling(self, reason: str) -> None:
        """Enter the polling phase and request a scan."""
        with self._condition:
            self._enter_polling(reason)

    def suspend_tracking(self, reason: str) -> bool:
        """Enter the polling phase as `enter_polling`.

        Returns False, and changes nothing, if this is the polling phase already.
        """
        with self._condition:
            if self._is_polling:
                return False
            self._enter_polling(reason)
            return True

    def resume_tracking_after(self, seconds: float) -> None:
        """Retry tracking in some seconds, if this is the polling phase then."""
        with self._condition:
            self._resume_tracking_at = time.monotonic() + seconds
            self._condition.notify_all()

    def _enter_polling(self, reason: str) -> None:
        self.is_coherent = False
        self.is_silent = False
        self._is_polling = True
        self._degraded_reason = f"{reason}; the keys are scanned every {self._rescan_interval:g} s"
        self._request_scan()

    def record_connect_error(self, error: RedisFuseError) -> None:
        """Note that connecting failed."""
        with self._condition:
            self._degraded_reason = str(error)
            self._record_error(error)

    def record_scan_error(self, error: RedisFuseError) -> bool:
        """Note that a scan failed; return whether this is the polling phase.

        In that phase tracking is retried, too.
        """
        with self._condition:
            self._record_error(error)
            if self._is_polling:
                self._resume_tracking_at = time.monotonic() + self._rescan_interval
            return self._is_polling

    def _record_error(self, error: RedisFuseError) -> None:
        """Raise the error in waiting threads; a temporary one only if it lasts.

        The lock is held.
        """
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if isinstance(error, TryAgainError) and now - self._failing_since < self._timeout:
            return
        self._scan_error = error
        self._condition.notify_all()

    def record_scan(self, duration: float) -> None:
        """Note that a scan succeeded, after `duration` seconds."""
        with self._condition:
            self._scan_error = None
            self._failing_since = self._lost_since = None
            self._next_scan_at = time.monotonic() + max(self._rescan_interval, _SCAN_INTERVAL_FACTOR * duration)
            self._condition.notify_all()

    def close(self) -> None:
        """End all waits."""
        with self._condition:
            self.is_closing = True
            self.is_coherent = False
            self._degraded_reason = "the mount is ending"
            self._condition.notify_all()

    # -- scans --------------------------------------------------------------------------------------------------------

    def request_scan(self, *, index_suspect: bool = False, drift_detected: bool = False) -> None:
        """Request a scan, and record why."""
        with self._condition:
            self._drift_detected = self._drift_detected or drift_detected
            self._request_scan(index_suspect=index_suspect)

    def request_rescan(self) -> None:
        """Request a scan of a suspect index, and retry tracking at once while polling."""
        with self._condition:
            self._request_scan(index_suspect=True)
            if self._is_polling:
                self._resume_tracking_at = time.monotonic()

    def _request_scan(self, *, index_suspect: bool = False) -> None:
        self._scan_requested = True
        self._index_suspect = self._index_suspect or index_suspect
        self._condition.notify_all()

    def take_scan_reasons(self) -> ScanReasons:
        """Return why the scan that begins is made.

        Reasons that are given later belong to the next scan.
        """
        with self._condition:
            reasons = ScanReasons(self._index_suspect, self._drift_detected)
            self._index_suspect = self._drift_detected = False
            return reasons

    def retry_scan(self, delay: float) -> None:
        """Request a scan after `delay` seconds, or earlier if the state changes."""
        with self._condition:
            if not self.is_closing and not self._scan_requested:
                self._condition.wait(delay)
            self._request_scan()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Wake all waiting threads: the reconciler's state has changed."""
        with self._condition:
            self._condition.notify_all()

    def wait_for_work(self) -> Literal["scan", "resume tracking"] | None:
        """Wait until the state changes or something is due.

        Returns what is to be done, None for nothing.
        """
        with self._condition:
            now = time.monotonic()
            resume_at = self._resume_tracking_at if self._is_polling else None
            if resume_at is not None and now >= resume_at:
                self._resume_tracking_at = None
                return "resume tracking"
            due_times = [] if resume_at is None else [resume_at]
            if self.is_coherent or self._is_polling:
                if self._scan_requested or not self._reconciler.is_ready:
                    self._scan_requested = False
                    return None if self.is_closing else "scan"
                if self._is_polling or self._reconciler.has_unverifiable_keys:
                    if now >= self._next_scan_at:
                        return None if self.is_closing else "scan"
                    due_times.append(self._next_scan_at)
            if not self.is_closing:
                self._condition.wait(min(due_times) - now if due_times else None)
            return None

    def wait_until_ready(self, timeout: float | None) -> None:
        """Wait until the index is current, up to `timeout` seconds.

        None: without limit. Raises the error that prevents it, or TryAgainError after `timeout`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while not self.is_index_current:
                if self.is_closing:
                    raise UnavailableError("the mount is ending")
                if self._scan_error is not None:
                    raise self._scan_error.with_traceback(None)
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    reason = self._degraded_reason if self.is_silent else "the keys are still being read"
                    raise TryAgainError(f"{reason}; try again later")
                self._condition.wait(remaining)
