"""The client of one Redis server.

Commands go in; replies or errors of `redisfuse.errors` come out. Threads: any thread may call any method. Locks guard
bookkeeping only and are never held while waiting for the server. A read is retried once on a new connection if its own
is lost. Writes use `write_channel` and are never repeated.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from redisfuse.client.address import Address
from redisfuse.client.allowlist import READ_ALLOWLIST, WRITE_ALLOWLIST, CommandFilter
from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.channel import Channel, CommandArgument, RedisCommand
from redisfuse.client.connection_id import ConnectionId
from redisfuse.client.connector import Connector
from redisfuse.client.limits import Limits
from redisfuse.client.pool import CLOSED_MESSAGE, ConnectionPool, PoolGroup
from redisfuse.client.stats import ClientStats
from redisfuse.client.termination import TerminationFilter, terminate_connections
from redisfuse.errors import ConnectionLostError, ReadOnlyError, RedisFuseError, TryAgainError, UnavailableError

__all__ = ["Channel", "CommandArgument", "ConnectionId", "Limits", "RedisClient", "RedisCommand", "ServerInfo"]

T = TypeVar("T")

_MIN_RETRY_DELAY_SECONDS = 0.02  # before the first retry of a temporary error; doubled up to the maximum
_MAX_RETRY_DELAY_SECONDS = 0.25


class RedisClient:
    """One server and database. Connects in `connect` or with the first command."""

    def __init__(
        self,
        address: Address,
        limits: Limits | None = None,
        *,
        writable: bool = False,
        password_file: Path | None = None,
    ) -> None:
        """Create a client.

        `password_file`: the file of the address's password, which is read again when the server refuses the password.
        """
        self.address = address
        self.limits = limits or Limits()
        self.writable = writable
        self.stats = ClientStats()
        self._connector = Connector(address, self.limits, self.stats, password_file=password_file)
        self._pool_group = PoolGroup(self.limits.connections, writable=writable)
        self._read_pool = ConnectionPool(self._pool_group, "read", self._connector, READ_ALLOWLIST)
        self._write_pool = ConnectionPool(self._pool_group, "write", self._connector, WRITE_ALLOWLIST)
        self._closed = False
        self._may_kill = True  # whether the ACL lets this user close connections, as far as was tried

        self._lock = threading.Lock()  # guards what is below
        self._dedicated_channels: set[Channel] = set()

    def connect(self) -> ServerInfo:
        """Connect, authenticate and detect the server.

        Raises UnavailableError (down, not Redis, a cluster), AccessError (password), UsageError (no such database).
        """
        self._run_read(lambda _channel: None)
        assert self._connector.server_info is not None  # the first channel has set it
        return self._connector.server_info

    @property
    def server_info(self) -> ServerInfo:
        """The server's properties as of the first connection; connects if necessary."""
        return self._connector.server_info or self.connect()

    # -- reading ------------------------------------------------------------------------------------------------------

    def execute(self, *command: CommandArgument) -> Any:
        """Return the reply to one read command; an error reply is raised."""

        def attempt(channel: Channel) -> Any:
            reply = channel.execute((command,))[0]
            if isinstance(reply, RedisFuseError):
                raise reply
            return reply

        return self._run_read(attempt)

    def execute_many(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Return the replies to read commands, in order.

        The commands are sent in pipelines of `limits.batch_size`. An error reply is a RedisFuseError object in the
        list. Only a temporary error that lasts (LOADING...), which concerns the server and not the command, is raised,
        as TryAgainError.
        """
        replies: list[Any] = []
        size = self.limits.batch_size
        for start in range(0, len(commands), size):  # slices, as this is the hot path of listings
            replies += self._run_read(_PipelinedRead(commands[start : start + size]))
        return replies

    def download(self, file: BinaryIO, *command: CommandArgument, max_bytes: int | None = None) -> int:
        """Write the bulk string that a read command returns to a file, as it arrives.

        The file is seekable, and written at its position. Returns the length in bytes. Raises NotFoundError for nil,
        ReplyTooLargeError above `max_bytes`, the error of an error reply, or the file's OSError.
        """
        start = file.tell()

        def attempt(channel: Channel) -> int:
            file.seek(start)
            file.truncate()
            return channel.download(file, command, max_bytes)

        return self._run_read(attempt)

    def _run_read(self, operation: Callable[[Channel], T]) -> T:
        """Call `operation` with a channel.

        Retries a temporary error until the time-out, and a lost connection once.
        """
        deadline = time.monotonic() + self.limits.timeout
        delay = _MIN_RETRY_DELAY_SECONDS
        was_lost = False
        while True:
            remaining = max(0.001, deadline - time.monotonic())
            try:
                with self._read_pool.acquire(remaining) as channel:
                    channel.timeout = remaining
                    return operation(channel)
            except TryAgainError:
                if time.monotonic() + delay >= deadline:
                    raise
                time.sleep(delay)
                delay = min(2 * delay, _MAX_RETRY_DELAY_SECONDS)
            except ConnectionLostError:
                self._read_pool.close_idle()
                if was_lost or self._closed or time.monotonic() >= deadline:
                    raise
                was_lost = True
                self.stats.add(reconnects=1)

    # -- channels for one caller --------------------------------------------------------------------------------------

    @contextmanager
    def dedicated_channel(
        self, *, resp3: bool = False, command_filter: CommandFilter = READ_ALLOWLIST
    ) -> Iterator[Channel]:
        """Open a channel for the body of `with` alone.

        It may be used for any length of time (scans, tracking). The channel counts towards `limits.connections`, but
        the pool keeps at least one. `close` ends a wait in the channel. Only `acl.check_acl` and
        `terminate_connections` pass another `command_filter`.
        """
        with self._pool_group.reserve_dedicated():
            channel = self._connector.open_channel(command_filter, self.limits.timeout, resp3=resp3)
            try:
                with self._lock:
                    self._dedicated_channels.add(channel)
                if self._closed:
                    raise UnavailableError(CLOSED_MESSAGE)
                yield channel
            finally:
                with self._lock:
                    self._dedicated_channels.discard(channel)
                channel.close()

    @contextmanager
    def write_channel(self) -> Iterator[Channel]:
        """Lend a channel that may write, for the body of `with`.

        Raises ReadOnlyError if the client isn't writable.
        """
        if not self.writable:
            raise ReadOnlyError("the mount is read-only: it was made without --write")
        with self._write_pool.acquire(self.limits.timeout, check_health=True) as channel:
            try:
                yield channel
            except ConnectionLostError:
                self._write_pool.close_idle()
                raise

    def terminate_connections(self, connections: Collection[ConnectionId]) -> set[ConnectionId]:
        """Make the server close connections that no process uses any more.

        Returns those that the server does not have any more, so that nothing sent on them is executed from now on; the
        others are missing because the ACL forbids CLIENT KILL. Raises UnavailableError.
        """
        if not connections:
            return set()
        if not self.writable:
            raise ReadOnlyError("only a client that may write closes connections")
        with self.dedicated_channel(command_filter=TerminationFilter()) as channel:
            gone, self._may_kill = terminate_connections(channel, connections, may_kill=self._may_kill)
        return gone

    def close(self) -> None:
        """Close all connections; waits in other threads end with UnavailableError."""
        self._closed = True
        self._read_pool.close()
        self._write_pool.close()
        with self._lock:
            channels = list(self._dedicated_channels)
        for channel in channels:
            channel.close()


class _PipelinedRead:
    """The commands of one pipeline.

    Called again, it sends only those that got a temporary error.
    """

    def __init__(self, commands: Sequence[RedisCommand]) -> None:
        self._commands = commands
        self._replies: list[Any] = [None] * len(commands)
        self._pending_indexes: list[int] = list(range(len(commands)))

    def __call__(self, channel: Channel) -> list[Any]:
        replies = channel.execute([self._commands[index] for index in self._pending_indexes])
        deferred: list[int] = []
        for index, reply in zip(self._pending_indexes, replies, strict=True):
            self._replies[index] = reply
            if isinstance(reply, TryAgainError):
                deferred.append(index)
        self._pending_indexes = deferred
        if deferred:
            raise self._replies[deferred[0]]
        return self._replies
