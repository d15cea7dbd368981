"""A few connections, kept for the next user. Those who find none to be had wait in line, up to a limit."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redisfuse.client.channel import Dialogue
from redisfuse.errors import UnavailableError


class Room:
    """What several pools share: at most `most()` connections among them all. A pool that needs one more than there is
    room for closes one that another pool keeps idle."""

    def __init__(self, most: Callable[[], int]) -> None:
        self.most = most
        self.changed = threading.Condition()  # its lock guards all the pools; held for bookkeeping only
        self.pools: list[Pool] = []

    @property
    def taken(self) -> int:
        """Connections that there are, or that are being made. The lock is held."""
        return sum(pool.size for pool in self.pools)

    def shrink(self) -> None:
        """Close kept connections that are more than `most()` now, or than their own pool may have."""
        with self.changed:
            for pool in self.pools:
                while pool.idle and (self.taken > self.most() or pool.size > pool.most()):
                    pool.idle.pop().close()
            self.changed.notify_all()


class Pool:
    """At most `most()` dialogues of one kind, within a room. Thread-safe; no lock is held while one is made or used.

    `make(seconds)` opens one within that time. Connections that were made before a fork are not used after it.
    """

    def __init__(self, room: Room, most: Callable[[], int], make: Callable[[float], Dialogue]) -> None:
        self.most = most
        self.idle: list[Dialogue] = []
        self._room = room
        self._changed = room.changed
        self._make = make
        self._used = 0
        self._line: list[object] = []  # who waits, the first come first: else somebody could wait for ever
        self._process = os.getpid()
        self._closed = False
        room.pools.append(self)

    @property
    def size(self) -> int:
        """Its connections, in use or not."""
        return self._used + len(self.idle)

    @contextmanager
    def use(self, seconds: float, *, checked: bool = False) -> Iterator[Dialogue]:
        """A dialogue for the body of `with`, alone, within `seconds`; with `checked`, none that was hung up meanwhile.

        Raises UnavailableError when all stay busy, or what `make` raises.
        """
        dialogue = self._take(seconds, checked=checked)
        try:
            yield dialogue
        finally:
            dialogue.settle()
            self._give_back(dialogue)

    def _take(self, seconds: float, *, checked: bool) -> Dialogue:
        deadline = time.monotonic() + seconds
        with self._changed:
            self._leave_parent_behind()
            if not self._stand_in_line(seconds):
                raise UnavailableError(f"all connections were busy for {seconds:.1f} s (see --connections)")
            if self._closed:
                raise UnavailableError("the connections are closed: the mount is ending")
            while self.idle:
                dialogue = self.idle.pop()
                if not checked or dialogue.quiet():
                    self._used += 1
                    return dialogue
                dialogue.close()
            if self._room.taken >= self._room.most():
                self._make_room()
            self._used += 1
        try:
            return self._make(max(0.001, deadline - time.monotonic()))
        except BaseException:
            with self._changed:
                self._used -= 1
                self._changed.notify_all()
            raise

    def _stand_in_line(self, seconds: float) -> bool:
        """Wait until it is one's turn, the first come first; False if that takes too long."""
        if self._closed or (not self._line and self._has_one):
            return True
        ticket = object()
        self._line.append(ticket)
        try:
            return self._changed.wait_for(lambda: self._closed or (self._line[0] is ticket and self._has_one), seconds)
        finally:
            self._line.remove(ticket)
            self._changed.notify_all()

    @property
    def _has_one(self) -> bool:
        """Whether there is a connection to be had at once."""
        return bool(self.idle) or self._may_grow

    @property
    def _may_grow(self) -> bool:
        """Whether there may be one more, were it in another's place."""
        room = self._room
        return self.size < self.most() and (room.taken < room.most() or any(pool.idle for pool in room.pools))

    def _make_room(self) -> None:
        for pool in self._room.pools:
            if pool.idle:
                pool.idle.pop().close()
                return

    def _give_back(self, dialogue: Dialogue) -> None:
        with self._changed:
            self._used -= 1
            fits = self.size < self.most() and self._room.taken < self._room.most()
            if fits and not dialogue.closed and not self._closed:
                self.idle.append(dialogue)
            else:
                dialogue.close()
            self._changed.notify_all()

    def _leave_parent_behind(self) -> None:
        if os.getpid() != self._process:
            self._process = os.getpid()
            self.idle.clear()
            self._line.clear()
            self._used = 0

    def forget(self) -> None:
        """Close the kept connections: one was lost, so the others are likely to be."""
        with self._changed:
            idle, self.idle = self.idle, []
            self._changed.notify_all()
        for dialogue in idle:
            dialogue.close()

    def close(self) -> None:
        """Close the kept connections, and every other one as it comes back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.forget()
