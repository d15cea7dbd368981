"""Connection pools that share one limit.

Callers that find no free connection wait in line, up to a time-out.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from redisfuse.client.allowlist import CommandFilter
from redisfuse.client.channel import Channel, WaitHook
from redisfuse.client.connector import Connector
from redisfuse.errors import UnavailableError

CLOSED_MESSAGE = "the connections are closed: the mount is ending"


class PoolGroup:
    """The connections of one client, with one limit.

    Dedicated channels and all pools together have `max_connections` at most. A pool that needs a connection when there
    is no room closes an idle one of another pool.
    """

    def __init__(self, max_connections: int, *, writable: bool) -> None:
        self._max_connections = max_connections
        self._writable = writable
        self.lock = threading.RLock()  # guards all the pools, and all below
        self.condition = threading.Condition(self.lock)
        self.pools: list[ConnectionPool] = []
        self._dedicated_count = 0  # dedicated channels that are open or being opened
        self.waiter_count = 0  # threads that wait for a connection of any pool
        self.may_exceed = False  # whether channels that are lent may have to be closed when they are returned

    @property
    def connection_count(self) -> int:
        """Pooled connections that are open or being opened. The lock is held."""
        return sum(pool.size for pool in self.pools)

    @property
    def is_exceeded(self) -> bool:
        """Whether there are more pooled connections than at most. The lock is held."""
        return self.connection_count > self.max_pooled or any(pool.size > pool.max_connections for pool in self.pools)

    @property
    def max_pooled(self) -> int:
        """Most pooled connections: those that dedicated channels leave.

        At least one for each kind of pool.
        """
        return max(2 if self._writable else 1, self._max_connections - self._dedicated_count)

    @property
    def max_writing(self) -> int:
        """Most connections for writing: half of all, while one is left for reading."""
        return max(1, min(self._max_connections // 2, self.max_pooled - 1))

    @property
    def max_reading(self) -> int:
        """Most connections for reading: all, or all but one if the client is writable.

        That one is left for writing, so that hung reads do not block writes.
        """
        return max(1, self.max_pooled - (1 if self._writable else 0))

    @contextmanager
    def reserve_dedicated(self) -> Iterator[None]:
        """Count a dedicated channel for the body of `with`.

        Closes idle connections that exceed the limit.
        """
        with self.lock:
            self._dedicated_count += 1
            for pool in self.pools:
                while pool.idle_channels and (
                    self.connection_count > self.max_pooled or pool.size > pool.max_connections
                ):
                    pool.idle_channels.pop().close()
            self.may_exceed = True
            self.condition.notify_all()
        try:
            yield
        finally:
            with self.lock:
                self._dedicated_count -= 1
                self.condition.notify_all()


class ConnectionPool:
    """The channels for reading or for writing.

    Thread-safe; the lock is not held while one is opened or used. A process does not use the connections that it
    inherited in a fork.
    """

    def __init__(
        self,
        group: PoolGroup,
        kind: Literal["read", "write"],
        connector: Connector,
        command_filter: CommandFilter,
    ) -> None:
        self.idle_channels: list[Channel] = []
        self._group = group
        self._kind = kind
        self._connector = connector
        self._command_filter = command_filter
        self._lock, self._condition = group.lock, group.condition
        self._in_use_count = 0  # channels that are lent, or being opened
        self._lent: set[Channel] = set()
        self._waiters: list[object] = []  # first come, first served: otherwise a thread could starve
        self._owner_pid = os.getpid()
        self._closed = False
        group.pools.append(self)

    @property
    def size(self) -> int:
        """The number of connections, in use or idle."""
        return self._in_use_count + len(self.idle_channels)

    @property
    def max_connections(self) -> int:
        """Most connections of this pool at present."""
        return self._group.max_reading if self._kind == "read" else self._group.max_writing

    @contextmanager
    def acquire(
        self, timeout: float, *, check_health: bool = False, wait_hook: WaitHook | None = None
    ) -> Iterator[Channel]:
        """Lend a channel for the body of `with`, within `timeout` seconds.

        `check_health`: never lend a channel that the server has closed. `wait_hook` is called before a wait, also for a
        new connection. Raises UnavailableError if all stay busy, and
        the errors of `Connector.open_channel`.
        """
        channel = self.check_out(timeout, check_health=check_health, wait_hook=wait_hook)
        try:
            yield channel
        finally:
            self.check_in(channel)

    def check_out(self, timeout: float, *, check_health: bool = False, wait_hook: WaitHook | None = None) -> Channel:
        """Lend a channel, as `acquire`; pair it with `check_in`."""
        deadline = time.monotonic() + timeout
        with self._lock:
            if os.getpid() != self._owner_pid:
                self._reset_after_fork()
            if wait_hook is not None and (self._waiters or not self.idle_channels):
                wait_hook(-1)
            if (self._waiters or not self.idle_channels or self._closed) and not self._wait_turn(timeout):
                raise UnavailableError(f"all connections were busy for {timeout:.1f} s (see --connections)")
            if self._closed:
                raise UnavailableError(CLOSED_MESSAGE)
            while self.idle_channels:
                channel = self.idle_channels.pop()
                is_current = channel.generation == self._connector.generation
                if is_current and (not check_health or channel.is_healthy()):
                    self._in_use_count += 1
                    self._lent.add(channel)
                    return channel
                channel.close()
            if self._group.connection_count >= self._group.max_pooled:
                self._evict_idle()
            self._in_use_count += 1
        try:
            channel = self._connector.open_channel(
                self._command_filter, max(0.001, deadline - time.monotonic()), identify=self._kind == "write"
            )
        except BaseException:
            with self._lock:
                self._in_use_count -= 1
                self._condition.notify_all()
            raise
        with self._lock:
            self._lent.add(channel)
            is_current = channel.generation == self._connector.generation
        if not is_current:
            channel.close()  # the caller meets a lost connection, as though it had been lent before the switch
        return channel

    def _wait_turn(self, timeout: float) -> bool:
        """Wait in line for a connection; return False after `timeout` seconds.

        The lock is held.
        """
        if self._closed or (not self._waiters and self._is_available):
            return True
        ticket = object()
        self._waiters.append(ticket)
        self._group.waiter_count += 1
        try:
            return self._condition.wait_for(
                lambda: self._closed or (self._waiters[0] is ticket and self._is_available), timeout
            )
        finally:
            self._waiters.remove(ticket)
            self._group.waiter_count -= 1
            self._condition.notify_all()

    @property
    def _is_available(self) -> bool:
        """Whether a connection is idle, or one may be opened."""
        return bool(self.idle_channels) or self._can_grow

    @property
    def _can_grow(self) -> bool:
        """Whether one more connection fits.

        It may take the place of an idle one of another pool.
        """
        group = self._group
        return self.size < self.max_connections and (
            group.connection_count < group.max_pooled or any(pool.idle_channels for pool in group.pools)
        )

    def _evict_idle(self) -> None:
        for pool in self._group.pools:
            if pool.idle_channels:
                pool.idle_channels.pop().close()
                return

    def check_in(self, channel: Channel) -> None:
        """Take back a channel that was lent."""
        channel.reset()
        group = self._group
        with self._lock:
            self._in_use_count -= 1
            self._lent.discard(channel)
            fits = not group.may_exceed or (
                self.size < self.max_connections and group.connection_count < group.max_pooled
            )
            if not (fits and channel.generation == self._connector.generation) or channel.closed or self._closed:
                channel.close()
            else:
                self.idle_channels.append(channel)
            if group.may_exceed:
                group.may_exceed = group.is_exceeded
            if group.waiter_count:
                self._condition.notify_all()

    def _reset_after_fork(self) -> None:
        self._owner_pid = os.getpid()
        self.idle_channels.clear()
        self._waiters.clear()
        self._group.waiter_count = 0
        self._lent.clear()
        self._in_use_count = 0

    def close_idle(self) -> None:
        """Close the idle connections: after one was lost, the others probably are, too."""
        with self._lock:
            idle, self.idle_channels = self.idle_channels, []
            self._condition.notify_all()
        for channel in idle:
            channel.close()

    def drop_all(self) -> None:
        """Close all connections: they lead to a server that another has replaced.

        Waits of callers that use one end with UnavailableError.
        """
        self.close_idle()
        with self._lock:
            lent = list(self._lent)
        for channel in lent:
            channel.close()

    def close(self) -> None:
        """Close the idle connections now, and each other one when it is returned."""
        with self._lock:
            self._closed = True
            self._condition.notify_all()
        self.close_idle()
