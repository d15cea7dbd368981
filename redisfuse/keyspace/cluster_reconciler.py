"""One index for all shards of a cluster.

Unlike the index of a standalone server, it is never replaced: each shard is scanned on its own, while the index
keeps the keys of the others. The rules:

- A scanned key counts only if the shard owns its slot. Any other one is verified at the slot's owner.
- After a scan, the keys of the shard that it did not return are verified, before the shard is ready.
- While a shard is ready, a scan finds differences only, which are verified.
- When the owners of slots change, verifications that began before are repeated.
- Where replicas are read, the keys that another node than their slot's owner names are remembered (key_transit.py).

State only: no thread, no connection. Thread-safe, as reconciler.py; the lock is that of `IndexReconciler`.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain

from more_itertools import chunked

from redisfuse.client.key_transit import KeyTransit
from redisfuse.client.slot_map import SLOT_COUNT, key_slot, select_keys
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.index_backend import KeyLayout
from redisfuse.keyspace.reconciler import IndexReconciler, IndexScan, ScanSupersededError, VerifyBatch
from redisfuse.keyspace.verifier import KeyVerifier

_MAX_AWAITED_KEYS = 100_000  # keys that a scan did not return, and that are verified at a time
_KEYS_PER_STEP = 5_000  # keys of the index that are compared with a scan at a time


class ShardReconciler:
    """The part of the index that one shard owns. Implements ShardIndex."""

    def __init__(self, parent: ClusterReconciler, id: str, *, is_fresh: bool) -> None:
        """Create a view of a node's shard.

        `is_fresh`: the index can't have keys of this shard yet.
        """
        self._parent = parent
        self._id = id
        self._lock = parent.lock
        self.slots = bytes(SLOT_COUNT)  # 1 for each slot that the shard owns; replaced, never changed
        self.is_ready = False
        self.is_scanning = False
        self.has_unverifiable_keys = False
        self.awaited: set[bytes] = set()  # keys to verify before the shard is ready
        self.verified: set[bytes] = set()  # verified since the last SCAN was sent
        self._previously_verified: set[bytes] = set()  # verified between the last SCAN and the one before it
        self._seen: Index | None = None  # the keys that the scan has returned; None: none can be missing
        self._is_fresh = is_fresh
        self._epoch = 0

    @property
    def index(self) -> Index:
        """The index of the whole cluster."""
        return self._parent.index

    @property
    def dirty_count(self) -> int:
        """The number of keys to verify, in all shards."""
        return self._parent.dirty_count

    def count_keys(self) -> int | None:
        """Return None: the index does not count by shard."""
        return None

    def owns(self, key: bytes) -> bool:
        """Return whether the shard owns the slot of a key."""
        return bool(self.slots[key_slot(key)])

    def reset(self) -> None:
        """Have all keys of this shard scanned and verified again."""
        with self._lock:
            self._epoch += 1
            self.is_ready = self.is_scanning = False
            self.awaited.clear()
            self._parent.update_ready()

    def clear_dirty(self) -> None:
        """Keep the dirty keys, which may be of other shards."""

    def mark_dirty(self, keys: Iterable[bytes]) -> int:
        """Have announced keys verified; return how many keys are dirty now."""
        transit = self._parent.transit
        if transit is not None:
            keys = list(keys)
            own = select_keys(keys, self.slots)
            if len(own) < len(keys):
                keys += transit.record_announced([key for key in keys if not self.owns(key)], self._id)
        return self._parent.mark_dirty(keys)

    def sample_keys(self, count: int) -> list[bytes]:
        """Return some keys that should exist on this shard."""
        return [key for key in self._parent.sample_keys(16 * count) if self.owns(key)][:count]

    # -- scans --------------------------------------------------------------------------------------------------------

    def begin_scan(self) -> IndexScan:
        """Begin a scan, which adds to the index in use."""
        with self._lock:
            self.is_scanning = True
            self.has_unverifiable_keys = False
            self.verified, self._previously_verified = set(), set()
            self._seen = None if self._is_fresh else self._parent.create_index()
            self._is_fresh = False
            return IndexScan(self._parent.index, self._epoch)

    def register_scan_command(self) -> None:
        """Note that a SCAN is about to be sent."""
        with self._lock:
            self._previously_verified, self.verified = self.verified, set()

    def add_scanned(self, scan: IndexScan, keys: list[bytes]) -> None:
        """Add the reply to the last SCAN but one.

        Raises ScanSupersededError, NoSpaceError.
        """
        slots = self.slots
        own = select_keys(keys, slots)
        foreign = [key for key in keys if not slots[key_slot(key)]] if len(own) < len(keys) else []
        if foreign and self._parent.transit is not None:
            self._parent.transit.record_scanned(foreign, self._id)
        with self._lock:
            if scan.epoch != self._epoch:
                raise ScanSupersededError
            newer: Collection[bytes] = self.verified | self._previously_verified
            added = [key for key in own if key not in newer] if newer else own
            if self.is_ready:
                foreign += scan.index.find_missing(added)
            else:
                scan.index.add_many(added)
        if foreign:
            self._parent.verify_soon(foreign)
        if self._seen is not None:
            self._seen.add_many(own)
            if self._seen.is_full:
                self._seen.spill_to_disk()
        if scan.index.is_full:
            scan.index.spill_to_disk()

    def finish_scan(self, scan: IndexScan) -> Index | None:
        """Verify the keys that the scan did not return; then the shard is ready.

        Blocks until then. Returns None: no index is replaced. Raises ScanSupersededError.
        """
        unseen = () if self._seen is None else self._find_unseen(scan.index, self._seen)
        for keys in chunked(unseen, _MAX_AWAITED_KEYS):
            with self._lock:
                self._require_current(scan)
                if not self.is_ready:
                    self.awaited.update(keys)
            self._parent.verify_soon(keys)
            with self._lock:
                while self.awaited:
                    self._parent.verified_condition.wait()
                    self._require_current(scan)
        with self._lock:
            self._require_current(scan)
            self.is_ready = True
            self._parent.update_ready()
        return None

    def _find_unseen(self, index: Index, seen: Index) -> Iterable[bytes]:
        keys = chain(index.iter_keys_below(()), index.iter_long_keys())
        for step in chunked(keys, _KEYS_PER_STEP):
            yield from seen.find_missing(select_keys(step, self.slots))

    def _require_current(self, scan: IndexScan) -> None:
        if scan.epoch != self._epoch or self._parent.is_closed:
            raise ScanSupersededError

    def abandon_scan(self, scan: IndexScan) -> None:
        """End a scan that has failed or finished."""
        with self._lock:
            if scan.epoch == self._epoch:
                self.is_scanning = False
                self.awaited.clear()
                self._seen = None


class ClusterReconciler(IndexReconciler):
    """The index in use, the dirty keys, and the shards."""

    def __init__(self, layout: KeyLayout, *, max_memory_bytes: int) -> None:
        super().__init__(layout, max_memory_bytes=max_memory_bytes)
        self.lock = self._lock
        self.transit: KeyTransit | None = None  # set where replicas are read
        self.verifier: KeyVerifier | None = None  # set before the threads start
        self.verified_condition = threading.Condition(self._lock)  # notified when `awaited` or an epoch has changed
        self.is_closed = False
        self._shards: dict[str, ShardReconciler] = {}
        self._has_shards = False  # whether any were set
        self._is_served = False  # whether all slots have an owner

    def create_index(self) -> Index:
        """Return a new, empty index."""
        return self._create_index()

    @property
    def is_scanning(self) -> bool:
        """Whether a shard is being scanned."""
        return any(shard.is_scanning for shard in list(self._shards.values()))

    def set_shards(self, slots_by_shard: Mapping[str, bytes], *, is_served: bool) -> dict[str, ShardReconciler]:
        """Set which slots each shard owns; return all shards.

        `is_served`: whether all slots have an owner. A shard that is left out is forgotten.
        """
        with self._lock:
            self._epoch += 1
            is_first, self._has_shards = not self._has_shards, True
            for id in [id for id in self._shards if id not in slots_by_shard]:
                self._shards.pop(id)._epoch += 1
            for id, slots in slots_by_shard.items():
                if id not in self._shards:  # of the first shards, the index has no keys yet
                    self._shards[id] = ShardReconciler(self, id, is_fresh=is_first)
                self._shards[id].slots = slots
            self._is_served = is_served
            self.update_ready()
            return dict(self._shards)

    def update_ready(self) -> None:
        """Set `is_ready`, and wake all waiting threads. The lock is held."""
        shards = self._shards.values()
        self.is_ready = self._is_served and bool(shards) and all(shard.is_ready for shard in shards)
        self.verified_condition.notify_all()

    def close(self) -> None:
        """End all waits."""
        with self._lock:
            self.is_closed = True
            self.verified_condition.notify_all()

    def mark_slots_dirty(self, slots: bytes) -> None:
        """Have all indexed keys of these slots verified; a byte for each slot says which."""
        keys = chain(self.index.iter_keys_below(()), self.index.iter_long_keys())
        for step in chunked(keys, _KEYS_PER_STEP):
            moved = select_keys(step, slots)
            if moved:
                self.verify_soon(moved)

    def verify_soon(self, keys: Collection[bytes]) -> None:
        """Mark keys as dirty, and wake the verifying thread."""
        self.mark_dirty(keys)
        if self.verifier is not None:
            self.verifier.wake()

    def requeue_batch(self, batch: VerifyBatch) -> None:
        """Have the keys of a batch verified again.

        Also if the owners of slots have changed.
        """
        self.mark_dirty(batch.keys)

    # -- IndexReconciler ----------------------------------------------------------------------------------------------

    def _active_indexes(self) -> list[Index]:
        return [self.index]

    def _record_verified(self, keys: Collection[bytes]) -> None:
        for shard in self._shards.values():
            if shard.is_scanning:
                shard.verified.update(keys)

    def apply_verified(self, keys: Sequence[bytes], existence: Sequence[bool | None], epoch: int) -> set[bytes] | None:
        """Update the index as `IndexReconciler.apply_verified`.

        Returns None if the owners of slots have changed since the verification began.
        """
        moved = super().apply_verified(keys, existence, epoch)
        if moved is None:
            return None
        with self._lock:
            for shard in self._shards.values():
                if shard.awaited:
                    shard.awaited.difference_update(keys)
                    if not shard.awaited:
                        self.verified_condition.notify_all()
            if None in existence:
                self._record_unverifiable(keys, existence)
        return moved

    def _record_unverifiable(self, keys: Sequence[bytes], existence: Sequence[bool | None]) -> None:
        denied = [key for key, exists in zip(keys, existence, strict=True) if exists is None]
        for shard in self._shards.values():
            shard.has_unverifiable_keys = shard.has_unverifiable_keys or any(map(shard.owns, denied))
