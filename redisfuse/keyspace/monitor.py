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
which looks keys up and calls `keys_changed`; scanning (`redisfuse-scan`); pausing (`redisfuse-idle`), while the mount
is not used. The monitor's lock is held while following is paused or resumed; apart from that, it calls its listener
while none of the room's locks is held. A standalone server is one shard (shard_monitor.py); cluster_monitor.py has one
for each primary of a cluster.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from redisfuse.client.client import RedisClient
from redisfuse.client.replication import MasterLink
from redisfuse.keyspace.change_times import ChangeClock, directory_prefixes
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.index_backend import KeyLayout
from redisfuse.keyspace.listener import ChangeListener, NullListener
from redisfuse.keyspace.monitor_state import KeyspaceState, MonitorState
from redisfuse.keyspace.own_writes import OwnWriteFilter
from redisfuse.keyspace.reconciler import IndexReconciler, ShardIndex
from redisfuse.keyspace.shard_monitor import ShardMonitor, run_supervised
from redisfuse.keyspace.verifier import KeyVerifier
from redisfuse.paths.grammar import KeyRef, PathCodec

log = logging.getLogger(__name__)


_MAX_RESUME_SECONDS = 2.0  # how long the first request after a pause waits for the scan


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
        follow: bool = True,
        idle_seconds: float = 0.0,
        listener: ChangeListener | None = None,
    ) -> None:
        """Create a monitor, which `start` starts.

        `index_memory`: most bytes of the index in memory; a larger one moves to disk. `rescan_interval`: seconds
        between scans without tracking. `heartbeat_interval`: seconds between queries of the server's counts.
        Without `follow`, keys are only scanned. After `idle_seconds` without use, following pauses; 0: never.
        """
        layout = layout or PathCodec()
        self._client = client
        self._separator = layout.separator
        self._prefix = prefix
        self._listener: ChangeListener = listener or NullListener()

        self._rescan_interval = rescan_interval
        self._follow = follow
        self._idle_seconds = idle_seconds
        self._used_at = time.monotonic()  # a hint without a lock
        self._pausing = threading.Lock()  # guards `is_paused` and its transitions
        self.is_paused = False
        self._ending = threading.Event()
        self._heartbeat_interval = heartbeat_interval
        self._change_clock = ChangeClock()
        self._own_writes = OwnWriteFilter()
        self._threads: list[threading.Thread] = []
        self.shards: tuple[ShardMonitor, ...] = ()  # replaced, never changed
        self._reconciler = self._create_reconciler(layout, index_memory)
        self._state = self._create_state()
        self._verifier = KeyVerifier(
            client, self._state, self._reconciler, self._change_clock, self._listener, self._separator
        )
        self._create_shards()

    def _create_reconciler(self, layout: KeyLayout, index_memory: int) -> IndexReconciler:
        return IndexReconciler(layout, max_memory_bytes=index_memory)

    def _create_state(self) -> KeyspaceState:
        return self._create_shard_state(self._reconciler)

    def _create_shards(self) -> None:
        """Create the only shard, whose state is that of the keyspace."""
        assert isinstance(self._state, MonitorState)
        self.shards = (self._create_shard(self._client, self._state, self._reconciler, self._listener),)

    def _create_shard_state(self, reconciler: ShardIndex) -> MonitorState:
        return MonitorState(reconciler, rescan_interval=self._rescan_interval, timeout=self._client.limits.timeout)

    def _create_shard(
        self, client: RedisClient, state: MonitorState, reconciler: ShardIndex, listener: ChangeListener
    ) -> ShardMonitor:
        return ShardMonitor(
            client,
            state,
            reconciler,
            self._change_clock,
            self._own_writes,
            self._verifier,
            listener,
            separator=self._separator,
            prefix=self._prefix,
            rescan_interval=self._rescan_interval,
            heartbeat_interval=self._heartbeat_interval,
            follow=self._follow,
        )

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def index(self) -> Index:
        """The index in use; incomplete until `is_ready`.

        It may be replaced at any time: read this once for one listing.
        """
        return self._reconciler.index

    @property
    def is_ready(self) -> bool:
        """Whether the index is complete."""
        return self._reconciler.is_ready

    @property
    def may_wait(self) -> bool:
        """Whether the next use waits: for the end of a pause, or for the index."""
        return self.is_paused or not self._state.is_index_current

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
        progress = [shard.builder.progress for shard in self.shards]
        total = sum(total for _, total in progress) if all(total for _, total in progress) else 0
        return sum(visited for visited, _ in progress), total

    @property
    def may_expire(self) -> bool:
        """Whether a key of this database may have a time to live."""
        return any(shard.follower.may_expire for shard in self.shards)

    @property
    def master_link(self) -> MasterLink | None:
        """The link of a replica to its master.

        None if the server is not a replica, or that is unknown.
        """
        return next((shard.follower.master_link for shard in self.shards if shard.follower.master_link), None)

    @property
    def unserved_slots(self) -> int:
        """The number of slots of a cluster that no node serves."""
        return 0

    def describe_shards(self) -> list[dict[str, object]]:
        """Return the state of each shard of a cluster; empty for a server."""
        return []

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until the index is complete and follows the server.

        Waits up to `timeout` seconds; None: without limit. Raises the error that prevents it (UnavailableError,
        AccessError, NoSpaceError), or TryAgainError after `timeout`.
        """
        self.record_use()
        self._client.require_current()
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

    def mtime_at(self, key: bytes, version: int) -> int | None:
        """Return the mtime of a key's file in ns; None if it has another version."""
        return self._change_clock.mtime_at(key, version)

    @property
    def has_hot_keys(self) -> bool:
        """Whether any key may be hot."""
        return self._change_clock.has_hot_keys

    def is_hot(self, key: bytes) -> bool:
        """Return whether a key has changed twice within a second, less than a second ago."""
        return self._change_clock.is_hot(key)

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

    def wait_for_invalidations(self) -> bool:
        """Block until all changes that the caller has observed are processed.

        Returns False if changes are not announced, or if the server does not answer in time.
        """
        return all(shard.follower.wait_for_invalidations() for shard in self.shards)

    def record_key_state(self, key: bytes, exists: bool) -> None:
        """Update the index at once with the state of one key.

        The caller has changed the key, or seen whether it exists.
        """
        if not key.startswith(self._prefix):
            return
        self._own_writes.confirm_write(key)
        if self._reconciler.apply_write(key, exists):
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

    def record_use(self) -> None:
        """Note that a program uses the mount; resume following if it is paused."""
        self._used_at = time.monotonic()
        if self.is_paused:
            with self._pausing:
                self._resume()

    def _resume(self) -> None:
        if self.is_paused and not self._state.is_closing:
            log.debug("following is resumed")
            for shard in self.shards:
                shard.resume()
            # The end of the scan drops what is cached, so what is looked up before could not be read after.
            deadline = time.monotonic() + _MAX_RESUME_SECONDS
            for shard in self.shards:
                shard.has_scanned.wait(max(0.0, deadline - time.monotonic()))
            self.is_paused = False

    def _watch_use(self) -> None:
        """Pause following whenever the mount has not been used for a while."""
        while not self._ending.wait(min(1.0, self._idle_seconds / 4)):
            began = time.monotonic()
            if self.is_paused or began - self._used_at < self._idle_seconds:
                continue
            reason = f"paused, as nothing has used the mount for {self._idle_seconds:g} s"
            log.debug("following is %s", reason)
            with self._pausing:
                for shard in self.shards:
                    shard.pause(reason)
                self.is_paused = True
                if self._used_at >= began:  # meanwhile
                    self._resume()

    def request_rescan(self) -> None:
        """Scan again; the current index is used until then.

        Also retries tracking if it was given up.
        """
        self._state.request_rescan()

    # -- start and end ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; call this after the fork."""
        for shard in self.shards:
            shard.start()
        self._start_thread("look", self._verify_loop)
        if self._idle_seconds:
            self._start_thread("idle", self._watch_use)

    def _start_thread(self, name: str, loop: Callable[[], None]) -> None:
        thread = threading.Thread(
            target=run_supervised, args=(loop, self._state, self._recover), name=f"redisfuse-{name}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """End the threads; callers that wait get UnavailableError."""
        self._state.close()
        self._ending.set()
        self._verifier.wake()
        for shard in self.shards:
            shard.close()
        timeout = self._client.limits.timeout + 1
        for shard in self.shards:
            shard.join(timeout)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)

    # -- the verifying thread -----------------------------------------------------------------------------------------

    def _recover(self) -> None:
        for shard in self.shards:
            shard.recover()

    def _verify_loop(self) -> None:
        while not self._state.is_closing:
            lag = self._verifier.verify_next()
            self._state.record_verified_batch()
            if lag is not None:
                for shard in self.shards:
                    shard.follower.check_lag(lag)
