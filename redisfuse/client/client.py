"""A Redis server as the rest of redisfuse sees it: ask, and get an answer or one of errors.py's errors.

Threads: everything here may be called from any thread. Locks are held only for bookkeeping, never while waiting for the
server. Reads are asked once more on a new connection if theirs is lost; writes go over writer() and are never repeated.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar

from redisfuse.client.address import Address
from redisfuse.client.allowlist import READ_ALLOWLIST, SENTINEL_ALLOWLIST, WRITE_ALLOWLIST, CommandFilter
from redisfuse.client.capabilities import ServerInfo, parse_hello, parse_info
from redisfuse.client.channel import Channel, CommandArgument, RedisCommand
from redisfuse.client.connection import CLIENT_NAME, open_connection
from redisfuse.client.limits import Limits
from redisfuse.client.pool import ConnectionPool, PoolGroup
from redisfuse.client.stats import ClientStats, TokenBucket
from redisfuse.errors import (
    AccessError,
    ConnectionLostError,
    ReadOnlyError,
    RedisFuseError,
    TryAgainError,
    UnavailableError,
)

__all__ = ["Channel", "CommandArgument", "Limits", "RedisClient", "RedisCommand", "ServerInfo"]

T = TypeVar("T")

_MIN_RETRY_DELAY_SECONDS = 0.02  # seconds before asking again after "not now"; doubled up to the longest
_MAX_RETRY_DELAY_SECONDS = 0.25


class RedisClient:
    """One server and database. Nothing is connected until connect() or the first question."""

    def __init__(self, address: Address, limits: Limits | None = None, *, writable: bool = False) -> None:
        self.address = address
        self.limits = limits or Limits()
        self.writable = writable
        self.stats = ClientStats()
        self._token_bucket = TokenBucket(self.limits.rate)
        self._pool_group = PoolGroup(self._max_pooled_channels)
        self._read_pool = ConnectionPool(
            self._pool_group, self._max_read_channels, lambda seconds: self._open_channel(READ_ALLOWLIST, seconds)
        )
        self._write_pool = ConnectionPool(
            self._pool_group, self._max_write_channels, lambda seconds: self._open_channel(WRITE_ALLOWLIST, seconds)
        )
        self._lock = threading.Lock()
        self._server_info: ServerInfo | None = None
        self._dedicated_channels: set[Channel] = set()
        self._dedicated_count = 0  # dialogues open, or being opened
        self._may_set_name = True
        self._closed = False

    # -- what it is ---------------------------------------------------------------------------------------------------

    def connect(self) -> ServerInfo:
        """Make sure that the server is there, lets us in, and is one that can be mounted.

        Raises UnavailableError (down, not Redis, a cluster), AccessError (password), UsageError (no such database).
        """
        self._run_read(lambda _dialogue: None)
        assert self._server_info is not None  # learnt by the first connection
        return self._server_info

    @property
    def server_info(self) -> ServerInfo:
        """What the server was when it was first reached; reaches it if it was not yet."""
        return self._server_info or self.connect()

    # -- reading ------------------------------------------------------------------------------------------------------

    def execute(self, *command: CommandArgument) -> Any:
        """The answer to one reading command; an error reply raises its error."""

        def work(channel: Channel) -> Any:
            answer = channel.execute((command,))[0]
            if isinstance(answer, RedisFuseError):
                raise answer
            return answer

        return self._run_read(work)

    def execute_many(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """The answers to reading commands, in order, asked in batches of `limits.pipeline`.

        An error reply is a RedisFuseError object in the list; only "not now" (LOADING...), which concerns the server
        and not the command, raises TryAgainError when it lasts.
        """
        answers: list[Any] = []
        size = self.limits.batch_size
        for start in range(0, len(commands), size):
            answers += self._run_read(_PipelinedRead(commands[start : start + size]))
        return answers

    def download(self, file: BinaryIO, *command: CommandArgument) -> int:
        """Write the one bulk string that a reading command answers to a seekable file, where it stands, piece by piece.

        Returns its length in bytes. Raises NotFoundError for nil, an error reply's error, or the file's OSError.
        """
        start = file.tell()

        def work(channel: Channel) -> int:
            file.seek(start)
            file.truncate()
            return channel.download(file, command)

        return self._run_read(work)

    def _run_read(self, operation: Callable[[Channel], T]) -> T:
        """Do `work` on a connection; again while the server says "not now", once more if the connection was lost."""
        deadline = time.monotonic() + self.limits.timeout
        pause = _MIN_RETRY_DELAY_SECONDS
        lost = False
        while True:
            left = max(0.001, deadline - time.monotonic())
            try:
                with self._read_pool.acquire(left) as dialogue:
                    dialogue.timeout = left
                    return operation(dialogue)
            except TryAgainError:
                if time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _MAX_RETRY_DELAY_SECONDS)
            except ConnectionLostError:
                self._read_pool.close_idle()
                if lost or self._closed or time.monotonic() >= deadline:
                    raise
                lost = True
                self.stats.add(reconnects=1)

    # -- connections of one's own -------------------------------------------------------------------------------------

    @contextmanager
    def dedicated_channel(
        self, *, resp3: bool = False, command_filter: CommandFilter = READ_ALLOWLIST
    ) -> Iterator[Channel]:
        """A reading connection for the body of `with` alone, for as long as it likes (the scan, the follower).

        It counts among `limits.connections`, so the pool has one less, but at least one. close() ends a wait in it.
        Only permissions.py gives another `guard`.
        """
        with self._lock:
            self._dedicated_count += 1
        self._pool_group.close_excess()
        dialogue: Channel | None = None
        try:
            dialogue = self._open_channel(command_filter, self.limits.timeout, resp3=resp3)
            with self._lock:
                self._dedicated_channels.add(dialogue)
            if self._closed:
                raise UnavailableError("the connections are closed: the mount is ending")
            yield dialogue
        finally:
            with self._lock:
                self._dedicated_count -= 1
                if dialogue is not None:
                    self._dedicated_channels.discard(dialogue)
            if dialogue is not None:
                dialogue.close()

    @contextmanager
    def write_channel(self) -> Iterator[Channel]:
        """A connection that may write, for the body of `with` alone. ReadOnlyError unless the Server is writable."""
        if not self.writable:
            raise ReadOnlyError("this mount is read-only: it was made without --write")
        with self._write_pool.acquire(self.limits.timeout, check_health=True) as dialogue:
            try:
                yield dialogue
            except ConnectionLostError:
                self._write_pool.close_idle()
                raise

    def close(self) -> None:
        """Hang up everywhere; waits in other threads end with UnavailableError."""
        self._closed = True
        self._read_pool.close()
        self._write_pool.close()
        with self._lock:
            dialogues = list(self._dedicated_channels)
        for dialogue in dialogues:
            dialogue.close()

    # -- how many -----------------------------------------------------------------------------------------------------

    def _max_pooled_channels(self) -> int:
        """Connections for reading and writing together: what the dialogues leave."""
        return max(2 if self.writable else 1, self.limits.connections - self._dedicated_count)

    def _max_write_channels(self) -> int:
        """Half of all, but at least one stays for reading."""
        return max(1, min(self.limits.connections // 2, self._max_pooled_channels() - 1))

    def _max_read_channels(self) -> int:
        """All but one, which stays for writing: so one request that hangs does not stop the others."""
        return max(1, self._max_pooled_channels() - (1 if self.writable else 0))

    # -- connecting ---------------------------------------------------------------------------------------------------

    def _open_channel(self, command_filter: CommandFilter, timeout: float, *, resp3: bool = False) -> Channel:
        """A new connection, named, and not disturbing the server's LRU; within `seconds`."""
        address = self._resolve_address(timeout)
        connection = open_connection(
            address, command_filter, timeout=timeout, stats=self.stats, token_bucket=self._token_bucket, resp3=resp3
        )
        dialogue = Channel(connection, address, timeout, resp3=resp3)
        try:
            greeting: list[RedisCommand] = [(b"CLIENT", b"SETNAME", CLIENT_NAME)] if self._may_set_name else []
            facts = self._server_info
            if facts is None:
                facts = self._detect_server(dialogue)
            if facts.has_no_touch:
                greeting.append((b"CLIENT", b"NO-TOUCH", b"ON"))
            for command, answer in zip(greeting, dialogue.execute(greeting) if greeting else (), strict=True):
                if isinstance(answer, AccessError) and command[1] == b"SETNAME":
                    self._may_set_name = False  # a name is a courtesy; asking again would fill the server's ACL LOG
                elif isinstance(answer, TryAgainError):
                    raise answer
        except BaseException:
            dialogue.close()
            raise
        self._server_info = facts
        dialogue.timeout = self.limits.timeout
        return dialogue

    def _resolve_address(self, timeout: float) -> Address:
        """The address to connect to: of the master now, where Sentinels know it."""
        address = self.address
        if address.kind == "cluster":
            raise UnavailableError(_CLUSTER_UNSUPPORTED.format(place=address.endpoint))
        if address.kind != "sentinel":
            return address
        reasons: list[str] = []
        for host, port in address.sentinels:
            node = Address(
                host=host,
                port=port,
                username=address.sentinel_username,
                password=address.sentinel_password,
                tls=address.tls,
            )
            try:
                master = self._query_sentinel(node, address.service_name, timeout / len(address.sentinels))
            except RedisFuseError as error:
                reasons.append(str(error))
                continue
            if master:
                host, port = master[0].decode(), int(master[1])
                return replace(address, kind="tcp", host=host, port=port, sentinels=(), service_name="")
            reasons.append(f"{node.endpoint} knows no master called {address.service_name}")
        raise UnavailableError(f"no Sentinel tells the master: {'; '.join(reasons)}")

    def _query_sentinel(self, node: Address, service_name: str, timeout: float) -> list[bytes] | None:
        connection = open_connection(
            node, SENTINEL_ALLOWLIST, timeout=timeout, stats=self.stats, token_bucket=self._token_bucket
        )
        dialogue = Channel(connection, node, timeout)
        try:
            answer = dialogue.execute([(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service_name)])[0]
        finally:
            dialogue.close()
        if isinstance(answer, RedisFuseError):
            raise answer
        return answer if isinstance(answer, list) and len(answer) == 2 else None

    def _detect_server(self, channel: Channel) -> ServerInfo:
        """What the server is; raises for one that can't be mounted."""
        answer = channel.execute([(b"INFO",)])[0]
        if isinstance(answer, AccessError) and not str(answer).startswith("the server wants a password"):
            hello = channel.execute([(b"HELLO",)])[0]  # which no ACL can forbid
            facts = ServerInfo() if isinstance(hello, RedisFuseError) else parse_hello(hello)
        elif isinstance(answer, RedisFuseError):
            raise answer
        else:
            text = answer if isinstance(answer, bytes) else str(answer).encode()
            facts = parse_info(text)
        place = self.address.endpoint
        if facts.is_cluster:
            raise UnavailableError(_CLUSTER_UNSUPPORTED.format(place=place))
        if facts.mode == "sentinel":
            raise UnavailableError(f"{place} is a Sentinel, not a server: use redis+sentinel://{place}/SERVICE")
        return facts


_CLUSTER_UNSUPPORTED = (
    "{place} belongs to a Redis Cluster, which can't be mounted: one node holds only part of the keys; "
    "mount a server that is not in cluster mode"
)


class _PipelinedRead:
    """Commands asked at once; called again, it asks only those again that the server put off."""

    def __init__(self, commands: Sequence[RedisCommand]) -> None:
        self._commands = commands
        self._replies: list[Any] = [None] * len(commands)
        self._pending_indexes: list[int] = list(range(len(commands)))

    def __call__(self, channel: Channel) -> list[Any]:
        answers = channel.execute([self._commands[index] for index in self._pending_indexes])
        later: list[int] = []
        for index, answer in zip(self._pending_indexes, answers, strict=True):
            self._replies[index] = answer
            if isinstance(answer, TryAgainError):
                later.append(index)
        self._pending_indexes = later
        if later:
            raise self._replies[later[0]]
        return self._replies
