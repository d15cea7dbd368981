"""Which keys there are, and when they change: the index, the scan and the follower, kept true together.

- The follower listens before the first scan begins. A key that it is told of is looked at (EXISTS), and put right in
  the index in use and in the one that a scan is building (knowledge.py says how the two are reconciled).
- A scan always builds a new index, which takes the old one's place in one step.
- When messages may have been missed (connection lost, database flushed), everything is forgotten first: `on_reset` is
  called, the index in use is dropped, and listings wait for the scan that follows. A lost connection is noticed at
  once, a hung server within the time-out.
- Without a follower (old server, ACL, a server too fast to follow), the keyspace is scanned every now and then;
  `is_coherent` is false, and `degraded_reason` says why.

Threads: the follower's, which only notes what it is told; one that looks at keys and calls `on_change`; one that scans.
`_lock` guards the few words below it, and is what waiting threads wait on. No callback, and nothing that takes another
lock, is called while it is held.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection

from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError, RedisFuseError, TryAgainError, UnavailableError
from redisfuse.keyspace.change_times import ChangeClock
from redisfuse.keyspace.drift import DriftDetector
from redisfuse.keyspace.exists import exists_many
from redisfuse.keyspace.expiry_queue import ExpiryQueue
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.listener import ChangeListener, NullListener
from redisfuse.keyspace.overload import OverloadDetector
from redisfuse.keyspace.own_writes import OwnWriteFilter
from redisfuse.keyspace.reconciler import IndexReconciler, ScanSupersededError, VerifyBatch
from redisfuse.keyspace.scanner import scan_keys
from redisfuse.keyspace.tracking import FlushProbe, ServerCounts, TrackingClient
from redisfuse.paths.grammar import KeyRef

log = logging.getLogger(__name__)

_COALESCE_SECONDS = 0.02  # seconds that changed keys are let gather before they are looked at
_COALESCE_BUSY_SECONDS = 0.1  # the same, while there are more than `_BUSY_DIRTY_KEYS`
_BUSY_DIRTY_KEYS = 2_000
_MAX_KEYS_PER_VERIFY = 50_000  # keys looked at in one go
_MAX_KEYS_PER_INDEX_UPDATE = 1_000  # keys put into the index under one hold of its lock
_EXPIRY_GRACE_SECONDS = (
    0.01  # seconds after a deadline at which a key is looked at, so that the server too finds it passed
)
_FLUSH_PROBE_KEYS = 16  # keys that are looked for after a flush, to tell which database was flushed

_MIN_RETRY_DELAY_SECONDS = 0.25  # seconds after which something that failed is tried again; doubled up to the longest
_MAX_RETRY_DELAY_SECONDS = 5.0
_DENIED_RETRY_DELAY_SECONDS = 60.0  # the same where an ACL denies it: each attempt leaves an entry in the server's log
_SCAN_INTERVAL_FACTOR = 10  # timed scans leave this many times their own duration between them
_MAX_REPORTED_DIFFERENCES = 100_000  # keys that a scan may find changed and tell of one by one

_OVERLOAD_REASON = "the server changes faster than this mount can follow"


class KeyspaceMonitor:
    """The keys of one database, or those of them that start with a prefix.

    `on_touched(keys)` is called as soon as keys are told of: what is cached of them is no longer true.
    `on_change(keys)` follows, within a fraction of a second, when the index is right too. `on_reset()` means: anything
    may have changed; `is_coherent` and `is_ready` may have become false. `on_state()`: they may have become true.
    `on_none_expiring()`: of all keys that were told of by now, none has a time to live.
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        separator: bytes = b":",
        is_long_key: Callable[[bytes], bool] = lambda _key: False,
        prefix: bytes = b"",
        index_memory: int = 512 * 1024 * 1024,
        rescan_interval: float = 30.0,
        heartbeat_interval: float = 2.0,
        listener: ChangeListener | None = None,
    ) -> None:
        """`is_long`: whether a key's path is too long for a directory. `index_memory`: bytes, beyond which the index
        goes to disk. `rescan_interval`: seconds between scans while there is no follower. `keep_alive`: seconds
        between signs of life.
        """
        self._client = client
        self._separator = separator
        self._prefix = prefix
        self._rescan_interval = rescan_interval
        self._heartbeat_interval = heartbeat_interval
        self._listener: ChangeListener = listener or NullListener()

        self._reconciler = IndexReconciler(lambda: Index(separator, is_long_key, max_memory_bytes=index_memory))
        self._change_clock = ChangeClock()
        self._own_writes = OwnWriteFilter()
        self._expiry_queue = ExpiryQueue()
        self._overload_detector = OverloadDetector()
        self._drift_detector = DriftDetector()
        self._tracking_client: TrackingClient | None = None
        self._threads: list[threading.Thread] = []
        self._spill_thread: threading.Thread | None = None
        self._scan_progress = (0, 0)
        self._may_expire = True

        self._lock = threading.Lock()
        self._dirty_condition = threading.Condition(self._lock)  # something for the thread that looks at keys
        self._state_condition = threading.Condition(
            self._lock
        )  # something for the thread that scans, or for those who wait
        self._closing = False
        self._is_coherent = False
        self._degraded_reason = "not started"
        self._scan_error: RedisFuseError | None = None  # what keeps the index from being whole
        self._failing_since: float | None = None
        self._is_polling = False  # no follower: scan by the clock
        self._resume_tracking_at: float | None = None  # when to try to follow again, if `_is_polling`
        self._next_scan_at = 0.0
        self._scan_requested = False
        self._index_suspect = False  # the next scan is made because what is known may be wrong
        self._drift_detected = False  # it is made because of the server's count

    # -- for those who ask -------------------------------------------------------------------------------------------

    @property
    def index(self) -> Index:
        """The index in use; empty until `is_ready`. It may be replaced at any time: take it once for one listing."""
        return self._reconciler.index

    @property
    def is_ready(self) -> bool:
        """Whether the index is whole."""
        return self._reconciler.is_ready

    @property
    def is_coherent(self) -> bool:
        """Whether every change is told of, so that what is cached may be trusted until then.

        Look at it before fetching what is to be cached: what was fetched before it became true must not be trusted for
        long.
        """
        return self._is_coherent

    @property
    def degraded_reason(self) -> str:
        """Why it is not live; empty if it is."""
        return "" if self._is_coherent else self._degraded_reason

    @property
    def is_scanning(self) -> bool:
        """Whether a scan is under way."""
        return self._reconciler.is_scanning

    @property
    def scan_progress(self) -> tuple[int, int]:
        """Keys walked over by the scan under way, and how many there are (0: not known)."""
        return self._scan_progress

    @property
    def may_expire(self) -> bool:
        """Whether a key of this database may have a time to live."""
        return self._may_expire

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until the index is whole, up to `timeout` seconds (None: as long as it takes).

        Raises what keeps the scan from being made (UnavailableError, AccessError, NoSpaceError), or TryAgainError when
        the time is up.
        """
        if self._reconciler.is_ready:
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not self._reconciler.is_ready:
                if self._closing:
                    raise UnavailableError("the mount is ending")
                if self._scan_error is not None:
                    raise self._scan_error.with_traceback(None)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TryAgainError("the keys are still being read")
                self._state_condition.wait(left)

    def changed_at(self, key: bytes) -> int:
        """When the key was last seen to change, in ns since the epoch; at least when this object was made.

        A directory's moment is that of its prefix (`b"user:"`; the root's is `b""`): when a key in it came or went.
        Bounded memory: for a key that changed long ago it may be later than the truth. It never goes backwards.
        """
        return self._change_clock.changed_at(key)

    def mtime_ns(self, target: KeyRef) -> int:
        """When a file was last modified, in ns since the epoch: `changed_at`, or what `record_save` said of it."""
        return self._change_clock.mtime_ns(target.key, target.field)

    def is_hot(self, key: bytes) -> bool:
        """Whether a key has changed twice within a second, less than a second ago."""
        return self._change_clock.is_hot(key)

    def is_recently_changed(self, key: bytes) -> bool:
        """Whether a key has changed, as far as is known, less than a second ago."""
        return self._change_clock.is_recently_changed(key)

    def get_version(self, key: bytes) -> int:
        """A number that grows whenever the key changes or may have changed."""
        return self._change_clock.changed_at(key)

    # -- for those who know ------------------------------------------------------------------------------------------

    def announce_writes(self, keys: Collection[bytes]) -> None:
        """The caller is about to change these keys."""
        if self._is_coherent:
            self._own_writes.expect_writes([key for key in keys if key.startswith(self._prefix)])

    def wait_for_invalidations(self) -> None:
        """Return when every change that the caller has seen was told of, so that what is told later came later."""
        follower = self._tracking_client
        if self._is_coherent and follower is not None:
            follower.wait_for_invalidations(self._client.limits.timeout)

    def record_key_state(self, key: bytes, exists: bool) -> None:
        """The caller has changed this key, or seen that it is (or is not) there: the index has it right at once."""
        if not key.startswith(self._prefix):
            return
        self._own_writes.confirm_write(key)
        self._reconciler.apply_write(key, exists)
        self._change_clock.record_changes(self._directory_prefixes(key))
        self._change_clock.record_own_change(key)
        self._wake_verifier()

    def record_save(self, target: KeyRef, mtime_ns: int) -> None:
        """The caller has changed this target, whose file was last written at `moment` (ns since the epoch)."""
        self._change_clock.record_save(target.key, target.field, mtime_ns)

    def mark_dirty(self, key: bytes) -> None:
        """This key may have changed: look at it."""
        if not key.startswith(self._prefix):
            return
        self._change_clock.record_changes((key,))
        self._reconciler.mark_dirty((key,))
        self._wake_verifier()

    def schedule_expiry(self, key: bytes, deadline: float) -> bool:
        """The key will expire at this moment of time.monotonic(): it is then treated as changed.

        False if there is no room to remember it: then what is known of the key should not be trusted for long.
        """
        first = self._expiry_queue.next_deadline()
        kept = self._expiry_queue.add(key, deadline)
        if first is None or deadline < first:
            self._wake_verifier()
        return kept

    def request_rescan(self) -> None:
        """Scan again; until that is done the old index is used. Also tries to follow again where that was given up."""
        with self._lock:
            self._request_scan(index_suspect=True)
            if self._is_polling:
                self._resume_tracking_at = time.monotonic()

    def _directory_prefixes(self, key: bytes) -> list[bytes]:
        """The prefixes of the directories that a key is below."""
        prefixes = [b""]
        for component in key.split(self._separator)[:-1]:
            prefixes.append(prefixes[-1] + component + self._separator)
        return prefixes

    # -- beginning and end -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow and to scan, in threads (so: after the fork)."""
        self._degraded_reason = "connecting"
        self._start_tracking()
        for name, work in (("look", self._verify_loop), ("scan", self._scan_loop)):
            thread = threading.Thread(target=self._run_supervised, args=(work,), name=f"redisfuse-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End the threads; whoever waits gets UnavailableError."""
        with self._lock:
            self._closing = True
            self._is_coherent = False
            self._degraded_reason = "the mount is ending"
            self._state_condition.notify_all()
            self._dirty_condition.notify_all()
        if self._tracking_client is not None:
            self._tracking_client.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(self._client.limits.timeout + 1)

    def _run_supervised(self, loop: Callable[[], None]) -> None:
        """Run a thread's loop, and begin it again should a bug end it: a mount without it would tell lies."""
        while not self._closing:
            try:
                loop()
            except Exception:
                log.exception("a thread that keeps the keyspace failed; everything is read again")
                self._lose_coherence(UnavailableError("keeping the keyspace failed; it is read again"))
                if self._tracking_client is not None:
                    self._tracking_client.disconnect()
                time.sleep(1)

    def _start_tracking(self) -> None:
        self._tracking_client = TrackingClient(
            self._client, self, prefix=self._prefix, heartbeat_interval=self._heartbeat_interval
        )
        self._tracking_client.start()

    # -- what the follower says (follow.Listener) --------------------------------------------------------------------

    def on_connect(self) -> None:
        """From now on every change is told: what was cached without that is dropped, and a scan made."""
        self._reset_state()
        self._listener.reset()
        self._overload_detector.record_connect(time.monotonic())
        with self._lock:
            self._is_coherent = True
            self._is_polling = False
            self._scan_error = None
            self._failing_since = None
            self._request_scan()
        self._listener.state_changed()

    def on_invalidate(self, keys: list[bytes]) -> None:
        """These keys have changed."""
        echoes = self._own_writes.filter_own(keys)
        self._change_clock.record_changes([key for key in keys if key not in echoes] if echoes else keys)
        self._change_clock.record_own_invalidations(echoes)
        self._listener.keys_touched(keys)
        behind = self._reconciler.mark_dirty(keys)
        self._own_writes.record_received(keys)
        self._wake_verifier()
        if self._overload_detector.record_invalidations(len(keys), behind):
            self._suspend_tracking(_OVERLOAD_REASON)

    def on_flush(self, probe: FlushProbe) -> None:
        """Some database was flushed; if it may have been this one, everything is dropped and read again."""
        if not probe.find_survivors(self._reconciler.sample_keys(_FLUSH_PROBE_KEYS)):  # else it was another one
            self._reset_and_rescan()

    def on_swapdb(self) -> None:
        """Two databases were swapped, and nobody says which."""
        self._reset_and_rescan()

    def _reset_and_rescan(self) -> None:
        """Drop everything, while messages go on coming, and scan."""
        self._reset_state()
        self._listener.reset()
        with self._lock:
            self._request_scan()

    def on_heartbeat(self, counts: ServerCounts, invalidated_keys: int) -> None:
        """The server's counts: should keys and index drift apart, the keys are read again."""
        self._may_expire = counts.expiring_count != 0
        if not self._may_expire:
            self._listener.no_key_expires()
        known = self._reconciler
        if not known.is_ready or known.is_scanning or self._prefix or counts.key_count is None:
            return
        indexed = len(known.index)
        if self._drift_detector.check_counts(
            counts.key_count, indexed, invalidated_keys + known.dirty_count, time.monotonic()
        ):
            log.info("the database has %d keys, the index %d: it is read again", counts.key_count, indexed)
            with self._lock:
                self._drift_detected = True
                self._request_scan(index_suspect=True)
            self._listener.reset()

    def on_unsupported(self, reason: str) -> None:
        """There will be no messages: scan by the clock."""
        log.warning("changes by others show after up to %g s: %s", self._rescan_interval, reason)
        with self._lock:
            self._enter_polling(reason)
            self._request_scan()
        self._listener.state_changed()

    def on_disconnect(self, error: RedisFuseError) -> None:
        """The connection was lost: drop everything. Whoever waits goes on waiting for the next attempt."""
        log.warning("following the server was interrupted: %s", error)
        self._lose_coherence(error)
        if self._overload_detector.record_disconnect(time.monotonic()):
            self._suspend_tracking(f"{_OVERLOAD_REASON}, and cuts it off again and again")

    def on_connect_failed(self, error: RedisFuseError) -> None:
        """Connecting failed."""
        with self._lock:
            self._degraded_reason = str(error)
            self._record_scan_error(error)

    # -- states ------------------------------------------------------------------------------------------------------

    def _reset_state(self) -> None:
        """Drop all that is known: anything may have changed."""
        self._change_clock.record_all_changed()
        self._expiry_queue.clear()
        self._reconciler.reset()
        self._drift_detector.reset()
        with self._lock:
            self._state_condition.notify_all()

    def _lose_coherence(self, error: RedisFuseError) -> None:
        """What is known may be wrong, and there are no messages to put it right."""
        with self._lock:
            self._is_coherent = False
            self._degraded_reason = str(error)
        self._reset_state()
        self._listener.reset()

    def _enter_polling(self, reason: str) -> None:
        """From now on, scan by the clock. The lock is held."""
        self._is_coherent = False
        self._is_polling = True
        self._degraded_reason = f"{reason}; the keys are read again every {self._rescan_interval:g} s"

    def _suspend_tracking(self, reason: str) -> None:
        """Stop following for a while. What is known now stays in use, and is trusted for a second only."""
        with self._lock:
            if self._is_polling:
                return
            self._enter_polling(reason)
            self._resume_tracking_at = time.monotonic() + self._overload_detector.start_backoff()
            self._request_scan()
        self._reconciler.clear_dirty()
        self._listener.reset()
        log.warning("%s", self._degraded_reason)
        if self._tracking_client is not None:
            self._tracking_client.close()

    def _record_scan_error(self, error: RedisFuseError) -> None:
        """Tell those who wait of an error; of "not now" only when it lasts. The lock is held."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if isinstance(error, TryAgainError) and now - self._failing_since < self._client.limits.timeout:
            return
        self._scan_error = error
        self._state_condition.notify_all()

    def _request_scan(self, *, index_suspect: bool = False) -> None:
        """Have a scan made. The lock is held."""
        self._scan_requested = True
        self._index_suspect = self._index_suspect or index_suspect
        self._state_condition.notify_all()

    def _wake_verifier(self) -> None:
        with self._lock:
            self._dirty_condition.notify()

    # -- the thread that looks at keys -------------------------------------------------------------------------------

    def _verify_loop(self) -> None:
        while not self._closing:
            self._wait_for_dirty_keys()
            time.sleep(_COALESCE_BUSY_SECONDS if self._reconciler.dirty_count > _BUSY_DIRTY_KEYS else _COALESCE_SECONDS)
            due = self._expiry_queue.pop_expired(time.monotonic() - _EXPIRY_GRACE_SECONDS)
            if due:
                self._change_clock.record_changes(due)
                self._listener.keys_touched(due)
                self._reconciler.mark_dirty(due)
            batch = self._reconciler.next_batch(_MAX_KEYS_PER_VERIFY)
            if batch.keys:
                self._verify_batch(batch)
                now = time.monotonic()
                if self._overload_detector.record_verification(now - batch.dirty_since, now) and self._is_coherent:
                    self._suspend_tracking(_OVERLOAD_REASON)

    def _wait_for_dirty_keys(self) -> None:
        """Wait for keys to look at, or a deadline."""
        with self._lock:
            while not self._closing and not self._reconciler.dirty_count:
                deadline = self._expiry_queue.next_deadline()
                left = None if deadline is None else deadline + _EXPIRY_GRACE_SECONDS - time.monotonic()
                if left is not None and left <= 0:
                    return
                self._dirty_condition.wait(left)

    def _verify_batch(self, batch: VerifyBatch) -> None:
        """Find out whether these keys exist, put the index right, and tell."""
        try:
            found = exists_many(self._client, batch.keys)
        except RedisFuseError as error:
            log.debug("changed keys could not be looked at: %s", error)
            self._reconciler.requeue_batch(batch)
            self._listener.keys_changed(batch.keys)  # for what is cached of them elsewhere it is time all the same
            time.sleep(_MIN_RETRY_DELAY_SECONDS)
            return
        for start in range(0, len(found), _MAX_KEYS_PER_INDEX_UPDATE):
            part = slice(start, start + _MAX_KEYS_PER_INDEX_UPDATE)
            moved = self._reconciler.apply_verified(batch.keys[part], found[part], batch.epoch)
            if moved is None:
                return
            if moved:
                self._change_clock.record_changes({prefix for key in moved for prefix in self._directory_prefixes(key)})
        if None in found:
            with self._lock:
                self._state_condition.notify_all()  # timed scans are needed
        self._spill_if_full()
        self._listener.keys_changed(batch.keys)

    def _spill_if_full(self) -> None:
        """Let an index in use that has outgrown its memory move to disk, in a thread of its own."""
        index = self._reconciler.index
        if index.is_full and (self._spill_thread is None or not self._spill_thread.is_alive()):
            self._spill_thread = threading.Thread(
                target=_spill_index, args=(index,), name="redisfuse-move", daemon=True
            )
            self._spill_thread.start()

    # -- the thread that scans ---------------------------------------------------------------------------------------

    def _scan_loop(self) -> None:
        pause = _MIN_RETRY_DELAY_SECONDS
        while not self._closing:
            if not self._wait_for_scan():
                continue
            try:
                self._scan_once()
                pause = _MIN_RETRY_DELAY_SECONDS
            except ScanSupersededError:
                pass
            except RedisFuseError as error:
                log.warning("reading the keys failed: %s", error)
                self._handle_scan_failure(error)
                with self._lock:
                    if not self._closing and not self._scan_requested:
                        self._state_condition.wait(
                            _DENIED_RETRY_DELAY_SECONDS if isinstance(error, AccessError) else pause
                        )
                    self._request_scan()
                pause = min(2 * pause, _MAX_RETRY_DELAY_SECONDS)

    def _wait_for_scan(self) -> bool:
        """Wait until something is to be done; True if that is a scan."""
        with self._lock:
            now = time.monotonic()
            resume_at = self._resume_tracking_at if self._is_polling else None
            if resume_at is None or now < resume_at:
                moments = [] if resume_at is None else [resume_at]
                if self._is_coherent or self._is_polling:
                    if self._scan_requested or not self._reconciler.is_ready:
                        self._scan_requested = False
                        return not self._closing
                    if self._is_polling or self._reconciler.has_unverifiable_keys:
                        if now >= self._next_scan_at:
                            return not self._closing
                        moments.append(self._next_scan_at)
                if not self._closing:
                    self._state_condition.wait(min(moments) - now if moments else None)
                return False
            self._resume_tracking_at = None
        self._start_tracking()
        return False

    def _scan_once(self) -> None:
        """One scan into a new index, which then takes the old one's place."""
        began = time.monotonic()
        known = self._reconciler
        with self._lock:
            doubtful, self._index_suspect = self._index_suspect, False
            by_size, self._drift_detected = self._drift_detected, False
        self._scan_progress = (0, 0)
        scanning = known.begin_scan()
        walked = 0
        try:
            for keys in scan_keys(
                self._client,
                prefix=self._prefix,
                before_scan=known.register_scan_command,
                on_total=self._set_scan_total,
            ):
                if self._closing:
                    raise ScanSupersededError
                known.add_scanned(scanning, keys)
                # With a prefix fewer keys come than were walked over.
                walked += max(len(keys), self._client.limits.scan_count if self._prefix else 0)
                total = self._scan_progress[1]
                self._scan_progress = (min(walked, total) if total else walked, total)
            old = known.finish_scan(scanning)
        finally:
            known.abandon_scan(scanning)
        self._drift_detector.reset()
        now = time.monotonic()
        with self._lock:
            self._scan_error = None
            self._failing_since = None
            self._next_scan_at = now + max(self._rescan_interval, _SCAN_INTERVAL_FACTOR * (now - began))
            self._state_condition.notify_all()
        self._listener.state_changed()
        if old is not None:
            self._report_differences(old, scanning.index, index_suspect=doubtful, drift_detected=by_size)

    def _set_scan_total(self, total: int) -> None:
        self._scan_progress = (0, total)

    def _report_differences(self, old: Index, new: Index, *, index_suspect: bool, drift_detected: bool) -> None:
        """Tell what a scan found to be other than what was known."""
        differences = old.symmetric_difference(new, _MAX_REPORTED_DIFFERENCES)
        if drift_detected:
            self._drift_detector.record_scan(differences != set(), time.monotonic())
        if index_suspect and differences != set():
            self._change_clock.record_all_changed()
        if differences:
            self._change_clock.record_changes(
                differences | {prefix for key in differences for prefix in self._directory_prefixes(key)}
            )
            self._listener.keys_touched(differences)
            self._listener.keys_changed(differences)
        if index_suspect or differences is None:
            self._listener.reset()

    def _handle_scan_failure(self, error: RedisFuseError) -> None:
        with self._lock:
            self._record_scan_error(error)
            timed = self._is_polling
            if timed:
                self._resume_tracking_at = time.monotonic() + self._rescan_interval
        if timed and self._reconciler.is_ready and isinstance(error, UnavailableError):
            # Nobody else notices that the server is gone.
            self._reset_state()
            self._listener.reset()


def _spill_index(index: Index) -> None:
    """Move an index to disk."""
    try:
        index.spill_to_disk()
    except RedisFuseError as error:
        log.error("the index has outgrown --index-memory and stays in memory: %s", error)
