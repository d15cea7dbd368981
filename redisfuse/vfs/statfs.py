"""`df` of a mount: the server's memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from redisfuse.client.client import RedisClient

BLOCK_BYTES = 4096  # bytes
MAX_CACHE_AGE_SECONDS = 5.0  # seconds that an answer is kept


class StatfsProvider:
    """statvfs(3) from `INFO memory` and DBSIZE: all of maxmemory, or of the machine's memory. Thread-safe."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._cached: tuple[float, Mapping[str, int]] | None = None

    def statfs(self) -> Mapping[str, int]:
        with self._lock:
            found = self._cached
        if found is not None and time.monotonic() - found[0] < MAX_CACHE_AGE_SECONDS:
            return found[1]
        answer = self._query_server()
        with self._lock:
            self._cached = (time.monotonic(), answer)
        return answer

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
            "f_namemax": 255,
        }
