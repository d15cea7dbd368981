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
from redisfuse.keyspace.change_times import ChangeClock, directory_prefixes
from redisfuse.keyspace.drift import DriftDetector
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.index_backend import KeyLayout
from redisfuse.keyspace.index_builder import IndexBuilder
from redisfuse.keyspace.interruption_log import InterruptionLog
from redisfuse.keyspace.listener import ChangeListener, NullListener
from redisfuse.keyspace.monitor_state import MonitorState
from redisfuse.keyspace.overload import OverloadDetector
from redisfuse.keyspace.own_writes import OwnWriteFilter
from redisfuse.keyspace.reconciler import IndexReconciler, ScanSupersededError
from redisfuse.keyspace.tracking import FlushProbe, ServerCounts, TrackingClient
from redisfuse.keyspace.verifier import KeyVerifier
from redisfuse.paths.grammar import KeyRef, PathCodec

log = logging.getLogger(__name__)

_FLUSH_PROBE_KEYS = 16  # keys that are looked up after a flush, to find out which database was flushed
_MIN_RETRY_DELAY_SECONDS = 0.25  # after a failed scan; doubled up to the maximum
_MAX_RETRY_DELAY_SECONDS = 5.0
_DENIED_RETRY_DELAY_SECONDS = 60.0  # after a scan that the ACL denies: each attempt adds an entry to the ACL LOG

_OVERLOAD_REASON = "the server changes faster than this mount can follow"


class KeyspaceMonitor:
    """The keys of one database, or those of them that begin with a prefix.

    Implements TrackingListener.
    """

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
        self._rescan_interval = rescan_interval
        self._heartbeat_interval = heartbeat_interval
        self._listener: ChangeListener = listener or NullListener()

        self._reconciler = IndexReconciler(layout, max_memory_bytes=index_memory)
        self._state = MonitorState(self._reconciler, rescan_interval=rescan_interval, timeout=client.limits.timeout)
        self._change_clock = ChangeClock()
        self._own_writes = OwnWriteFilter()
        self._overload_detector = OverloadDetector()
        self._drift_detector = DriftDetector()
        self._interruption_log = InterruptionLog()
        self._verifier = KeyVerifier(
            client, self._state, self._reconciler, self._change_clock, self._listener, self._separator
        )
        self._index_builder = IndexBuilder(
            client,
            self._state,
            self._reconciler,
            self._change_clock,
            self._drift_detector,
            self._listener,
            separator=self._separator,
            prefix=prefix,
        )
        self._tracking_client: TrackingClient | None = None
        self._threads: list[threading.Thread] = []
        self._may_expire = True

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
        return self._may_expire

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

    @property
    def latest_version(self) -> int:
        """A number that no key's version exceeds yet."""
        return self._change_clock.latest

    def was_changed_by_others(self, key: bytes, version: int) -> bool:
        """Return whether a key has, or may have, changed since a version.

        A change by this mount does not count, if it is the last one.
        """
        return self._change_clock.was_changed_by_others(key, version)

    # -- changes that the caller makes or knows -----------------------------------------------------------------------

    def announce_writes(self, keys: Collection[bytes]) -> None:
        """Expect the server's messages about these keys.

        The caller is about to change them.
        """
        if self._state.is_coherent:
            self._own_writes.expect_writes([key for key in keys if key.startswith(self._prefix)])

    def wait_for_invalidations(self) -> None:
        """Block until all changes that the caller has observed are processed."""
        tracking_client = self._tracking_client
        if self._state.is_coherent and tracking_client is not None:
            tracking_client.wait_for_invalidations(self._client.limits.timeout)

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

    def record_directory_change(self, prefix: bytes) -> None:
        """Record that the caller has changed the names in a directory.

        `prefix`: that of its keys; the root's is `b""`.
        """
        self._change_clock.record_changes((prefix,))

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
        self._start_tracking()
        for name, loop in (("look", self._verify_loop), ("scan", self._scan_loop)):
            thread = threading.Thread(target=self._run_supervised, args=(loop,), name=f"redisfuse-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End the threads; callers that wait get UnavailableError."""
        self._state.close()
        self._verifier.wake()
        if self._tracking_client is not None:
            self._tracking_client.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(self._client.limits.timeout + 1)

    def _start_tracking(self) -> None:
        self._tracking_client = TrackingClient(
            self._client, self, prefix=self._prefix, heartbeat_interval=self._heartbeat_interval
        )
        self._tracking_client.start()

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
                self._lose_coherence(UnavailableError("the keyspace failed; all keys are scanned again"))
                if self._tracking_client is not None:
                    self._tracking_client.disconnect()
                time.sleep(1)

    def _verify_loop(self) -> None:
        while not self._state.is_closing:
            lag = self._verifier.verify_next()
            self._state.record_verified_batch()
            is_overloaded = lag is not None and self._overload_detector.record_verification(lag, time.monotonic())
            if is_overloaded and self._state.is_coherent:
                self._suspend_tracking(_OVERLOAD_REASON)

    def _scan_loop(self) -> None:
        delay = _MIN_RETRY_DELAY_SECONDS
        while not self._state.is_closing:
            work = self._state.wait_for_work()
            if work == "resume tracking":
                self._start_tracking()
            elif work == "scan":
                try:
                    self._index_builder.build()
                    delay = _MIN_RETRY_DELAY_SECONDS
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
            self._reset_state()
            self._listener.reset()

    # -- TrackingListener: called by the tracking thread --------------------------------------------------------------

    def on_connect(self) -> None:
        """Drop what was cached without tracking, and scan.

        From now on every change is announced.
        """
        self._interruption_log.record_connect()
        self._reset_state()
        self._listener.reset()
        self._overload_detector.record_connect(time.monotonic())
        self._state.become_coherent()
        self._listener.state_changed()

    def on_invalidate(self, keys: list[bytes]) -> None:
        """Drop what is cached of these keys, and have them verified."""
        own = self._own_writes.filter_own(keys)
        self._change_clock.record_changes([key for key in keys if key not in own] if own else keys)
        self._change_clock.record_own_invalidations(own)
        self._listener.keys_touched(keys)
        dirty_count = self._reconciler.mark_dirty(keys)
        self._own_writes.record_received(keys)
        self._verifier.wake()
        if self._overload_detector.record_invalidations(len(keys), dirty_count):
            self._suspend_tracking(_OVERLOAD_REASON)

    def on_flush(self, probe: FlushProbe) -> None:
        """Drop everything and scan, unless another database was flushed.

        Keys that survived prove that.
        """
        if not probe.find_survivors(self._reconciler.sample_keys(_FLUSH_PROBE_KEYS)):
            self._reset_and_rescan()

    def on_swapdb(self) -> None:
        """Drop everything and scan.

        The server does not report which two databases were swapped.
        """
        self._reset_and_rescan()

    def on_heartbeat(self, counts: ServerCounts, invalidated_keys: int) -> None:
        """Scan again if the server's count of keys and the index drift apart."""
        self._may_expire = counts.expiring_count != 0
        if not self._may_expire:
            self._listener.no_key_expires()
        reconciler = self._reconciler
        if not reconciler.is_ready or reconciler.is_scanning or self._prefix or counts.key_count is None:
            return
        index_count = len(reconciler.index)
        pending_changes = invalidated_keys + reconciler.dirty_count
        if self._drift_detector.check_counts(counts.key_count, index_count, pending_changes, time.monotonic()):
            log.info(
                "the database has %d keys, the index %d; the keys are scanned again", counts.key_count, index_count
            )
            self._state.request_scan(index_suspect=True, drift_detected=True)
            self._listener.reset()

    def on_silence(self, seconds: float) -> None:
        """Drop what is cached, because changes may be missing.

        The index is kept, and listings wait for an answer.
        """
        if self._state.begin_silence(f"the server has not answered for {seconds:g} s"):
            log.warning("%s: nothing cached is used until it answers", self._state.degraded_reason)
            self._listener.reset()

    def on_answer(self) -> None:
        """Trust caches again: no change was missed."""
        if self._state.end_silence():
            log.info("the server answers again")
            self._listener.state_changed()

    def on_unsupported(self, reason: str) -> None:
        """Scan periodically: there is no tracking."""
        log.warning("changes by other clients appear after up to %g s: %s", self._rescan_interval, reason)
        self._interruption_log.begin()
        self._state.enter_polling(reason)
        self._listener.state_changed()

    def on_disconnect(self, error: RedisFuseError) -> None:
        """Drop everything.

        Callers that wait keep waiting for the next attempt to connect.
        """
        self._interruption_log.record_disconnect(error)
        self._lose_coherence(error)
        if self._overload_detector.record_disconnect(time.monotonic()):
            self._suspend_tracking(f"{_OVERLOAD_REASON}, and repeatedly closes its connection")

    def on_connect_failed(self, error: RedisFuseError) -> None:
        """Report the error to callers that wait for the index."""
        self._interruption_log.record_connect_failure(error)
        self._state.record_connect_error(error)

    # -- transitions --------------------------------------------------------------------------------------------------

    def _reset_state(self) -> None:
        """Drop all knowledge of keys: any of them may have changed."""
        self._change_clock.record_all_changed()
        self._verifier.clear_expiries()
        self._reconciler.reset()
        self._drift_detector.reset()
        self._state.notify()

    def _reset_and_rescan(self) -> None:
        """Drop everything and scan, while messages still arrive."""
        self._reset_state()
        self._listener.reset()
        self._state.request_scan()

    def _lose_coherence(self, error: RedisFuseError) -> None:
        """Drop everything: changes are missed from now on."""
        self._state.lose_coherence(error)
        self._reset_state()
        self._listener.reset()

    def _suspend_tracking(self, reason: str) -> None:
        """Stop tracking for a while.

        The index stays in use; caches are valid only briefly.
        """
        if not self._state.suspend_tracking(reason):
            return
        self._state.resume_tracking_after(self._overload_detector.start_backoff())
        self._reconciler.clear_dirty()
        self._listener.reset()
        log.warning("%s", self._state.degraded_reason)
        self._interruption_log.begin()
        if self._tracking_client is not None:
            self._tracking_client.close()
