"""The one fan-out of changes.

Process caches first, then the index, then the kernel.

Three sources announce changes here: the keyspace monitor (what other clients did), the transactions (what this mount
did) and the journal (empty directories). The order is always the same, so that no later step can cache again what an
earlier one still held:

1. `keys_touched` drops the keys' metadata and cached listings;
2. the index follows (the monitor verified the keys already; after a write of our own, `keys_written` updates it);
3. the kernel follows: names and attributes that it may have cached are invalidated.

The kernel gets long time-outs only while the monitor is coherent, its index is ready and the kernel accepts
invalidations; otherwise everything is valid for `INCOHERENT_SECONDS`.

Threads: any. This module has no lock of its own; each receiver takes its own, one at a time, and calls nothing back.
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
"""How long the kernel may cache while every change is pushed to it."""

INCOHERENT_SECONDS = 1.0
"""How long anything is valid while changes are not announced."""


class Coherence:
    """Announces each change to everything that caches.

    Implements ChangeListener, Freshness and WriteListener.
    """

    def __init__(self, client: RedisClient, path_codec: PathCodec, kernel_cache: KernelCache) -> None:
        self._client = client
        self._path_codec = path_codec
        self.kernel_cache = kernel_cache
        self.valid_seconds = INCOHERENT_SECONDS  # how long the kernel may cache names and attributes
        self.absent_seconds = 0.0  # how long it may cache that a name is absent
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
        """Name the receivers. Called once, before any of them is started."""
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
        """Return the seconds that what this process caches is valid."""
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

    # -- ChangeListener: what other clients did ----------------------------------------------------------------------

    def keys_touched(self, keys: Collection[bytes]) -> None:
        """Drop what this process caches of these keys."""
        self._metadata.invalidate(keys)
        self._readdir_cache.invalidate_keys(keys)

    def keys_changed(self, keys: Collection[bytes]) -> None:
        """Drop what this process and the kernel cache of these keys.

        The index has them right.
        """
        self.keys_touched(keys)
        self._dentry_tracker.invalidate_keys(keys)

    def reset(self) -> None:
        """Drop everything: anything may have changed."""
        self._metadata.invalidate_all()
        self._content_loader.clear_renderings()
        self.state_changed()

    def state_changed(self) -> None:
        """Set the kernel's time-outs for the current state.

        Invalidates what was cached under the previous one.
        """
        if self.is_coherent:
            self.valid_seconds = self.absent_seconds = COHERENT_SECONDS
        else:
            self.valid_seconds, self.absent_seconds = INCOHERENT_SECONDS, 0.0
        self._readdir_cache.invalidate_all()
        self._dentry_tracker.invalidate_all()

    def no_key_expires(self) -> None:
        """Stop asking for the TTL of keys that changed lately."""
        self._metadata.clear_recent_changes()

    # -- WriteListener: what this mount did --------------------------------------------------------------------------

    def keys_will_change(self, keys: Collection[bytes]) -> None:
        """Let the monitor recognise the announcements of our own writes."""
        self._monitor.announce_writes(keys)

    def keys_written(self, keys: Mapping[bytes, bool | None]) -> None:
        """Follow our own write at once: caches, index, kernel."""
        self._metadata.invalidate(keys)
        uncertain = [key for key, exists in keys.items() if exists is None]
        looked_up = dict(zip(uncertain, self._look_up_existence(uncertain), strict=True))
        for key, exists in keys.items():
            exists_now = looked_up[key] if exists is None else exists
            if exists_now is None:
                self._monitor.mark_dirty(key)
            else:
                self._monitor.record_key_state(key, exists_now)
        self._dentry_tracker.invalidate_keys(keys)

    def _look_up_existence(self, keys: Sequence[bytes]) -> Sequence[bool | None]:
        try:
            return exists_many(self._client, keys)
        except RedisFuseError:
            return [None] * len(keys)  # the monitor's thread looks again

    # -- the tree ----------------------------------------------------------------------------------------------------

    def file_saved(self, target: KeyRef, mtime_ns: int) -> None:
        """Record when a committed key's or field's file was last written.

        The time is in ns since the epoch.
        """
        self._monitor.record_save(target, mtime_ns)

    def keys_reappeared(self, keys: Collection[bytes]) -> None:
        """Drop what is cached of keys after an edit was discarded.

        The tree shows them again as Redis holds them.
        The server's announcement of the change with which the edit was in conflict may still be on its way.
        """
        self.keys_touched(keys)
        self._dentry_tracker.invalidate_keys(keys)

    def directories_changed(self, directories: Collection[tuple[bytes, ...]]) -> None:
        """Invalidate empty directories that came or went in the journal."""
        self.kernel_cache.invalidate([self._path_codec.directory_path(each) for each in directories], ancestors=True)
