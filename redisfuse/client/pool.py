"""A few connections, kept for the next user. Those who find none to be had wait in line, up to a limit."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redisfuse.client.channel import Channel
from redisfuse.errors import UnavailableError


class PoolGroup:
    """What several pools share: at most `max_connections()` connections among them all. A pool that needs one more than there is
    room for closes one that another pool keeps idle."""

    def __init__(self, max_connections: Callable[[], int]) -> None:
        self.max_connections = max_connections
        self.condition = threading.Condition()  # its lock guards all the pools; held for bookkeeping only
        self.pools: list[ConnectionPool] = []

    @property
    def connection_count(self) -> int:
        """Connections that there are, or that are being made. The lock is held."""
        return sum(pool.size for pool in self.pools)

    def close_excess(self) -> None:
        """Close kept connections that are more than `max_connections()` now, or than their own pool may have."""
        with self.condition:
            for pool in self.pools:
                while pool.idle_channels and (
                    self.connection_count > self.max_connections() or pool.size > pool.max_connections()
                ):
                    pool.idle_channels.pop().close()
            self.condition.notify_all()


class ConnectionPool:
    """At most `max_connections()` dialogues of one kind, within a room. Thread-safe; no lock is held while one is made or used.

    `make(seconds)` opens one within that time. Connections that were made before a fork are not used after it.
    """

    def __init__(
        self, group: PoolGroup, max_connections: Callable[[], int], channel_factory: Callable[[float], Channel]
    ) -> None:
        self.max_connections = max_connections
        self.idle_channels: list[Channel] = []
        self._group = group
        self._condition = group.condition
        self._channel_factory = channel_factory
        self._in_use_count = 0
        self._waiters: list[object] = []  # who waits, the first come first: else somebody could wait for ever
        self._owner_pid = os.getpid()
        self._closed = False
        group.pools.append(self)

    @property
    def size(self) -> int:
        """Its connections, in use or not."""
        return self._in_use_count + len(self.idle_channels)

    @contextmanager
    def acquire(self, timeout: float, *, check_health: bool = False) -> Iterator[Channel]:
        """A dialogue for the body of `with`, alone, within `seconds`; with `checked`, none that was hung up meanwhile.

        Raises UnavailableError when all stay busy, or what `make` raises.
        """
        dialogue = self._check_out(timeout, check_health=check_health)
        try:
            yield dialogue
        finally:
            dialogue.reset()
            self._check_in(dialogue)

    def _check_out(self, timeout: float, *, check_health: bool) -> Channel:
        deadline = time.monotonic() + timeout
        with self._condition:
            self._reset_after_fork()
            if not self._wait_turn(timeout):
                raise UnavailableError(f"all connections were busy for {timeout:.1f} s (see --connections)")
            if self._closed:
                raise UnavailableError("the connections are closed: the mount is ending")
            while self.idle_channels:
                dialogue = self.idle_channels.pop()
                if not check_health or dialogue.is_healthy():
                    self._in_use_count += 1
                    return dialogue
                dialogue.close()
            if self._group.connection_count >= self._group.max_connections():
                self._evict_idle()
            self._in_use_count += 1
        try:
            return self._channel_factory(max(0.001, deadline - time.monotonic()))
        except BaseException:
            with self._condition:
                self._in_use_count -= 1
                self._condition.notify_all()
            raise

    def _wait_turn(self, timeout: float) -> bool:
        """Wait until it is one's turn, the first come first; False if that takes too long."""
        if self._closed or (not self._waiters and self._is_available):
            return True
        ticket = object()
        self._waiters.append(ticket)
        try:
            return self._condition.wait_for(
                lambda: self._closed or (self._waiters[0] is ticket and self._is_available), timeout
            )
        finally:
            self._waiters.remove(ticket)
            self._condition.notify_all()

    @property
    def _is_available(self) -> bool:
        """Whether there is a connection to be had at once."""
        return bool(self.idle_channels) or self._can_grow

    @property
    def _can_grow(self) -> bool:
        """Whether there may be one more, were it in another's place."""
        room = self._group
        return self.size < self.max_connections() and (
            room.connection_count < room.max_connections() or any(pool.idle_channels for pool in room.pools)
        )

    def _evict_idle(self) -> None:
        for pool in self._group.pools:
            if pool.idle_channels:
                pool.idle_channels.pop().close()
                return

    def _check_in(self, channel: Channel) -> None:
        with self._condition:
            self._in_use_count -= 1
            fits = self.size < self.max_connections() and self._group.connection_count < self._group.max_connections()
            if fits and not channel.closed and not self._closed:
                self.idle_channels.append(channel)
            else:
                channel.close()
            self._condition.notify_all()

    def _reset_after_fork(self) -> None:
        if os.getpid() != self._owner_pid:
            self._owner_pid = os.getpid()
            self.idle_channels.clear()
            self._waiters.clear()
            self._in_use_count = 0

    def close_idle(self) -> None:
        """Close the kept connections: one was lost, so the others are likely to be."""
        with self._condition:
            idle, self.idle_channels = self.idle_channels, []
            self._condition.notify_all()
        for dialogue in idle:
            dialogue.close()

    def close(self) -> None:
        """Close the kept connections, and every other one as it comes back."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self.close_idle()
