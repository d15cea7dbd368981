"""One mount's objects, wired to each other: who tells whom that something changed.

A change that the server tells of drops the process's caches first (`_on_keys_touched`), and once it is verified what the index
says is followed by what the kernel knows (`_on_keys_changed`). The kernel is told long time-outs only while both the follower
and the notifier live.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from redisfuse import __version__
from redisfuse.client.client import RedisClient
from redisfuse.config import Config
from redisfuse.fuse.interface import Binding
from redisfuse.fuse.notify import InvalidationQueue
from redisfuse.keyspace.metadata import MetadataStore
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.mount.adapter import FuseAdapter, Permissions, inode_number
from redisfuse.mount.progress import show_progress
from redisfuse.mount.write_mode import WriteSupport
from redisfuse.paths.grammar import REFRESH_FILE, PathCodec
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.content import ContentLoader
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.filesystem import Filesystem, FilesystemOptions
from redisfuse.vfs.junk_rules import JunkRules
from redisfuse.vfs.statfs import StatfsProvider

log = logging.getLogger(__name__)

DEFAULT_UMASK = 0o077  # of a mount that was given none: owner only


class MountContext:
    """Everything that serves one mount. Made in the process that serves it; threads begin in `_started`."""

    def __init__(
        self, config: Config, client: RedisClient, binding: Binding, mountpoint: Path, on_ready: Callable[[str], None]
    ) -> None:
        self._config = config
        self._client = client
        self._binding = binding
        self._mountpoint = mountpoint
        self._on_ready = on_ready
        self._started_ns = time.time_ns()
        self.path_codec = PathCodec(config.separator)
        self.invalidation_queue = InvalidationQueue()
        self.coherence = Coherence(client, self.path_codec, self.invalidation_queue, binding)
        self.keyspace = KeyspaceMonitor(
            client,
            separator=config.separator,
            is_long_key=self.path_codec.key_needs_digest,
            prefix=config.prefix,
            index_memory=config.index_memory,
            rescan_interval=config.rescan_seconds,
            listener=self.coherence,
        )
        self.metadata = MetadataStore(
            client,
            max_cache_bytes=config.cache_memory,
            freshness=self.coherence,
            sort_key=lambda key: inode_number(self.path_codec.key_path(key)),
        )
        self.content_loader = ContentLoader(
            client,
            self.metadata,
            self.keyspace,
            self.coherence,
            render_limit=config.render_limit,
            dump_limit=config.dump_limit,
        )
        dentry_tracker = DentryTracker(self.path_codec, self.keyspace, self.invalidation_queue)
        junk_rules = JunkRules.from_config(config)
        self.write_support: WriteSupport | None = None
        if config.write:
            self.write_support = WriteSupport(config, client, self.content_loader, mountpoint, self.coherence)
        self.filesystem = Filesystem(
            grammar=self.path_codec,
            keyspace=self.keyspace,
            metadata=self.metadata,
            content_loader=self.content_loader,
            junk_rules=junk_rules,
            overlay=self.write_support.overlay if self.write_support else None,
            empty_directories=self.write_support.empty_directories if self.write_support else None,
            options=FilesystemOptions(config.field_limit, config.hash_limit, config.show_junk, config.prefix),
            mount_time_ns=self._started_ns,
            is_interrupted=binding.is_interrupted,
        )
        self.adapter = FuseAdapter(
            self.filesystem,
            self.write_support.create_namespace(self.filesystem, junk_rules) if self.write_support else None,
            self._build_permissions(),
            mount=self,
            mountpoint=os.fsencode(mountpoint),
            binding=binding,
            coherence=self.coherence,
            dentry_tracker=dentry_tracker,
            statfs=StatfsProvider(client),
        )
        self.coherence.connect(
            monitor=self.keyspace,
            metadata=self.metadata,
            content_loader=self.content_loader,
            dentry_tracker=dentry_tracker,
            readdir_cache=self.adapter.readdir_cache,
            content_cache=self.adapter.content_cache,
        )

    def _build_permissions(self) -> Permissions:
        options = self._config.options
        return Permissions(
            uid=os.getuid() if options.uid is None else options.uid,
            gid=os.getgid() if options.gid is None else options.gid,
            umask=DEFAULT_UMASK if options.umask is None else options.umask,
            is_writable=self._config.write,
        )

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.invalidation_queue.start()
        self.coherence.state_changed()
        self.keyspace.start()
        if self.write_support is not None:
            self.write_support.start()
        self._on_ready(self.format_banner())
        if not self._config.daemon and sys.stderr.isatty():
            show_progress(self.keyspace)

    def format_banner(self) -> str:
        """The one line that says what is mounted, and how to leave."""
        how = "read and write, journaled" if self._config.write else "read-only"
        leave = "" if self._config.daemon else "Ctrl-C or "
        return (
            f"{self._client.address.redacted_url} is mounted at {self._mountpoint} ({how}); "
            f"leave with {leave}`redisfuse umount {self._mountpoint}`"
        )

    def stop(self) -> None:
        self.adapter.content_cache.close()
        if self.write_support is not None:
            self.write_support.close(busy_at_unmount=self._binding.busy_at_unmount)
        self.keyspace.close()

    def close(self) -> None:
        """After the mount is gone, or if it could not be made."""
        if self.write_support is not None:
            self.write_support.close()
        self.keyspace.close()
        self.invalidation_queue.close()

    def refresh(self) -> None:
        """Scan the keyspace again."""
        self.keyspace.request_rescan()
        self.invalidation_queue.invalidate([REFRESH_FILE])

    # -- what is said of it ------------------------------------------------------------------------------------------

    def build_status(self) -> dict[str, object]:
        """For `redisfuse status`: plain values, ready for JSON. Sizes in bytes, times in seconds."""
        done, total = self.keyspace.scan_progress
        counters = self._client.stats
        facts = self._client.server_info
        asked = self.metadata.hits + self.metadata.misses
        return {
            "mountpoint": str(self._mountpoint),
            "server": self._client.address.redacted_url,
            "server_version": f"{facts.vendor} {'.'.join(map(str, facts.version))}",
            "version": __version__,
            "pid": os.getpid(),
            "mode": "write" if self._config.write else "read-only",
            "journal": None if self.write_support is None else str(self.write_support.journal.path),
            "session": None if self.write_support is None else self.write_support.session_id,
            "binding": self._binding.name,
            "library": self._binding.library,
            "up_seconds": round((time.time_ns() - self._started_ns) / 1e9, 1),
            "keys": len(self.keyspace.index),
            "scanning": self.keyspace.is_scanning,
            "ready": self.keyspace.is_ready,
            "scanned": done,
            "scan_total": total,
            "live": self.keyspace.is_coherent,
            "reason": self.keyspace.degraded_reason,
            "kernel_cache": self.coherence.is_coherent,
            "kernel_cache_reason": ""
            if self.invalidation_queue.is_supported
            else self.invalidation_queue.unsupported_reason,
            "index_bytes": self.keyspace.index.memory_bytes,
            "index_on_disk": self.keyspace.index.on_disk,
            "cache_hits": self.metadata.hits,
            "cache_misses": self.metadata.misses,
            "cache_hit_rate": round(self.metadata.hits / asked, 3) if asked else None,
            "commands": counters.commands,
            "round_trips": counters.round_trips,
            "bytes_sent": counters.bytes_sent,
            "bytes_received": counters.bytes_received,
            "reconnects": counters.reconnects,
            "memory_bytes": _read_resident_bytes(),
        }

    def encode_status(self) -> bytes:
        return json.dumps(self.build_status()).encode()


def _read_resident_bytes() -> int:
    """Resident memory of this process in bytes (proc(5), statm)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
