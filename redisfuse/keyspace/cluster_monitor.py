"""The keys of a cluster, and when they change.

As monitor.py, with a follower and a scanner for each primary, and one index. What a cluster adds:

- The owners of the slots are polled (`redisfuse-slots`), since nothing announces a change of them. Each primary that
  owns slots is a shard: it is followed before it is scanned, and scanned again when a new follower begins.
- Any node may announce a key that another one owns, while slots move. The key is verified at the slot's owner.
- When a shard gets slots from another one, all indexed keys of these slots are verified: a slot can change its owner
  without its keys, which the former owner then deletes without a message.
- Listings wait until all shards are ready, or say why one isn't.
- With `--replicas`, each shard is a replica of a primary, and the map names it as the owner of the primary's slots.

The shards are created and closed by `redisfuse-slots`, which calls the listener, as the other threads do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from redisfuse.client.client import RedisClient
from redisfuse.client.cluster_client import ClusterClient
from redisfuse.client.replication import MasterLink
from redisfuse.client.slot_map import EMPTY_MAP, SLOT_COUNT, SlotMap
from redisfuse.errors import TryAgainError, UnavailableError
from redisfuse.keyspace.cluster_reconciler import ClusterReconciler
from redisfuse.keyspace.index_backend import KeyLayout
from redisfuse.keyspace.listener import ChangeListener
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.keyspace.monitor_state import KeyspaceState
from redisfuse.keyspace.reconciler import IndexReconciler
from redisfuse.keyspace.shard_monitor import ShardMonitor

log = logging.getLogger(__name__)

POLL_INTERVAL_SECONDS = 0.5
"""Between two queries of the owners of the slots."""


def create_monitor(client: RedisClient, **options: Any) -> KeyspaceMonitor:
    """Create the monitor of a server or cluster.

    The options are those of `KeyspaceMonitor`.
    """
    return (
        ClusterMonitor(client, **options) if isinstance(client, ClusterClient) else KeyspaceMonitor(client, **options)
    )


_MAX_DESCRIBED_SHARDS = 100  # the status of a mount has at most 64 KiB


class ClusterMonitor(KeyspaceMonitor):
    """The keys of a cluster, or those of them that begin with a prefix."""

    _client: ClusterClient
    _reconciler: ClusterReconciler

    def _create_reconciler(self, layout: KeyLayout, index_memory: int) -> IndexReconciler:
        return ClusterReconciler(layout, max_memory_bytes=index_memory)

    def _create_state(self) -> KeyspaceState:
        return ClusterState(self)

    def _create_shards(self) -> None:
        self._slot_map = EMPTY_MAP
        self.unserved_since: float | None = None  # since when a slot has no node; a hint without a lock
        self._shards_by_id: dict[str, ShardMonitor] = {}
        self._shard_listener = _ShardListener(self, self._listener)
        self._reconciler.verifier = self._verifier
        self._transit = self._client.topology.transit
        self._reconciler.transit = self._transit
        if self._transit is not None:
            self._transit.listed = self._reconciler.index

    @property
    def unserved_slots(self) -> int:
        """The number of slots that no node serves."""
        return self._slot_map.unserved_slots

    def describe_shards(self) -> list[dict[str, object]]:
        """Return the state of each shard, as plain values."""
        owners = self._slot_map.owners
        return [
            {
                "node": shard.client.address.endpoint,
                "slots": owners.count(id),
                "live": shard.state.is_coherent,
                "ready": shard.state.is_index_current,
                "reason": shard.state.degraded_reason,
                "scanned": shard.builder.progress[0],
                "master_link": None if shard.follower.master_link is None else asdict(shard.follower.master_link),
                "lag_seconds": None if shard.client.lag_guard is None else shard.client.lag_guard.lag_seconds,
            }
            for id, shard in list(self._shards_by_id.items())[:_MAX_DESCRIBED_SHARDS]
        ]

    @property
    def master_link(self) -> MasterLink | None:
        """None: each shard has its own."""
        return None

    @property
    def timeout(self) -> float:
        """How long slots may have no node before listings fail, in seconds."""
        return self._client.limits.timeout

    @property
    def server_kind(self) -> str:
        """The name of a node that is read, for messages."""
        return "replica" if self._client.reads_replicas else "node"

    def start(self) -> None:
        """Start the threads; call this after the fork."""
        super().start()
        self._update_shards(self._client.slot_map)
        self._start_thread("slots", self._watch_slots)

    def close(self) -> None:
        """End the threads; callers that wait get UnavailableError."""
        self._reconciler.close()
        self._client.topology.changed.set()
        super().close()

    # -- the thread that watches the slots ----------------------------------------------------------------------------

    def _watch_slots(self) -> None:
        topology = self._client.topology
        while not self._state.is_closing:
            topology.changed.wait(POLL_INTERVAL_SECONDS)
            topology.changed.clear()
            if self._state.is_closing:
                return
            if self.is_paused:
                continue
            topology.refresh()
            self._update_shards(self._client.slot_map)
            if self._transit is not None:
                self._mark_dirty(self._transit.take_expired())

    def _resume(self) -> None:
        super()._resume()
        self._client.topology.changed.set()  # the owners of slots may have changed during the pause

    def _update_shards(self, after: SlotMap) -> None:
        """Follow a change of the slots' owners."""
        before = self._slot_map
        if before.owners == after.owners and before.primaries == after.primaries:
            return
        replaced = {
            id: shard for id, shard in self._shards_by_id.items() if after.primaries.get(id) != before.primaries[id]
        }
        for id in replaced:
            del self._shards_by_id[id]
        kept = set(self._shards_by_id)
        if replaced:  # a shard whose endpoint has changed is a new one
            self._reconciler.set_shards({id: after.slots_of(id) for id in kept}, is_served=False)
        slots_by_shard = {id: after.slots_of(id) for id in after.primaries}
        reconcilers = self._reconciler.set_shards(slots_by_shard, is_served=not after.unserved_slots)
        self._slot_map = after
        self.unserved_since = (self.unserved_since or time.monotonic()) if after.unserved_slots else None
        started = []
        for id, node in after.primaries.items():
            if id not in kept:
                reconciler = reconcilers[id]
                state = self._create_shard_state(reconciler)
                client = self._client.topology.client_of(node)
                self._shards_by_id[id] = self._create_shard(client, state, reconciler, self._shard_listener)
                started.append(self._shards_by_id[id])
        self.shards = tuple(self._shards_by_id.values())
        self._state.notify()
        if started or replaced:
            self._listener.all_touched()
            self._change_clock.record_all_changed()
            self._listener.reset()
        for shard in started:
            shard.start()
        for shard in replaced.values():
            shard.close()
        self._verify_moved_slots(before, after, kept)

    def _verify_moved_slots(self, before: SlotMap, after: SlotMap, kept: Collection[str]) -> None:
        """Verify the keys of slots that a shard has got that is not scanned again."""
        moved = bytes([old != new and new in kept for old, new in zip(before.owners, after.owners, strict=True)])
        if moved != bytes(SLOT_COUNT):
            self._reconciler.mark_slots_dirty(moved)
        if self._transit is not None:
            keys, is_incomplete = self._transit.take_moved(moved)
            self._mark_dirty(keys)
            if is_incomplete:
                self._state.request_rescan()

    def _mark_dirty(self, keys: Sequence[bytes]) -> None:
        if keys:
            self._reconciler.mark_dirty(keys)
            self._verifier.wake()


class ClusterState:
    """The states of all shards as one. Implements KeyspaceState."""

    def __init__(self, monitor: ClusterMonitor) -> None:
        self._monitor = monitor
        self._condition = threading.Condition()  # notified when the shards have changed
        self.is_closing = False

    @property
    def is_coherent(self) -> bool:
        """Whether every shard announces every change."""
        shards = self._monitor.shards
        return bool(shards) and all(shard.state.is_coherent for shard in shards)

    @property
    def is_index_current(self) -> bool:
        """Whether the index has the keys of all shards, and follows them."""
        return self._monitor.is_ready and all(shard.state.is_index_current for shard in self._monitor.shards)

    @property
    def degraded_reason(self) -> str:
        """Why the keyspace is not coherent, for each shard; empty if it is."""
        if self.is_closing:
            return "the mount is ending"
        reasons = [
            f"{shard.client.address.endpoint}: {shard.state.degraded_reason}"
            for shard in self._monitor.shards
            if not shard.state.is_coherent
        ]
        return "; ".join(reasons) if self._monitor.shards else "connecting"

    def record_verified_batch(self) -> None:
        """Note that the verifying thread has finished a batch, or found no dirty keys."""
        for shard in self._monitor.shards:
            shard.state.record_verified_batch()

    def notify(self) -> None:
        """Wake all waiting threads."""
        for shard in self._monitor.shards:
            shard.state.notify()
        with self._condition:
            self._condition.notify_all()

    def request_rescan(self) -> None:
        """Scan all shards again."""
        for shard in self._monitor.shards:
            shard.state.request_rescan()

    def wait_until_ready(self, timeout: float | None) -> None:
        """Wait until the index is current, up to `timeout` seconds.

        Raises the error that prevents it of any shard, or TryAgainError after `timeout`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_index_current:
            if self.is_closing:
                raise UnavailableError("the mount is ending")
            shards = self._monitor.shards
            for shard in shards:
                remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
                try:
                    shard.state.wait_until_ready(remaining)
                except UnavailableError:
                    if shard in self._monitor.shards or self.is_closing:
                        raise
                    break  # the shard has been replaced
            else:
                self._wait_for_slots(deadline)

    def _wait_for_slots(self, deadline: float | None) -> None:
        """Wait for the owners of all slots, for which no shard waits.

        Raises TryAgainError at the deadline, or if a slot has had no node for longer than the time-out.
        """
        with self._condition:
            now, since = time.monotonic(), self._monitor.unserved_since
            is_unserved = since is not None and now - since >= self._monitor.timeout
            if (is_unserved or (deadline is not None and now >= deadline)) and not self.is_index_current:
                count = self._monitor.unserved_slots
                reason = (
                    f"no {self._monitor.server_kind} serves {count} of {SLOT_COUNT} slots"
                    if count
                    else "the keys are still being read"
                )
                raise TryAgainError(f"{reason}; try again later")
            self._condition.wait(0.05)

    def close(self) -> None:
        """End all waits."""
        self.is_closing = True
        self.notify()


class _ShardListener:
    """Passes on the announcements of one shard.

    That no key expires is passed on when it is so in all shards.
    """

    def __init__(self, monitor: ClusterMonitor, listener: ChangeListener) -> None:
        self._monitor = monitor
        self._listener = listener

    def keys_touched(self, keys: Collection[bytes]) -> None:
        """Pass on a change."""
        self._listener.keys_touched(keys)

    def keys_changed(self, keys: Collection[bytes]) -> None:
        """Pass on a change that the index follows."""
        self._listener.keys_changed(keys)

    def all_touched(self) -> None:
        """Drop everything cached: it does not show of which shard it is."""
        self._listener.all_touched()

    def reset(self) -> None:
        """Pass on that anything may have changed."""
        self._listener.reset()

    def state_changed(self) -> None:
        """Pass on a change of the state."""
        self._listener.state_changed()

    def no_key_expires(self) -> None:
        """Pass on that no key expires, if that is so in all shards."""
        if not self._monitor.may_expire:
            self._listener.no_key_expires()
