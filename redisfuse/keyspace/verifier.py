"""Verifies keys that may have changed.

Looks up whether they exist and corrects the index.
"""

from __future__ import annotations

import logging
import threading
import time

from redisfuse.client.client import RedisClient
from redisfuse.errors import RedisFuseError, UnavailableError
from redisfuse.keyspace.change_times import ChangeClock, directory_prefixes
from redisfuse.keyspace.exists import exists_each
from redisfuse.keyspace.expiry_queue import ExpiryQueue
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.listener import ChangeListener
from redisfuse.keyspace.monitor_state import KeyspaceState
from redisfuse.keyspace.reconciler import IndexReconciler, VerifyBatch

log = logging.getLogger(__name__)

_COALESCE_SECONDS = 0.02  # how long changed keys are collected before they are looked up
_COALESCE_BUSY_SECONDS = 0.1  # the same, while there are more than `_BUSY_DIRTY_KEYS`
_BUSY_DIRTY_KEYS = 2_000
_MAX_KEYS_PER_BATCH = 50_000  # keys that are looked up at a time
_MAX_KEYS_PER_INDEX_UPDATE = 1_000  # keys that are added to the index under one hold of its lock
_EXPIRY_GRACE_SECONDS = 0.01  # how long after its deadline a key is looked up, so that the server has expired it, too
_RETRY_DELAY_SECONDS = 0.25  # after a failed look-up


class KeyVerifier:
    """The work of the verifying thread; `verify_next` is called by that thread only.

    Lock order: `_condition` before `ExpiryQueue._lock`.
    """

    def __init__(
        self,
        client: RedisClient,
        state: KeyspaceState,
        reconciler: IndexReconciler,
        change_clock: ChangeClock,
        listener: ChangeListener,
        separator: bytes,
    ) -> None:
        self._client = client
        self._state = state
        self._reconciler = reconciler
        self._change_clock = change_clock
        self._listener = listener
        self._separator = separator
        self._expiry_queue = ExpiryQueue()
        self._condition = threading.Condition()  # notified when there may be keys to look up
        self._spill_thread: threading.Thread | None = None

    def wake(self) -> None:
        """Wake the verifying thread.

        There are dirty keys, an earlier deadline, or the mount is ending.
        """
        with self._condition:
            self._condition.notify()

    def schedule_expiry(self, key: bytes, deadline: float) -> bool:
        """Look the key up at `deadline` (time.monotonic()).

        Returns False if the queue is full.
        """
        next_deadline = self._expiry_queue.next_deadline()
        is_queued = self._expiry_queue.add(key, deadline)
        if next_deadline is None or deadline < next_deadline:
            self.wake()
        return is_queued

    def clear_expiries(self) -> None:
        """Forget all deadlines."""
        self._expiry_queue.clear()

    def verify_next(self) -> float | None:
        """Wait for dirty keys, and verify a batch of them.

        Returns how many seconds ago the first of them became dirty; None if there were none.
        """
        self._wait_for_dirty_keys()
        time.sleep(_COALESCE_BUSY_SECONDS if self._reconciler.dirty_count > _BUSY_DIRTY_KEYS else _COALESCE_SECONDS)
        expired = self._expiry_queue.pop_expired(time.monotonic() - _EXPIRY_GRACE_SECONDS)
        if expired:
            self._listener.keys_touched(expired)
            self._change_clock.record_changes(expired)
            self._reconciler.mark_dirty(expired)
        batch = self._reconciler.next_batch(_MAX_KEYS_PER_BATCH)
        if not batch.keys:
            return None
        self._verify_batch(batch)
        return time.monotonic() - batch.dirty_since

    def _wait_for_dirty_keys(self) -> None:
        """Wait for dirty keys or a deadline."""
        with self._condition:
            while not self._state.is_closing and not self._reconciler.dirty_count:
                deadline = self._expiry_queue.next_deadline()
                remaining = None if deadline is None else deadline + _EXPIRY_GRACE_SECONDS - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return
                # A key may expire later than Python can wait.
                self._condition.wait(None if remaining is None else min(remaining, threading.TIMEOUT_MAX))

    def _verify_batch(self, batch: VerifyBatch) -> None:
        try:
            existence, failed = self._look_up(batch)
        except RedisFuseError as error:
            log.debug("looking up changed keys failed: %s", error)
            self._reconciler.requeue_batch(batch)
            self._listener.keys_changed(batch.keys)  # caches must not wait for the index
            time.sleep(_RETRY_DELAY_SECONDS)
            return
        keys, replies = list(existence), list(existence.values())
        for start in range(0, len(keys), _MAX_KEYS_PER_INDEX_UPDATE):
            part = slice(start, start + _MAX_KEYS_PER_INDEX_UPDATE)
            moved = self._reconciler.apply_verified(keys[part], replies[part], batch.epoch)
            if moved is None:
                self._reconciler.requeue_batch(batch)
                return
            if moved:
                self._change_clock.record_changes(directory_prefixes(moved, self._separator))
        if None in replies:
            self._state.notify()  # only a periodic scan finds changes of unverifiable keys
        self._spill_if_full()
        self._listener.keys_changed(batch.keys)
        if failed:
            log.debug("looking up %d changed keys failed", len(failed))
            self._reconciler.mark_dirty(failed)
            time.sleep(_RETRY_DELAY_SECONDS)

    def _look_up(self, batch: VerifyBatch) -> tuple[dict[bytes, bool | None], list[bytes]]:
        """Return which keys of a batch exist; None: the ACL denies the answer.

        Also returns the keys of a cluster whose nodes can't answer. Raises UnavailableError.
        """
        replies = exists_each(self._client, batch.keys)
        existence = {
            key: reply
            for key, reply in zip(batch.keys, replies, strict=True)
            if not isinstance(reply, UnavailableError)
        }
        failed = [key for key in batch.keys if key not in existence] if len(existence) < len(batch.keys) else []
        return existence, failed

    def _spill_if_full(self) -> None:
        """Move an index that has outgrown its memory to disk, in a thread of its own."""
        index = self._reconciler.index
        if index.is_full and (self._spill_thread is None or not self._spill_thread.is_alive()):
            self._spill_thread = threading.Thread(
                target=_spill_index, args=(index,), name="redisfuse-move", daemon=True
            )
            self._spill_thread.start()


def _spill_index(index: Index) -> None:
    try:
        index.spill_to_disk()
    except RedisFuseError as error:
        log.error("the index has outgrown --index-memory and stays in memory: %s", error)
