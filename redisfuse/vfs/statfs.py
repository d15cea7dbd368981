"""`df` of a mount: the server's memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from redisfuse.client.client import Server

BLOCK = 4096  # bytes
FRESH = 5.0  # seconds that an answer is kept


class Space:
    """statvfs(3) from `INFO memory` and DBSIZE: all of maxmemory, or of the machine's memory. Thread-safe."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._found: tuple[float, Mapping[str, int]] | None = None

    def __call__(self) -> Mapping[str, int]:
        with self._lock:
            found = self._found
        if found is not None and time.monotonic() - found[0] < FRESH:
            return found[1]
        answer = self._ask()
        with self._lock:
            self._found = (time.monotonic(), answer)
        return answer

    def _ask(self) -> Mapping[str, int]:
        memory: dict[bytes, bytes] = {}
        for line in bytes(self._server.ask(b"INFO", b"memory")).splitlines():
            name, _, value = line.partition(b":")
            memory[name] = value
        keys = int(self._server.ask(b"DBSIZE"))
        used = int(memory.get(b"used_memory", 0))
        total = int(memory.get(b"maxmemory", 0)) or int(memory.get(b"total_system_memory", 0)) or used
        blocks, free = total // BLOCK, max(0, total - used) // BLOCK
        return {
            "f_bsize": BLOCK,
            "f_frsize": BLOCK,
            "f_blocks": blocks,
            "f_bfree": free,
            "f_bavail": free,
            "f_files": keys,
            "f_namemax": 255,
        }
