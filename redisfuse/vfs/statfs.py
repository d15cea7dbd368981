"""statfs: `df` of a mount shows the server's memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from redisfuse.client.client import RedisClient
from redisfuse.paths.grammar import NAME_MAX

BLOCK_BYTES = 4096
MAX_CACHE_AGE_SECONDS = 5.0


class StatfsProvider:
    """statvfs(3) from `INFO memory` and DBSIZE.

    The total is maxmemory, or else the machine's memory. Thread-safe. Its lock is not held while the server is queried.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._cached: tuple[float, Mapping[str, int]] | None = None  # time.monotonic() and the reply; guarded by _lock

    def statfs(self) -> Mapping[str, int]:
        """Return the fields of statvfs(3), at most 5 seconds old."""
        with self._lock:
            cached = self._cached
        if cached is not None and time.monotonic() - cached[0] < MAX_CACHE_AGE_SECONDS:
            return cached[1]
        reply = self._query_server()
        with self._lock:
            self._cached = (time.monotonic(), reply)
        return reply

    def _query_server(self) -> Mapping[str, int]:
        memory: dict[bytes, bytes] = {}
        for line in bytes(self._client.execute(b"INFO", b"memory")).splitlines():
            name, _, value = line.partition(b":")
            memory[name] = value
        keys = int(self._client.execute(b"DBSIZE"))
        used = int(memory.get(b"used_memory", 0))
        total = int(memory.get(b"maxmemory", 0)) or int(memory.get(b"total_system_memory", 0)) or used
        blocks, free = total // BLOCK_BYTES, max(0, total - used) // BLOCK_BYTES
        return {
            "f_bsize": BLOCK_BYTES,
            "f_frsize": BLOCK_BYTES,
            "f_blocks": blocks,
            "f_bfree": free,
            "f_bavail": free,
            "f_files": keys,
            "f_namemax": NAME_MAX,
        }
