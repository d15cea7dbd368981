"""The request that one thread serves."""

from __future__ import annotations

import mmap

from redisfuse.fuse import wire
from redisfuse.fuse.worker_pool import LeaderFollowerPool


class MalformedRequestError(Exception):
    """A request shorter than its fields require."""


class Request:
    """A thread's buffer for requests, and the `RequestContext` of the operations.

    `unique` and `node_id` are read from every request, the ids of the caller only when they are needed.
    """

    __slots__ = ("_interrupted_unique", "_pool", "buffer", "node_id", "size", "unique")

    def __init__(self, pool: LeaderFollowerPool) -> None:
        self.buffer = memoryview(mmap.mmap(-1, wire.MAX_REQUEST_BYTES))  # takes memory page by page as it is used
        self.size = 0  # bytes of the buffer that belong to this request
        self.unique = 0
        self.node_id = 0
        self._interrupted_unique = 0
        self._pool = pool

    @property
    def uid(self) -> int:
        return int(wire.IN_CALLER.unpack_from(self.buffer, wire.IN_CALLER_OFFSET)[0])

    @property
    def gid(self) -> int:
        return int(wire.IN_CALLER.unpack_from(self.buffer, wire.IN_CALLER_OFFSET)[1])

    @property
    def pid(self) -> int:
        return int(wire.IN_CALLER.unpack_from(self.buffer, wire.IN_CALLER_OFFSET)[2])

    def is_interrupted(self) -> bool:
        return self._interrupted_unique == self.unique

    def interrupt(self, unique: int) -> None:
        """Mark the request `unique` as interrupted.

        Has no effect if this thread serves another one by now.
        """
        self._interrupted_unique = unique

    def prepare_to_block(self) -> None:
        self._pool.promote_follower(self)

    def names(self, offset: int, count: int) -> list[bytes]:
        """Return `count` NUL-terminated strings from `offset` on.

        Raises MalformedRequestError if one is missing.
        """
        names = bytes(self.buffer[offset : self.size]).split(b"\0", count)
        if len(names) <= count:
            raise MalformedRequestError(f"{count} names expected, {len(names) - 1} found")
        return names[:count]
