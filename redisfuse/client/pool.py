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
from redisfuse.client.channel import Channel
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
        self.condition = threading.Condition()  # its lock guards all the pools, and all below
        self.pools: list[ConnectionPool] = []
        self._dedicated_count = 0  # dedicated channels that are open or being opened

    @property
    def connection_count(self) -> int:
        """Pooled connections that are open or being opened. The lock is held."""
        return sum(pool.size for pool in self.pools)

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
        with self.condition:
            self._dedicated_count += 1
            for pool in self.pools:
                while pool.idle_channels and (
                    self.connection_count > self.max_pooled or pool.size > pool.max_connections
                ):
                    pool.idle_channels.pop().close()
            self.condition.notify_all()
        try:
            yield
        finally:
            with self.condition:
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
        self._condition = group.condition
        self._in_use_count = 0
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
    def acquire(self, timeout: float, *, check_health: bool = False) -> Iterator[Channel]:
        """Lend a channel for the body of `with`, within `timeout` seconds.

        `check_health`: never lend a channel that the server has closed. Raises UnavailableError if all stay busy, and
        the errors of `Connector.open_channel`.
        """
        channel = self._check_out(timeout, check_health=check_health)
        try:
            yield channel
        finally:
            channel.reset()
            self._check_in(channel)

    def _check_out(self, timeout: float, *, check_health: bool) -> Channel:
        deadline = time.monotonic() + timeout
        with self._condition:
            self._reset_after_fork()
            if not self._wait_turn(timeout):
                raise UnavailableError(f"all connections were busy for {timeout:.1f} s (see --connections)")
            if self._closed:
                raise UnavailableError(CLOSED_MESSAGE)
            while self.idle_channels:
                channel = self.idle_channels.pop()
                if not check_health or channel.is_healthy():
                    self._in_use_count += 1
                    return channel
                channel.close()
            if self._group.connection_count >= self._group.max_pooled:
                self._evict_idle()
            self._in_use_count += 1
        try:
            return self._connector.open_channel(
                self._command_filter, max(0.001, deadline - time.monotonic()), identify=self._kind == "write"
            )
        except BaseException:
            with self._condition:
                self._in_use_count -= 1
                self._condition.notify_all()
            raise

    def _wait_turn(self, timeout: float) -> bool:
        """Wait in line for a connection; return False after `timeout` seconds.

        The lock is held.
        """
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

    def _check_in(self, channel: Channel) -> None:
        with self._condition:
            self._in_use_count -= 1
            fits = self.size < self.max_connections and self._group.connection_count < self._group.max_pooled
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
        """Close the idle connections: after one was lost, the others probably are, too."""
        with self._condition:
            idle, self.idle_channels = self.idle_channels, []
            self._condition.notify_all()
        for channel in idle:
            channel.close()

    def close(self) -> None:
        """Close the idle connections now, and each other one when it is returned."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self.close_idle()
