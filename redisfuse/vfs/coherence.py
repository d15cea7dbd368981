"""The one fan-out of changes: caches of this process, the index, the kernel.

Three sources announce changes: the keyspace monitor (those of other clients), the transactions (those of this mount)
and the journal (empty directories). The order is fixed, so that no step can cache again a state that a later one drops:

1. `keys_touched` drops the metadata and the cached listings of the keys;
2. the index is corrected (by the monitor, which has verified the keys; after a write of this mount, by `keys_written`);
3. the kernel's cached names and attributes are invalidated.

The kernel may cache for `COHERENT_SECONDS` while the monitor is coherent, its index is ready and the kernel accepts
invalidations, otherwise for `INCOHERENT_SECONDS`.

Threads: any. This module has no lock. Each receiver takes its own, one at a time, and calls nothing back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from redisfuse.client.client import RedisClient
from redisfuse.errors import RedisFuseError
from redisfuse.keyspace.exists import exists_many
from redisfuse.keyspace.metadata import MetadataStore
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.paths.grammar import KeyRef, PathCodec
from redisfuse.vfs.content import ContentLoader
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.kernel_cache import KernelCache
from redisfuse.vfs.readdir_cache import ReaddirCache

COHERENT_SECONDS = 3600.0
"""How long the kernel may cache while it is notified of every change."""

INCOHERENT_SECONDS = 1.0
"""How long everything is valid while changes are not announced."""


class Coherence:
    """Announces each change to all caches.

    Implements `ChangeListener`, `Freshness` and `WriteListener`.
    """

    def __init__(self, client: RedisClient, path_codec: PathCodec, kernel_cache: KernelCache) -> None:
        self._client = client
        self._path_codec = path_codec
        self.kernel_cache = kernel_cache
        self.valid_seconds = INCOHERENT_SECONDS  # how long the kernel may cache names and attributes
        self.absent_seconds = 0.0  # how long it may cache absent names
        self._monitor: KeyspaceMonitor
        self._metadata: MetadataStore
        self._content_loader: ContentLoader
        self._dentry_tracker: DentryTracker
        self._readdir_cache: ReaddirCache[Any]

    def connect(
        self,
        *,
        monitor: KeyspaceMonitor,
        metadata: MetadataStore,
        content_loader: ContentLoader,
        dentry_tracker: DentryTracker,
        readdir_cache: ReaddirCache[Any],
    ) -> None:
        """Set the receivers. Called once, before any of them is started."""
        self._monitor = monitor
        self._metadata = metadata
        self._content_loader = content_loader
        self._dentry_tracker = dentry_tracker
        self._readdir_cache = readdir_cache

    # -- Freshness ---------------------------------------------------------------------------------------------------

    @property
    def is_coherent(self) -> bool:
        """Whether every change reaches the kernel's cache."""
        return self._monitor.is_coherent and self._monitor.is_ready and self.kernel_cache.is_supported

    def max_age(self) -> float:
        """Return the seconds for which caches of this process are valid."""
        return math.inf if self._monitor.is_coherent else INCOHERENT_SECONDS

    def may_expire(self) -> bool:
        """Return whether any key of the database may have a time to live."""
        return self._monitor.may_expire

    def expires_at(self, key: bytes, deadline: float) -> None:
        """Schedule the expiry of a key.

        Where the queue is full, treat the key as changed now.
        """
        if not self._monitor.schedule_expiry(key, deadline):
            self.keys_changed([key])

    # -- ChangeListener: changes by other clients --------------------------------------------------------------------

    def keys_touched(self, keys: Collection[bytes]) -> None:
        """Drop the caches of this process for these keys."""
        self._metadata.invalidate(keys)
        self._readdir_cache.invalidate_keys(keys)

    def keys_changed(self, keys: Collection[bytes]) -> None:
        """Drop the caches of this process and the kernel for these keys.

        The index is correct already.
        """
        self.keys_touched(keys)
        self._dentry_tracker.invalidate_keys(keys)

    def all_touched(self) -> None:
        """Drop the caches of this process."""
        self._metadata.invalidate_all()
        self._content_loader.clear_renderings()
        self._readdir_cache.invalidate_all()

    def reset(self) -> None:
        """Drop everything: anything may have changed."""
        self.all_touched()
        self.state_changed()

    def state_changed(self) -> None:
        """Set the kernel's time-outs for the current state.

        Listings and names cached under the previous state are invalidated.
        """
        if self.is_coherent:
            self.valid_seconds = self.absent_seconds = COHERENT_SECONDS
        else:
            self.valid_seconds, self.absent_seconds = INCOHERENT_SECONDS, 0.0
        if self._monitor.is_paused:
            return  # the request that ends the pause waits for this: nothing was cached since the pause began
        self._readdir_cache.invalidate_all()
        self._dentry_tracker.invalidate_all()

    def no_key_expires(self) -> None:
        """Stop querying the TTLs of recently changed keys."""
        self._metadata.clear_recent_changes()

    # -- WriteListener: changes by this mount ------------------------------------------------------------------------

    def keys_will_change(self, keys: Collection[bytes]) -> None:
        """Let the monitor recognise the messages about our own writes."""
        self._monitor.announce_writes(keys)

    def keys_written(self, keys: Mapping[bytes, bool | None]) -> None:
        """Announce our own write: caches, index, kernel.

        The values are whether the keys exist now; None if that must be looked up.
        """
        self._metadata.invalidate(keys)
        uncertain = [key for key, exists in keys.items() if exists is None]
        if uncertain:
            keys = {**keys, **dict(zip(uncertain, self._look_up_existence(uncertain), strict=True))}
        for key, exists in keys.items():
            if exists is None:
                self._monitor.mark_dirty(key)
            else:
                self._monitor.record_key_state(key, exists)
        self._dentry_tracker.invalidate_keys(keys)

    def _look_up_existence(self, keys: Sequence[bytes]) -> Sequence[bool | None]:
        try:
            return exists_many(self._client, keys)
        except RedisFuseError:
            return [None] * len(keys)  # the monitor looks them up later

    # -- the tree ----------------------------------------------------------------------------------------------------

    def file_saved(self, target: KeyRef, mtime_ns: int) -> None:
        """Record when a committed key's or field's file was last written.

        The time is in ns since the epoch.
        """
        self._monitor.record_save(target, mtime_ns)

    def directories_changed(self, directories: Collection[tuple[bytes, ...]]) -> None:
        """Invalidate empty directories that came or went in the journal."""
        self.kernel_cache.invalidate([self._path_codec.directory_path(each) for each in directories], ancestors=True)
