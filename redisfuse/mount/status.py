"""The status of a mount for `redisfuse status`, as plain values for JSON.

Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from redisfuse import __version__

if TYPE_CHECKING:
    from redisfuse.mount.context import MountContext

_MAX_LISTED_FOLDERS = 5
"""The kernel limits the status, an extended attribute, to 64 KiB; a path may have 3000 bytes."""


def build_status(context: MountContext) -> dict[str, object]:
    """Return the status of a mount."""
    keyspace, metadata = context.keyspace, context.metadata
    scanned, scan_total = keyspace.scan_progress
    stats, server_info = context.client.stats, context.client.server_info
    # Folders whose hashes `--hashes auto` lists as files.
    hash_file_folders = [
        directory
        for directory in context.hash_layouts.list_file_directories()
        if keyspace.index.is_directory(directory)
    ]
    lookups = metadata.hits + metadata.misses
    notifier = context.session.notifier
    write_support = context.write_support
    lag_guard = context.client.lag_guard
    return {
        "mountpoint": str(context.mountpoint),
        "server": context.client.address.redacted_url,
        "server_version": f"{server_info.vendor} {'.'.join(map(str, server_info.version))}",
        "version": __version__,
        "pid": os.getpid(),
        "mode": "read-only" if write_support is None else "write",
        "journal": None if write_support is None else str(write_support.journal.path),
        "session": None if write_support is None else write_support.session_id,
        "binding": context.session.device.name,
        "library": context.session.device.library,
        "up_seconds": round(context.uptime_seconds, 1),
        "keys": len(keyspace.index),
        "scanning": keyspace.is_scanning,
        "paused": keyspace.is_paused,
        "ready": keyspace.is_ready,
        "scanned": scanned,
        "scan_total": scan_total,
        "live": keyspace.is_coherent,
        "reason": keyspace.degraded_reason,
        "shards": keyspace.describe_shards(),
        "unserved_slots": keyspace.unserved_slots,
        "sentinels": None if context.client.sentinels is None else context.client.sentinels.count_sentinels(),
        "master_link": None if keyspace.master_link is None else asdict(keyspace.master_link),
        "replicas": context.config.replicas,
        "lag_seconds": None if lag_guard is None else lag_guard.lag_seconds,
        "max_lag_seconds": context.config.max_lag,
        "kernel_cache": context.coherence.is_coherent,
        "kernel_cache_reason": notifier.unsupported_reason,
        "connection": _build_connection(context),
        "hashes": context.hash_layouts.mode,
        "hash_file_folder_count": len(hash_file_folders),
        "hash_file_folders": [
            os.fsdecode(context.path_codec.directory_path(directory))
            for directory in hash_file_folders[:_MAX_LISTED_FOLDERS]
        ],
        "index_bytes": keyspace.index.memory_bytes,
        "index_on_disk": keyspace.index.on_disk,
        "cache_hits": metadata.hits,
        "cache_misses": metadata.misses,
        "cache_hit_rate": round(metadata.hits / lookups, 3) if lookups else None,
        "cache_bytes": metadata.cache.memory_bytes,
        "cache_limit_bytes": metadata.cache.max_bytes,
        "cache_evicted_keys": metadata.cache.evicted_keys,
        "cache_evicted_contents": metadata.cache.evicted_contents,
        "commands": stats.commands,
        "round_trips": stats.round_trips,
        "bytes_sent": stats.bytes_sent,
        "bytes_received": stats.bytes_received,
        "reconnects": stats.reconnects,
        "memory_bytes": _read_resident_bytes(),
    }


def _build_connection(context: MountContext) -> dict[str, object]:
    """Return what another command needs to read the same keys; no secret."""
    config, address = context.config, context.client.address
    is_from_file = config.password_file is not None and address.password == config.password
    return {
        "url": address.url,
        "has_password": address.password is not None,
        "password_file": str(config.password_file) if is_from_file else None,
        "prefix": os.fsdecode(config.prefix),
        "hashes": config.hashes,
        "render_limit": config.render_limit,
        "decode_input": config.decode_input,
        "decode_output": config.decode_output,
        "decode_depth": config.decode_depth,
        "decode_seconds": config.decode_seconds,
        "separator": os.fsdecode(config.separator),
        "ssh": config.ssh,
        "cluster_map": config.cluster_map,
        "replicas": config.replicas,
        "max_lag": config.max_lag,
        "allow": [os.fsdecode(glob) for glob in config.allow],
        "wait_replicas": config.wait_replicas,
        "timeout": config.timeout,
        "rate": config.rate,
        "scan_count": config.scan_count,
    }


def _read_resident_bytes() -> int:
    """Return the resident memory of this process in bytes (proc(5), statm).

    Returns 0 if it can't be read.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
