"""statfs: `df` of a mount shows the server's memory."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from redisfuse.client.client import RedisClient
from redisfuse.client.info import parse_number, split_info
from redisfuse.paths.grammar import NAME_MAX

BLOCK_BYTES = 4096
MAX_KEYS = 1 << 32  # of one database; `df -i` shows it as the number of inodes
MAX_CACHE_AGE_SECONDS = 5.0


class Statfs(NamedTuple):
    """The fields of statvfs(3) that are not 0."""

    blocks: int
    free_blocks: int
    files: int
    free_files: int
    block_size: int = BLOCK_BYTES
    name_max: int = NAME_MAX


class StatfsProvider:
    """statvfs(3) from `INFO memory` and DBSIZE.

    The total is maxmemory, or else the machine's memory. Thread-safe. Its lock is not held while the server is queried.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._cached: tuple[float, Statfs] | None = None  # time.monotonic() and the reply; guarded by _lock

    def statfs(self) -> Statfs:
        """Return the state of the server's memory, at most 5 seconds old."""
        with self._lock:
            cached = self._cached
        if cached is not None and time.monotonic() - cached[0] < MAX_CACHE_AGE_SECONDS:
            return cached[1]
        reply = self._query_server()
        with self._lock:
            self._cached = (time.monotonic(), reply)
        return reply

    def _query_server(self) -> Statfs:
        used = total = keys = 0
        for server in self._client.servers:
            memory = split_info(server.execute(b"INFO", b"memory"))
            keys += int(server.execute(b"DBSIZE"))
            own_used, limit, machine = (
                parse_number(memory.get(name, b"")) for name in (b"used_memory", b"maxmemory", b"total_system_memory")
            )
            used += own_used
            total += limit or machine or own_used
        return Statfs(total // BLOCK_BYTES, max(0, total - used) // BLOCK_BYTES, MAX_KEYS, max(0, MAX_KEYS - keys))
