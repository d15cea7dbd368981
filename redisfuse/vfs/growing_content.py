"""A reader that holds on to its file while the value in Redis grows: `tail -F`, a viewer that waits for more.

What `open` saw is what is read, whatever becomes of the value; but what was appended to it since is given too, as in
any filesystem. A value that was replaced is seen by whoever opens the file again.
"""

from __future__ import annotations

import threading
from typing import Protocol

from redisfuse.errors import RedisFuseError
from redisfuse.paths.grammar import Target
from redisfuse.vfs.content_types import SmallSnapshot, Snapshot

COMPARED = 4096  # bytes before the old end that must be the same for a longer value to count as appended to


class Source(Protocol):
    """Where values come from: `reading.Reader`."""

    def version(self, target: Target) -> int:
        """A number that grows whenever the target may have changed."""
        ...

    def renew(self, target: Target) -> Snapshot:
        """What it holds now."""
        ...


class FollowingSnapshot:
    """A snapshot that grows with its target. Thread-safe."""

    def __init__(self, snapshot: Snapshot, version: int, target: Target, source: Source) -> None:
        self._snapshot = snapshot
        self._version = version  # before the snapshot was made
        self._target = target
        self._source = source
        self._end = b""  # the last bytes of a large value, once they were read
        self._lock = threading.Lock()
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes of what is being read."""
        return self._snapshot.size

    @property
    def current(self) -> Snapshot:
        """What it reads from at this moment."""
        return self._snapshot

    @property
    def stands(self) -> bool:
        """Whether the value was not heard of since it was last looked at."""
        return self._version == self._source.version(self._target)

    def grow(self) -> None:
        """Take in what was appended since."""
        version = self._source.version(self._target)
        if version != self._version:
            self._look_again(version)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes; raises what reading the value raises."""
        if offset + size > self._snapshot.size:
            self.grow()
        snapshot = self._snapshot
        data = snapshot.read(offset, size)
        if data and offset + len(data) == snapshot.size and not isinstance(snapshot, SmallSnapshot):
            self._end = data[-COMPARED:]
        return data

    def _look_again(self, version: int) -> Snapshot:
        with self._lock:
            old = self._snapshot
            if version == self._version or self._closed:
                return old
            self._version = version
            try:
                new = self._source.renew(self._target)
                appended = new.size > old.size and self._continues(old, new)
            except RedisFuseError:
                return old  # it is gone, or of another type now, or can't be had: who has it open reads it to its end
            if appended:
                self._snapshot = new
            (old if appended else new).close()
            return self._snapshot

    def _continues(self, old: Snapshot, new: Snapshot) -> bool:
        end = old.content[-COMPARED:] if isinstance(old, SmallSnapshot) else self._end
        return (bool(end) or not old.size) and new.read(old.size - len(end), len(end)) == end

    def close(self) -> None:
        """Let go of what it holds."""
        with self._lock:
            self._closed = True
            self._snapshot.close()


def innermost(snapshot: Snapshot | None) -> Snapshot | None:
    """What is read from at this moment."""
    return snapshot.current if isinstance(snapshot, FollowingSnapshot) else snapshot


def content_of(snapshot: Snapshot | None) -> bytes | None:
    """What a snapshot that is held in memory holds; None of any other."""
    snapshot = innermost(snapshot)
    return snapshot.content if isinstance(snapshot, SmallSnapshot) else None


def present(snapshot: Snapshot, offset: int, size: int) -> bytes | None:
    """The bytes from `offset`, as reading gives them, if they are held in memory and nothing need be asked."""
    if isinstance(snapshot, FollowingSnapshot):
        inner = snapshot.current
        if not isinstance(inner, SmallSnapshot) or not (offset + size <= inner.size or snapshot.stands):
            return None
        return inner.read(offset, size)
    return snapshot.read(offset, size) if isinstance(snapshot, SmallSnapshot) else None
