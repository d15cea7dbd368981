"""The keys of a database, and when they change.

Keeps the index, the scan and the tracking connection consistent.

- Tracking starts before the first scan. A key that an invalidation message names is verified (EXISTS) and corrected, in
  the index in use and in one that a scan is building (reconciler.py).
- A scan always builds a new index, which replaces the current one in one step.
- When messages may have been missed (connection lost, database flushed), all caches are dropped first:
  `ChangeListener.reset` is called, the index in use is dropped, and listings wait for the scan that follows. A lost
  connection is noticed at once.
- A silent server or network is noticed within two seconds (liveness.py). All caches are dropped and listings wait, but
  the index is kept: if the server answers within the time-out, no message was missed. Otherwise the connection is lost.
- Without tracking (old server, ACL, a server that changes too fast), the keyspace is scanned periodically;
  `is_coherent` is false, and `degraded_reason` says why.

Threads: tracking (`redisfuse-follow`), which only records what the server announces; verifying (`redisfuse-look`),
which looks keys up and calls `keys_changed`; scanning (`redisfuse-scan`). The monitor itself has no lock; it calls its
listener while none of the room's locks is held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError, RedisFuseError, UnavailableError
from redisfuse.keyspace.change_follower import ChangeFollower
from redisfuse.keyspace.change_times import ChangeClock, directory_prefixes
from redisfuse.keyspace.drift import DriftDetector
from redisfuse.keyspace.heartbeat import MasterLink
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.index_backend import KeyLayout
from redisfuse.keyspace.index_builder import IndexBuilder
from redisfuse.keyspace.listener import ChangeListener, NullListener
from redisfuse.keyspace.monitor_state import MonitorState
from redisfuse.keyspace.own_writes import OwnWriteFilter
from redisfuse.keyspace.reconciler import IndexReconciler, ScanSupersededError
from redisfuse.keyspace.verifier import KeyVerifier
from redisfuse.paths.grammar import KeyRef, PathCodec

log = logging.getLogger(__name__)

_MIN_RETRY_DELAY_SECONDS = 0.25  # after a failed scan; doubled up to the maximum
_MAX_RETRY_DELAY_SECONDS = 5.0
_DENIED_RETRY_DELAY_SECONDS = 60.0  # after a scan that the ACL denies: each attempt adds an entry to the ACL LOG


class KeyspaceMonitor:
    """The keys of one database, or those of them that begin with a prefix."""

    def __init__(
        self,
        client: RedisClient,
        *,
        layout: KeyLayout | None = None,
        prefix: bytes = b"",
        index_memory: int = 512 * 1024 * 1024,
        rescan_interval: float = 30.0,
        heartbeat_interval: float = 2.0,
        listener: ChangeListener | None = None,
    ) -> None:
        """Create a monitor, which `start` starts.

        `index_memory`: most bytes of the index in memory; a larger one moves to disk. `rescan_interval`: seconds
        between scans without tracking. `heartbeat_interval`: seconds between queries of the server's counts.
        """
        layout = layout or PathCodec()
        self._client = client
        self._separator = layout.separator
        self._prefix = prefix
        self._listener: ChangeListener = listener or NullListener()

        self._reconciler = IndexReconciler(layout, max_memory_bytes=index_memory)
        self._state = MonitorState(self._reconciler, rescan_interval=rescan_interval, timeout=client.limits.timeout)
        self._change_clock = ChangeClock()
        self._own_writes = OwnWriteFilter()
        drift_detector = DriftDetector()
        self._verifier = KeyVerifier(
            client, self._state, self._reconciler, self._change_clock, self._listener, self._separator
        )
        self._index_builder = IndexBuilder(
            client,
            self._state,
            self._reconciler,
            self._change_clock,
            drift_detector,
            self._listener,
            separator=self._separator,
            prefix=prefix,
        )
        self._follower = ChangeFollower(
            client,
            self._state,
            self._reconciler,
            self._change_clock,
            self._own_writes,
            drift_detector,
            self._verifier,
            self._listener,
            prefix=prefix,
            rescan_interval=rescan_interval,
            heartbeat_interval=heartbeat_interval,
        )
        self._threads: list[threading.Thread] = []

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def index(self) -> Index:
        """The index in use; empty until `is_ready`.

        It may be replaced at any time: read this once for one listing.
        """
        return self._reconciler.index

    @property
    def is_ready(self) -> bool:
        """Whether the index is complete."""
        return self._reconciler.is_ready

    @property
    def is_coherent(self) -> bool:
        """Whether every change is announced, so that caches are valid until then.

        Read this before fetching what is to be cached: what was fetched before it became true is valid only briefly.
        """
        return self._state.is_coherent

    @property
    def degraded_reason(self) -> str:
        """Why the keyspace is not coherent; empty if it is."""
        return self._state.degraded_reason

    @property
    def is_scanning(self) -> bool:
        """Whether a scan is running."""
        return self._reconciler.is_scanning

    @property
    def scan_progress(self) -> tuple[int, int]:
        """The number of keys that the current scan has visited, and the total.

        0: unknown.
        """
        return self._index_builder.progress

    @property
    def may_expire(self) -> bool:
        """Whether a key of this database may have a time to live."""
        return self._follower.may_expire

    @property
    def master_link(self) -> MasterLink | None:
        """The link of a replica to its master.

        None if the server is no replica, or that is unknown.
        """
        return self._follower.master_link

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until the index is complete and follows the server.

        Waits up to `timeout` seconds; None: without limit. Raises the error that prevents it (UnavailableError,
        AccessError, NoSpaceError), or TryAgainError after `timeout`.
        """
        if not self._state.is_index_current:
            self._state.wait_until_ready(timeout)

    def changed_at(self, key: bytes) -> int:
        """Return when the key was last seen to change, in ns since the epoch.

        At least the time when this object was created. A directory's time is that of its prefix (`b"user:"`; the root's
        is `b""`): when a key in it was created or deleted. Memory is bounded: for a key that changed long ago the time
        may be too late. It never decreases.
        """
        return self._change_clock.changed_at(key)

    def mtime_ns(self, target: KeyRef) -> int:
        """Return the mtime of a file, in ns since the epoch.

        It is `changed_at`, or that of `record_save`.
        """
        return self._change_clock.mtime_ns(target.key, target.field)

    def is_hot(self, key: bytes) -> bool:
        """Return whether a key has changed twice within a second, less than a second ago."""
        return self._change_clock.is_hot(key)

    def is_recently_changed(self, key: bytes) -> bool:
        """Return whether a key is known to have changed less than a second ago."""
        return self._change_clock.is_recently_changed(key)

    def get_version(self, key: bytes) -> int:
        """Return a number that grows whenever the key changes or may have changed."""
        return self._change_clock.changed_at(key)

    # -- changes that the caller makes or knows -----------------------------------------------------------------------

    def announce_writes(self, keys: Collection[bytes]) -> None:
        """Expect the server's messages about these keys.

        The caller is about to change them.
        """
        if self._state.is_coherent:
            self._own_writes.expect_writes([key for key in keys if key.startswith(self._prefix)])

    def wait_for_invalidations(self) -> bool:
        """Block until all changes that the caller has observed are processed.

        Returns False if changes are not announced, or if the server does not answer in time.
        """
        return self._follower.wait_for_invalidations()

    def record_key_state(self, key: bytes, exists: bool) -> None:
        """Update the index at once with the state of one key.

        The caller has changed the key, or seen whether it exists.
        """
        if not key.startswith(self._prefix):
            return
        self._own_writes.confirm_write(key)
        self._reconciler.apply_write(key, exists)
        self._change_clock.record_changes(directory_prefixes((key,), self._separator))
        self._change_clock.record_own_change(key)
        self._verifier.wake()

    def record_save(self, target: KeyRef, mtime_ns: int) -> None:
        """Record the mtime of a file that the caller has saved, in ns since the epoch."""
        self._change_clock.record_save(target.key, target.field, mtime_ns)

    def mark_dirty(self, key: bytes) -> None:
        """Have a key verified that may have changed."""
        if not key.startswith(self._prefix):
            return
        self._change_clock.record_changes((key,))
        self._reconciler.mark_dirty((key,))
        self._verifier.wake()

    def schedule_expiry(self, key: bytes, deadline: float) -> bool:
        """Treat the key as changed at `deadline` (time.monotonic()), when it expires.

        Returns False if the queue is full: then what is cached of the key is valid only briefly.
        """
        return self._verifier.schedule_expiry(key, deadline)

    def request_rescan(self) -> None:
        """Scan again; the current index is used until then.

        Also retries tracking if it was given up.
        """
        self._state.request_rescan()

    # -- start and end ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; call this after the fork."""
        self._state.begin_connecting()
        self._follower.start()
        for name, loop in (("look", self._verify_loop), ("scan", self._scan_loop)):
            thread = threading.Thread(target=self._run_supervised, args=(loop,), name=f"redisfuse-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End the threads; callers that wait get UnavailableError."""
        self._state.close()
        self._verifier.wake()
        self._follower.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(self._client.limits.timeout + 1)

    # -- threads ------------------------------------------------------------------------------------------------------

    def _run_supervised(self, loop: Callable[[], None]) -> None:
        """Run a thread's loop, and restart it if a bug ends it.

        Without it the mount would show stale keys.
        """
        while not self._state.is_closing:
            try:
                loop()
            except Exception:
                log.exception("a thread of the keyspace failed; all keys are scanned again")
                self._follower.lose_coherence(UnavailableError("the keyspace failed; all keys are scanned again"))
                self._follower.disconnect()
                time.sleep(1)

    def _verify_loop(self) -> None:
        while not self._state.is_closing:
            lag = self._verifier.verify_next()
            self._state.record_verified_batch()
            if lag is not None:
                self._follower.check_lag(lag)

    def _scan_loop(self) -> None:
        delay = _MIN_RETRY_DELAY_SECONDS
        while not self._state.is_closing:
            work = self._state.wait_for_work()
            if work == "resume tracking":
                self._follower.start()
            elif work == "scan":
                try:
                    self._index_builder.build()
                    delay = _MIN_RETRY_DELAY_SECONDS
                    self._follower.poll_master_link()
                except ScanSupersededError:
                    pass
                except RedisFuseError as error:
                    log.warning("scanning the keys failed: %s", error)
                    self._handle_scan_failure(error)
                    self._state.retry_scan(_DENIED_RETRY_DELAY_SECONDS if isinstance(error, AccessError) else delay)
                    delay = min(2 * delay, _MAX_RETRY_DELAY_SECONDS)

    def _handle_scan_failure(self, error: RedisFuseError) -> None:
        is_polling = self._state.record_scan_error(error)
        if is_polling and self._reconciler.is_ready and isinstance(error, UnavailableError):
            # Without tracking, only a scan notices that the server is down.
            self._follower.reset_state()
            self._listener.reset()
