"""Follows one server, and scans its keys into the index.

A standalone server is the only shard of its keyspace. In a cluster, each primary is one. Threads: tracking
(`redisfuse-follow`) and scanning (`redisfuse-scan`). No lock of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError, RedisFuseError, UnavailableError
from redisfuse.keyspace.change_follower import ChangeFollower
from redisfuse.keyspace.change_times import ChangeClock
from redisfuse.keyspace.drift import DriftDetector
from redisfuse.keyspace.index_builder import IndexBuilder
from redisfuse.keyspace.listener import ChangeListener
from redisfuse.keyspace.monitor_state import KeyspaceState, MonitorState
from redisfuse.keyspace.own_writes import OwnWriteFilter
from redisfuse.keyspace.reconciler import ScanSupersededError, ShardIndex
from redisfuse.keyspace.verifier import KeyVerifier

log = logging.getLogger(__name__)

_MIN_RETRY_DELAY_SECONDS = 0.25  # after a failed scan; doubled up to the maximum
_MAX_RETRY_DELAY_SECONDS = 5.0
_DENIED_RETRY_DELAY_SECONDS = 60.0  # after a scan that the ACL denies: each attempt adds an entry to the ACL LOG


class ShardMonitor:
    """The follower and the scanner of one server."""

    def __init__(
        self,
        client: RedisClient,
        state: MonitorState,
        reconciler: ShardIndex,
        change_clock: ChangeClock,
        own_writes: OwnWriteFilter,
        verifier: KeyVerifier,
        listener: ChangeListener,
        *,
        separator: bytes,
        prefix: bytes,
        rescan_interval: float,
        heartbeat_interval: float,
        follow: bool,
    ) -> None:
        """Create a monitor, which `start` starts; the intervals are in seconds.

        Without `follow`, the keys are only scanned.
        """
        self._follow = follow
        self.client = client
        self.state = state
        self.reconciler = reconciler
        self._listener = listener
        drift_detector = DriftDetector()
        self.builder = IndexBuilder(
            client, state, reconciler, change_clock, drift_detector, listener, separator=separator, prefix=prefix
        )
        self.follower = ChangeFollower(
            client,
            state,
            reconciler,
            change_clock,
            own_writes,
            drift_detector,
            verifier,
            listener,
            prefix=prefix,
            rescan_interval=rescan_interval,
            heartbeat_interval=heartbeat_interval,
        )
        self._thread: threading.Thread | None = None
        self.has_scanned = threading.Event()  # since the last `resume`, or the scan has failed

    def start(self) -> None:
        """Start the threads."""
        self.resume()
        self._thread = threading.Thread(
            target=run_supervised, args=(self._scan_loop, self.state, self.recover), name="redisfuse-scan", daemon=True
        )
        self._thread.start()

    def pause(self, reason: str) -> None:
        """Stop following and scanning, and drop everything, until `resume`."""
        self.state.pause(reason)
        self.follower.close()
        self.follower.reset()
        self.client.close_idle()

    def resume(self) -> None:
        """Begin to follow and to scan."""
        self.has_scanned.clear()
        self.state.begin_connecting()
        if self._follow:
            self.follower.start()
        else:
            self.state.enter_polling("--no-follow")
            self._listener.state_changed()

    def close(self) -> None:
        """End the threads; callers that wait get UnavailableError."""
        self.state.close()
        self.follower.close()

    def join(self, timeout: float) -> None:
        """Wait for the end of the scanning thread."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def recover(self) -> None:
        """Drop everything and connect again, after a bug ended a thread.

        Without it the mount would show stale keys.
        """
        self.follower.lose_coherence(UnavailableError("the keyspace failed; all keys are scanned again"))
        self.follower.disconnect()

    def _scan_loop(self) -> None:
        delay = _MIN_RETRY_DELAY_SECONDS
        while not self.state.is_closing:
            work = self.state.wait_for_work()
            if work == "resume tracking":
                if self._follow:
                    self.follower.start()
            elif work == "scan":
                try:
                    self.builder.build()
                    delay = _MIN_RETRY_DELAY_SECONDS
                    self.has_scanned.set()
                    self.follower.poll_master_link()
                except ScanSupersededError:
                    pass
                except RedisFuseError as error:
                    if self.state.is_closing:
                        return
                    self.has_scanned.set()
                    log.warning("scanning the keys failed: %s", error)
                    self._handle_scan_failure(error)
                    self.state.retry_scan(_DENIED_RETRY_DELAY_SECONDS if isinstance(error, AccessError) else delay)
                    delay = min(2 * delay, _MAX_RETRY_DELAY_SECONDS)

    def _handle_scan_failure(self, error: RedisFuseError) -> None:
        is_polling = self.state.record_scan_error(error)
        if is_polling and self.reconciler.is_ready and isinstance(error, UnavailableError):
            # Without tracking, only a scan notices that the server is down.
            self.follower.reset()


def run_supervised(loop: Callable[[], None], state: KeyspaceState, recover: Callable[[], None]) -> None:
    """Run a thread's loop, and restart it if a bug ends it."""
    while not state.is_closing:
        try:
            loop()
        except Exception:
            log.exception("a thread of the keyspace failed; all keys are scanned again")
            recover()
            time.sleep(1)
