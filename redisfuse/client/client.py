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
from redisfuse.client.address_map import AddressMap
from redisfuse.client.allowlist import READ_ALLOWLIST, WRITE_ALLOWLIST, CommandFilter
from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.channel import Channel, CommandArgument, CommandExecutor, RedisCommand, WaitHook
from redisfuse.client.connection_id import ConnectionId
from redisfuse.client.connector import Connector
from redisfuse.client.limits import Limits
from redisfuse.client.pool import CLOSED_MESSAGE, ConnectionPool, PoolGroup
from redisfuse.client.replica_acknowledgement import require_wait_permission, wait_for_state, wait_for_write
from redisfuse.client.replication import LagGuard
from redisfuse.client.sentinel import SentinelWatcher
from redisfuse.client.stats import ClientStats
from redisfuse.client.termination import TerminationFilter, terminate_connections
from redisfuse.errors import (
    ConnectionLostError,
    ReadOnlyError,
    RedirectedError,
    RedisFuseError,
    TryAgainError,
    UnavailableError,
    UnconfirmedWriteError,
)

__all__ = ["RedisClient", "RedisCommand"]

T = TypeVar("T")
ChannelOperation = Callable[[Channel], T]
"""Reads with a channel; it may be called again with another one."""

_REPLY_TYPES = {bytes, int, list, type(None)}  # of all replies but errors and those of few commands
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
        stats: ClientStats | None = None,
        connector: Connector | None = None,
        address_map: AddressMap | None = None,
        replicas: bool = False,
        max_lag: float = 0.0,
    ) -> None:
        """Create a client.

        `password_file`: the file of the address's password, which is read again when the server refuses the password.
        `stats`, `connector`: those that the client of a cluster gives to the client of each node.
        `address_map`: where the addresses that servers announce are reached. `replicas`: connect to replicas only, and
        fail reads of values that may be more than `max_lag` seconds old (0: no limit).
        """
        self.address = address
        self.limits = limits or Limits()
        self._batch_size = self.limits.batch_size
        self.writable = writable
        self.wait_replicas = 0  # replicas that must have a write before it is acknowledged
        self.stats = stats or ClientStats()
        self.lag_guard = LagGuard(max_lag) if replicas else None
        self._connector = connector or Connector(
            address,
            self.limits,
            self.stats,
            password_file=password_file,
            address_map=address_map,
            replicas=replicas,
            on_switch=self._drop_connections,
        )
        self._pool_group = PoolGroup(self.limits.connections, writable=writable)
        self._read_pool = ConnectionPool(self._pool_group, "read", self._connector, READ_ALLOWLIST)
        self._write_pool = ConnectionPool(self._pool_group, "write", self._connector, WRITE_ALLOWLIST)
        self.wait_hook: WaitHook | None = None  # set before threads use the client
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

    @property
    def is_partitioned(self) -> bool:
        """Whether only keys of one partition can be changed in one transaction."""
        return False

    @property
    def servers(self) -> "Sequence[RedisClient]":
        """The clients of the servers that hold the keys.

        They are this one, or those of the primaries of a cluster.
        """
        return (self,)

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
        size = self._batch_size
        if 0 < len(commands) <= size:
            return self._run_read(_PipelinedRead(commands))
        replies: list[Any] = []
        for start in range(0, len(commands), size):  # slices, as this is the hot path of listings
            replies += self._run_read(_PipelinedRead(commands[start : start + size]))
        return replies

    def execute_each(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Return the replies as `execute_many`.

        In a cluster, the error of a node that can't be reached is a reply, too.
        """
        return self.execute_many(commands)

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

    def _run_read(self, operation: ChannelOperation[T]) -> T:
        """Call `operation` with a channel.

        Retries a temporary error until the time-out, and a lost connection once.
        """
        deadline = time.monotonic() + self.limits.reply_timeout
        delay = _MIN_RETRY_DELAY_SECONDS
        was_lost = False
        while True:
            remaining = max(0.001, deadline - time.monotonic())
            if self.limits.rate:
                self.report_wait()  # for tokens
            try:
                channel = self._read_pool.check_out(min(remaining, self.limits.timeout), wait_hook=self.wait_hook)
                try:
                    channel.timeout, channel.wait_hook = remaining, self.wait_hook
                    if self.lag_guard is not None:
                        self.lag_guard.check(channel)
                    return operation(channel)
                finally:
                    self._read_pool.check_in(channel)
            except TryAgainError:
                if time.monotonic() + delay >= deadline:
                    raise
                self.report_wait()
                time.sleep(delay)
                delay = min(2 * delay, _MAX_RETRY_DELAY_SECONDS)
            except ConnectionLostError:
                self._read_pool.close_idle()
                if was_lost or self._closed or time.monotonic() >= deadline:
                    raise
                was_lost = True
                self.stats.add(reconnects=1)

    def report_wait(self) -> None:
        """Call the wait hook: this thread is about to wait for an unknown time."""
        if self.wait_hook is not None:
            self.wait_hook(-1)

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
        self.report_wait()
        with self._pool_group.reserve_dedicated():
            channel = self._connector.open_channel(command_filter, self.limits.timeout, resp3=resp3)
            try:
                with self._lock:
                    self._dedicated_channels.add(channel)
                if self._closed:
                    raise UnavailableError(CLOSED_MESSAGE)
                if channel.generation != self._connector.generation:
                    channel.close()
                channel.timeout = self.limits.reply_timeout
                yield channel
            finally:
                with self._lock:
                    self._dedicated_channels.discard(channel)
                channel.close()

    def require_current(self) -> None:
        """Raise UnavailableError if the replica's values may be too old."""
        if self.lag_guard is not None and self.lag_guard.max_lag:
            if self.lag_guard.is_due:
                self._run_read(lambda _channel: None)
            self.lag_guard.require_current()

    def leave_master(self) -> None:
        """Close all connections to a master if only replicas may be read."""
        if self.lag_guard is not None:
            self._drop_connections()

    @property
    def sentinels(self) -> SentinelWatcher | None:
        """The Sentinels that name the server; None if its address is given."""
        return self._connector.sentinels

    @contextmanager
    def reading_channel(self) -> Iterator[CommandExecutor]:
        """Lend an executor of reading commands, for the body of `with`."""
        with self.dedicated_channel() as channel:
            yield channel

    def partition(self, key: bytes) -> int:  # noqa: ARG002  # a cluster's depends on it
        """Return a number that keys of one transaction have in common.

        In a cluster, it is the slot.
        """
        return 0

    @contextmanager
    def write_channel(self, key: bytes = b"", after: RedirectedError | None = None) -> Iterator[Channel]:  # noqa: ARG002
        """Lend a channel that may write, for the body of `with`.

        `key`, `after`: in a cluster, one of the keys, and the redirection with which the last attempt ended. Raises
        ReadOnlyError if the client isn't writable, and TryAgainError while a fail-over is in progress.
        """
        if not self.writable:
            raise ReadOnlyError("the mount is read-only: it was made without --write")
        if self.sentinels is not None:
            self.sentinels.check_writable(self.limits.timeout)
        channel = self._write_pool.check_out(self.limits.timeout, check_health=True)
        try:
            yield channel
        except ConnectionLostError:
            self._write_pool.close_idle()
            raise
        finally:
            self._write_pool.check_in(channel)

    def require_wait_permission(self) -> None:
        """Raise AccessError if `wait_replicas` is set and the user may not use WAIT."""
        if self.wait_replicas and self.writable:
            with self.write_channel() as channel:
                require_wait_permission(channel)

    def confirm_write(self, channel: Channel) -> None:
        """Confirm that the writes acknowledged on this channel are safe.

        They are on `wait_replicas` replicas, and came before any fail-over. Raises UnconfirmedWriteError: then only the
        keys show the outcome, later. Raises UnavailableError.
        """
        if self.wait_replicas:
            wait_for_write(channel, self.wait_replicas, self.limits.timeout)
        self._confirm_master(channel)

    def confirm_state(self, channel: Channel) -> None:
        """Confirm what was read on this channel, as `confirm_write`."""
        if self.wait_replicas:
            wait_for_state(channel, self.wait_replicas, self.limits.timeout)
        self._confirm_master(channel)

    def _confirm_master(self, channel: Channel) -> None:
        if self.sentinels is not None:
            try:
                self.sentinels.confirm(channel.endpoint, self.limits.timeout)
            except TryAgainError as error:
                channel.close()
                raise UnconfirmedWriteError(str(error)) from None

    def terminate_connections(
        self, connections: Collection[ConnectionId], *, only_check: bool = False
    ) -> set[ConnectionId]:
        """Make the server close connections that no process uses any more.

        Returns those that the server does not have any more, so that nothing sent on them is executed from now on. The
        others are missing because the ACL forbids CLIENT KILL, or because of `only_check`, which closes none. Raises
        UnavailableError.
        """
        if not connections:
            return set()
        if not self.writable:
            raise ReadOnlyError("only a client that may write closes connections")
        with self.dedicated_channel(command_filter=TerminationFilter()) as channel:
            may_kill = self._may_kill and not only_check
            gone, was_allowed = terminate_connections(channel, connections, may_kill=may_kill)
        self._may_kill = self._may_kill and (was_allowed or only_check)
        return gone

    def close_idle(self) -> None:
        """Close the connections that are not in use."""
        self._read_pool.close_idle()
        self._write_pool.close_idle()

    def _drop_connections(self) -> None:
        """Close all connections: another server has replaced the one to which they lead."""
        self._read_pool.drop_all()
        self._write_pool.drop_all()
        self._close_dedicated()

    def _close_dedicated(self) -> None:
        with self._lock:
            channels = list(self._dedicated_channels)
        for channel in channels:
            channel.close()

    def close(self) -> None:
        """Close all connections; waits in other threads end with UnavailableError."""
        self._closed = True
        self._connector.close()
        self._read_pool.close()
        self._write_pool.close()
        self._close_dedicated()


class _PipelinedRead:
    """The commands of one pipeline.

    Called again, it sends only those that got a temporary error.
    """

    def __init__(self, commands: Sequence[RedisCommand]) -> None:
        self._commands = commands
        self._replies: list[Any] | None = None  # None: nothing was sent yet

    def __call__(self, channel: Channel) -> list[Any]:
        if self._replies is None:
            self._replies = channel.execute(self._commands)
        else:
            deferred = self._find_deferred(self._replies)
            replies = channel.execute([self._commands[index] for index in deferred])
            for index, reply in zip(deferred, replies, strict=True):
                self._replies[index] = reply
        if not _REPLY_TYPES.issuperset(map(type, self._replies)) and (deferred := self._find_deferred(self._replies)):
            raise self._replies[deferred[0]]
        return self._replies

    @staticmethod
    def _find_deferred(replies: Sequence[Any]) -> list[int]:
        return [index for index, reply in enumerate(replies) if isinstance(reply, TryAgainError)]
