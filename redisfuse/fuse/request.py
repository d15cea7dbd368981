"""The request that one thread serves."""

from __future__ import annotations

import mmap

from redisfuse.fuse import wire
from redisfuse.fuse.worker_pool import LeaderFollowerPool


class MalformedRequestError(Exception):
    """A request that is not as long as its fields say."""


class Request:
    """The request that one thread serves: its buffer, and the `RequestContext` that operations get.

    `unique` and `node_id` are read for every request, the rest only if it is needed.
    """

    __slots__ = ("_interrupted_unique", "_pool", "buffer", "node_id", "size", "unique")

    def __init__(self, pool: LeaderFollowerPool) -> None:
        self.buffer = memoryview(mmap.mmap(-1, wire.MAX_REQUEST_BYTES))  # takes no memory until it is used
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
        """Mark the request `unique` as interrupted; harmless if this thread serves another by now."""
        self._interrupted_unique = unique

    def prepare_to_block(self) -> None:
        self._pool.promote_follower(self)

    def names(self, offset: int, count: int) -> list[bytes]:
        """Return `count` NUL-terminated strings from `offset` on. Raises MalformedRequestError if one is missing."""
        names = bytes(self.buffer[offset : self.size]).split(b"\0", count)
        if len(names) <= count:
            raise MalformedRequestError(f"{count} names expected, {len(names) - 1} found")
        return names[:count]
