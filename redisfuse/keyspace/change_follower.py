"""Follows the messages of the tracking connection.

The caches are dropped first, then the index follows, or a scan is requested. Threads: the events are called by the
tracking thread, `lose_coherence` and `reset` by any thread of the keyspace. No lock of its own; the listener is called
while none of the room's locks is held.
"""

from __future__ import annotations

import logging
import time

from redisfuse.client.client import RedisClient
from redisfuse.client.replication import MasterLink, parse_master_link
from redisfuse.errors import RedisFuseError
from redisfuse.keyspace.change_times import ChangeClock
from redisfuse.keyspace.drift import DriftDetector
from redisfuse.keyspace.heartbeat import Heartbeat
from redisfuse.keyspace.interruption_log import InterruptionLog
from redisfuse.keyspace.listener import ChangeListener
from redisfuse.keyspace.monitor_state import MonitorState
from redisfuse.keyspace.overload import OverloadDetector
from redisfuse.keyspace.own_writes import OwnWriteFilter
from redisfuse.keyspace.reconciler import ShardIndex
from redisfuse.keyspace.tracking import FlushProbe, TrackingClient
from redisfuse.keyspace.verifier import KeyVerifier

log = logging.getLogger(__name__)

_FLUSH_PROBE_KEYS = 16  # keys that are looked up after a flush, to find out which database was flushed

_OVERLOAD_REASON = "the server changes faster than this mount can follow"


class ChangeFollower:
    """Keeps the keyspace up to date with a tracking connection.

    Implements TrackingListener.
    """

    def __init__(
        self,
        client: RedisClient,
        state: MonitorState,
        reconciler: ShardIndex,
        change_clock: ChangeClock,
        own_writes: OwnWriteFilter,
        drift_detector: DriftDetector,
        verifier: KeyVerifier,
        listener: ChangeListener,
        *,
        prefix: bytes,
        rescan_interval: float,
        heartbeat_interval: float,
    ) -> None:
        """Create a follower, which `start` starts; the intervals are in seconds."""
        self._client = client
        self._state = state
        self._reconciler = reconciler
        self._change_clock = change_clock
        self._own_writes = own_writes
        self._drift_detector = drift_detector
        self._verifier = verifier
        self._listener = listener
        self._prefix = prefix
        self._rescan_interval = rescan_interval
        self._heartbeat_interval = heartbeat_interval
        self._overload_detector = OverloadDetector()
        self._interruption_log = InterruptionLog()
        self._tracking_client: TrackingClient | None = None
        self.may_expire = True  # whether a key of the database may have a time to live
        self._is_outdated = False  # the replica's values are too old
        self.master_link: MasterLink | None = None  # of a replica, as of the last heartbeat

    # -- the connection ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open a tracking connection, in a thread of its own."""
        self._tracking_client = TrackingClient(
            self._client, self, prefix=self._prefix, heartbeat_interval=self._heartbeat_interval
        )
        self._tracking_client.start()

    def disconnect(self) -> None:
        """Close the connection; it is opened again."""
        if self._tracking_client is not None:
            self._tracking_client.disconnect()

    def wait_for_invalidations(self) -> bool:
        """Block until all changes that the caller has observed are processed.

        Returns False if changes are not announced, or if the server does not answer in time.
        """
        tracking_client = self._tracking_client
        if tracking_client is None or not self._state.is_coherent:
            return False
        return tracking_client.wait_for_invalidations(self._client.limits.timeout)

    def close(self) -> None:
        """Close the connection, and end its thread."""
        if self._tracking_client is not None:
            self._tracking_client.close()

    # -- TrackingListener: called by the tracking thread --------------------------------------------------------------

    def on_connect(self) -> None:
        """Drop what was cached without tracking, and scan.

        From now on every change is announced.
        """
        self._interruption_log.record_connect()
        self.reset()
        self._overload_detector.record_connect(time.monotonic())
        self._state.become_coherent()
        self._listener.state_changed()

    def on_invalidate(self, keys: list[bytes]) -> None:
        """Drop what is cached of these keys, and have them verified."""
        own = self._own_writes.filter_own(keys)
        self._listener.keys_touched(keys)  # before their versions, so that none has the bytes of the one before
        self._change_clock.record_changes([key for key in keys if key not in own] if own else keys)
        self._change_clock.record_own_invalidations(own)
        dirty_count = self._reconciler.mark_dirty(keys)
        self._own_writes.record_received(keys)
        self._verifier.wake()
        if self._overload_detector.record_invalidations(len(keys), dirty_count):
            self._suspend_tracking(_OVERLOAD_REASON)

    def on_flush(self, probe: FlushProbe) -> None:
        """Drop everything and scan, unless another database was flushed.

        Keys that survived prove that, except on a replica.
        """
        if probe.is_replica() or not probe.find_survivors(self._reconciler.sample_keys(_FLUSH_PROBE_KEYS)):
            self._reset_and_rescan()

    def on_swapdb(self) -> None:
        """Drop everything and scan.

        The server does not report which two databases were swapped.
        """
        self._reset_and_rescan()

    def on_heartbeat(self, heartbeat: Heartbeat, invalidated_keys: int) -> None:
        """Scan again if the server's count of keys and the index drift apart."""
        self._set_master_link(heartbeat.master_link)
        if heartbeat.is_master:
            self._client.leave_master()
        self.may_expire = heartbeat.expiring_count != 0
        if not self.may_expire:
            self._listener.no_key_expires()
        reconciler = self._reconciler
        if not reconciler.is_ready or reconciler.is_scanning or self._prefix or heartbeat.key_count is None:
            return
        index_count = reconciler.count_keys()
        if index_count is None:
            return
        pending_changes = invalidated_keys + reconciler.dirty_count
        if self._drift_detector.check_counts(heartbeat.key_count, index_count, pending_changes, time.monotonic()):
            log.info(
                "the database has %d keys, the index %d; the keys are scanned again", heartbeat.key_count, index_count
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
        self.lose_coherence(error)
        if self._overload_detector.record_disconnect(time.monotonic()):
            self._suspend_tracking(f"{_OVERLOAD_REASON}, and repeatedly closes its connection")

    def on_connect_failed(self, error: RedisFuseError) -> None:
        """Report the error to callers that wait for the index."""
        self._interruption_log.record_connect_failure(error)
        self._state.record_connect_error(error)

    def poll_master_link(self) -> None:
        """Fetch the state of a replica's link, if there are no heartbeats."""
        if not self._state.is_coherent:
            self._set_master_link(parse_master_link(self._client.execute_many([(b"INFO", b"replication")])[0]))

    def _set_master_link(self, link: MasterLink | None) -> None:
        """Set the state of a replica's link, and log when it goes down or up."""
        was_down, self.master_link = self.master_link is not None and not self.master_link.is_up, link
        self._follow_lag(link)
        if link is not None and link.is_up == was_down:
            log.log(logging.INFO if link.is_up else logging.WARNING, "the server is a replica: %s", link.text)

    def _follow_lag(self, link: MasterLink | None) -> None:
        """Drop what is cached while the replica's values are too old."""
        guard = self._client.lag_guard
        if guard is None:
            return
        guard.record(link)
        if guard.is_exceeded and self._state.begin_silence(guard.explain()):
            self._is_outdated = True
            log.warning("%s: reads are refused until it is current again", self._state.degraded_reason)
            self._listener.reset()
        elif self._is_outdated and not guard.is_exceeded:
            self._is_outdated = False
            log.info("the replica's values are current again")
            if self._state.end_silence():
                self._listener.state_changed()

    def check_lag(self, lag: float) -> None:
        """Suspend tracking if keys are verified too late; `lag` in seconds."""
        if self._overload_detector.record_verification(lag, time.monotonic()) and self._state.is_coherent:
            self._suspend_tracking(_OVERLOAD_REASON)

    # -- transitions --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Drop everything that is cached or known of keys: any of them may have changed."""
        self._listener.all_touched()  # before the versions, as in `on_invalidate`
        self._change_clock.record_all_changed()
        self._verifier.clear_expiries()
        self._reconciler.reset()
        self._drift_detector.reset()
        self._state.notify()
        self._listener.reset()

    def _reset_and_rescan(self) -> None:
        """Drop everything and scan, while messages still arrive."""
        self.reset()
        self._state.request_scan()

    def lose_coherence(self, error: RedisFuseError) -> None:
        """Drop everything: changes are missed from now on."""
        self._state.lose_coherence(error)
        self.reset()

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
        self.close()
