"""The client of a Redis Cluster.

It has the interface of `RedisClient`. Each command goes to the node that owns its key's slot. A pipeline is split by
node: all nodes are sent their commands before any reply is read. MOVED and ASK are followed. What a node did not answer
is read again until the time-out, from the node that owns the slot by then, because reads have no effect.
"""

from __future__ import annotations

import time
from binascii import crc_hqx
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from redisfuse.client.address import Address
from redisfuse.client.address_map import AddressMap
from redisfuse.client.allowlist import READ_ALLOWLIST, CommandFilter
from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.channel import Channel, CommandArgument, CommandExecutor, RedisCommand
from redisfuse.client.client import RedisClient
from redisfuse.client.cluster_errors import FollowableRedirection, MovedWhileReadError, have_unavailable
from redisfuse.client.cluster_node import NodeClient, NodeOptions
from redisfuse.client.cluster_topology import ClusterTopology
from redisfuse.client.cluster_writing import RoutedReader, lend_write_channel, terminate_on_all
from redisfuse.client.command_keys import bind_cursor, command_cursor, command_key, is_cursor_command
from redisfuse.client.connection_id import ConnectionId
from redisfuse.client.limits import Limits
from redisfuse.client.rate_limit import TokenBucket
from redisfuse.client.replication import OutdatedReplicaError
from redisfuse.client.slot_map import ClusterNode, SlotMap, key_slot, parse_target
from redisfuse.client.stats import ClientStats
from redisfuse.errors import (
    AccessError,
    RedirectedError,
    RedisFuseError,
    ReplyTooLargeError,
    TryAgainError,
    UnavailableError,
)

T = TypeVar("T")

_ASKING: RedisCommand = (b"ASKING",)
_MIN_RETRY_DELAY_SECONDS = 0.02  # before what failed is sent again; doubled up to the maximum
_MAX_RETRY_DELAY_SECONDS = 0.25
_MIN_TIMEOUT_SECONDS = 0.05
_IMPATIENT_SECONDS = 1.0  # for callers that come again
_IMMEDIATE_REDIRECTIONS = 4  # redirections that are followed without a delay


@dataclass(slots=True)
class _Request:
    """The commands for one node, by their position in the pipeline."""

    client: NodeClient
    positions: list[int]
    asking: bool = False  # whether the node is only about to get the slots


class ClusterClient(RedisClient):
    """All nodes of a cluster, by one interface.

    Connects in `connect` or with the first command.
    """

    def __init__(
        self,
        address: Address,
        limits: Limits | None = None,
        *,
        writable: bool = False,
        password_file: Path | None = None,
        address_map: AddressMap | None = None,
        replicas: bool = False,
        max_lag: float = 0.0,
    ) -> None:
        """Create a client; `address` is of kind cluster.

        `replicas`, `max_lag`: as of `RedisClient`. Then the maps name the replicas that are read as the slots' owners.
        """
        limits, stats = limits or Limits(), ClientStats()
        super().__init__(address, limits, writable=writable, password_file=password_file, stats=stats)
        bucket = TokenBucket(limits.rate)
        options = NodeOptions(
            address, limits, stats, bucket, writable, password_file, address_map, replicas=replicas, max_lag=max_lag
        )
        self.reads_replicas = replicas
        self.topology = ClusterTopology(options)
        self.topology.router = self
        self._server_info: ServerInfo | None = None

    def connect(self) -> ServerInfo:
        """Fetch the slot map, and detect the server's version.

        Raises UnavailableError (no seed can be reached, or is a node of a cluster), AccessError, UsageError.
        """
        seeds = [ClusterNode(f"{host}:{port}", host, port) for host, port in self.address.seeds]
        self.topology.connect(seeds)
        # None of the identities of a single node is that of the cluster.
        info = self._any_node().server_info
        if info.has_asking_replicas:
            self.topology.transit = None
        role = info.role if self.reads_replicas else "master"
        self._server_info = replace(info, run_id="", replication_id="", previous_replication_id="", role=role)
        return self._server_info

    @property
    def server_info(self) -> ServerInfo:
        """The properties of one of the nodes; connects if necessary."""
        return self._server_info or self.connect()

    @property
    def slot_map(self) -> SlotMap:
        """The owners of all slots, as far as they are known now."""
        if not self.topology.slot_map.primaries:
            self.connect()
        return self.topology.slot_map

    @property
    def servers(self) -> Sequence[RedisClient]:
        """The clients of all primaries that own slots, or of a replica of each."""
        return [self.topology.client_of(node) for node in self.slot_map.primaries.values()]

    def _any_node(self) -> NodeClient:
        nodes = list(self.slot_map.primaries.values())
        clients = [self.topology.client_of(node) for node in nodes]
        if not clients:
            raise UnavailableError(f"no node of the cluster {self.address.endpoint} serves any slot")
        return min(clients, key=lambda client: client.unreachable_since or 0.0)

    # -- reading ------------------------------------------------------------------------------------------------------

    def execute(self, *command: CommandArgument) -> Any:
        """Return the reply to one read command; an error reply is raised.

        A command without a key goes to any node.
        """
        reply = self._execute_batch((command,), self.limits.reply_timeout)[0]
        if isinstance(reply, RedisFuseError):
            raise reply
        return reply

    def execute_many(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Return the replies to read commands, in order.

        An error reply is a RedisFuseError object in the list. The error of a node that can't be reached, a temporary
        error that lasts and a redirection that can't be followed are raised.
        """
        replies = self._execute_all(commands, self.limits.reply_timeout)
        if have_unavailable(replies):
            raise next(reply for reply in replies if isinstance(reply, UnavailableError))
        return replies

    def execute_each(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Return the replies as `execute_many`; all errors are replies, too.

        A node that can't be reached is not waited for.
        """
        return self._execute_all(commands, min(_IMPATIENT_SECONDS, self.limits.timeout), is_patient=False)

    def _execute_all(self, commands: Sequence[RedisCommand], timeout: float, *, is_patient: bool = True) -> list[Any]:
        replies: list[Any] = []
        size = self.limits.batch_size
        for start in range(0, len(commands), size):
            replies += self._execute_batch(commands[start : start + size], timeout, is_patient=is_patient)
        return replies

    def _execute_batch(self, commands: Sequence[RedisCommand], timeout: float, *, is_patient: bool = True) -> list[Any]:
        deadline = time.monotonic() + timeout
        replies: list[Any] = [None] * len(commands)
        self._exchange(self._group_by_owner(commands, range(len(commands)), replies), commands, replies, deadline)
        if not have_unavailable(replies):
            return replies
        self._report_wait()  # for other nodes, and for a refresh of the topology
        delay, immediate = _MIN_RETRY_DELAY_SECONDS, _IMMEDIATE_REDIRECTIONS
        while failed := [position for position, reply in enumerate(replies) if isinstance(reply, UnavailableError)]:
            redirected = [position for position in failed if isinstance(replies[position], RedirectedError)]
            retried = [
                position
                for position in (failed if is_patient else redirected)
                if self.may_retry(command_key(commands[position]), replies[position])
            ]
            if not retried or time.monotonic() >= deadline:
                break
            if len(redirected) < len(retried) or not immediate:
                if time.monotonic() + delay >= deadline:
                    break
                time.sleep(delay)
                delay = min(2 * delay, _MAX_RETRY_DELAY_SECONDS)
                self.topology.refresh_soon()
            else:
                immediate -= 1
            self._exchange(self._group_again(commands, retried, replies), commands, replies, deadline)
        return replies

    def may_retry(self, key: bytes | None, error: UnavailableError) -> bool:
        """Return whether a command about a key may succeed if it is sent again."""
        if isinstance(error, MovedWhileReadError | ReplyTooLargeError | OutdatedReplicaError):
            return False
        if isinstance(error, RedirectedError | TryAgainError):
            return True
        owner = None if key is None else self.slot_map.owner(key)
        client = None if owner is None else self.topology.client_of_primary(owner)
        # Once a node has been down for longer than the time-out, waiting for it again helps no caller.
        since = None if client is None else client.unreachable_since
        return since is None or time.monotonic() - since < self.limits.timeout

    def _group_by_owner(
        self, commands: Sequence[RedisCommand], positions: Sequence[int], replies: list[Any]
    ) -> list[_Request]:
        owners = self.slot_map.owners
        groups: dict[str | None, list[int]] = {}
        anywhere: list[int] = []
        for position in positions:
            command = commands[position]
            key = command_key(command)
            if key is None:
                anywhere.append(position)
                continue
            owner = owners[crc_hqx(key, 0) & 0x3FFF if b"{" not in key else key_slot(key)]  # mostly without a call
            if is_cursor_command(command) and (cursor := command_cursor(command)) and cursor.node_id != owner:
                replies[position] = MovedWhileReadError()
            elif owner in groups:
                groups[owner].append(position)
            else:
                groups[owner] = [position]
        requests: list[_Request] = []
        if anywhere:
            requests.append(_Request(self._any_node(), anywhere))
        for owner, own_positions in groups.items():
            client = None if owner is None else self.topology.client_of_primary(owner)
            if client is None:
                for position in own_positions:
                    replies[position] = TryAgainError("no node of the cluster serves this slot; try again later")
            else:
                requests.append(_Request(client, own_positions))
        return requests

    def _group_again(
        self, commands: Sequence[RedisCommand], positions: Sequence[int], replies: list[Any]
    ) -> list[_Request]:
        """Group commands whose last replies were errors; follow redirections."""
        asking: dict[tuple[str, int], list[int]] = {}
        others: list[int] = []
        for position in positions:
            error = replies[position]
            if isinstance(error, FollowableRedirection) and error.reply_code == "ASK" and error.endpoint is not None:
                asking.setdefault(error.endpoint, []).append(position)
                continue
            if isinstance(error, FollowableRedirection):
                self.topology.record_move(error, error.sender)
            others.append(position)
        requests = self._group_by_owner(commands, others, replies)
        for endpoint, own_positions in asking.items():
            try:
                requests.append(_Request(self.topology.client_at(*endpoint), own_positions, asking=True))
            except TryAgainError as error:
                for position in own_positions:
                    replies[position] = error
        return requests

    def _exchange(
        self, requests: list[_Request], commands: Sequence[RedisCommand], replies: list[Any], deadline: float
    ) -> None:
        """Send all nodes their commands, then receive all replies.

        Nodes that failed come last. Channels are acquired in the order of the nodes, so that threads can't wait for
        each other in a circle.
        """
        if len(requests) > 1:
            requests.sort(key=lambda request: (request.client.unreachable_since is not None, request.client.node.id))
        with ExitStack() as stack:
            sent: list[tuple[_Request, Channel]] = []
            for request in requests:
                own = [commands[position] for position in request.positions]
                if request.asking:
                    own = [each for command in own for each in (_ASKING, command)]
                remaining = max(_MIN_TIMEOUT_SECONDS, deadline - time.monotonic())
                try:
                    channel = stack.enter_context(request.client.read_channel(remaining))
                    channel.send(own)
                    sent.append((request, channel))
                except (UnavailableError, AccessError) as error:
                    self._record_failure(request, replies, error)
            for request, channel in sent:
                channel.timeout = max(_MIN_TIMEOUT_SECONDS, deadline - time.monotonic())
                count = len(request.positions)
                try:
                    received = channel.receive_many(2 * count)[1::2] if request.asking else channel.receive_many(count)
                except UnavailableError as error:
                    self._record_failure(request, replies, error)
                    continue
                self._store_replies(request, commands, replies, received)

    def _record_failure(self, request: _Request, replies: list[Any], error: RedisFuseError) -> None:
        if isinstance(error, UnavailableError):
            request.client.record_failure(error)
        for position in request.positions:
            replies[position] = error

    def _store_replies(
        self, request: _Request, commands: Sequence[RedisCommand], replies: list[Any], received: list[Any]
    ) -> None:
        if len(received) == len(replies):
            replies[:] = received  # the usual case of a single command
        else:
            for position, reply in zip(request.positions, received, strict=True):
                replies[position] = reply
        if self.topology.transit is not None:
            self.topology.transit.revise(commands, request.positions, replies)
        if not have_unavailable(received) and not any(is_cursor_command(commands[each]) for each in request.positions):
            return
        for position in request.positions:
            reply = replies[position]
            if isinstance(reply, RedirectedError):
                is_bound = command_cursor(commands[position]) is not None
                replies[position] = MovedWhileReadError() if is_bound else FollowableRedirection(reply, request.client)
            elif is_cursor_command(commands[position]):
                replies[position] = bind_cursor(reply, request.client.node.id)

    def download(self, file: BinaryIO, *command: CommandArgument, max_bytes: int | None = None) -> int:
        """Write the bulk string that a read command returns to a file.

        As `RedisClient.download`.
        """
        start = file.tell()

        def attempt(channel: Channel) -> int:
            file.seek(start)
            file.truncate()
            return channel.download(file, command, max_bytes)

        key = command_key(command)
        assert key is not None
        return self.run_on_owner(key, attempt)

    def run_on_owner(self, key: bytes, operation: Callable[[Channel], T]) -> T:
        """Call `operation`, which only reads, with a channel to a key's owner.

        Follows redirections. Calls it again until the time-out, as `execute` sends a command again.
        """
        deadline = time.monotonic() + self.limits.timeout
        delay = _MIN_RETRY_DELAY_SECONDS
        asking: tuple[str, int] | None = None
        while True:
            client = self.topology.client_at(*asking) if asking else self.owner_client(key)
            try:
                with client.read_channel(max(_MIN_TIMEOUT_SECONDS, deadline - time.monotonic())) as channel:
                    if asking:
                        channel.execute([_ASKING])
                    asking = None
                    return operation(channel)
            except RedirectedError as error:
                self._report_wait()
                if time.monotonic() >= deadline:
                    raise
                if error.reply_code == "ASK":
                    asking = parse_target(error.target, client.node.host)
                else:
                    self.topology.record_move(error, client)
            except UnavailableError as error:
                if time.monotonic() + delay >= deadline or not self.may_retry(key, error):
                    raise
                self._report_wait()
                time.sleep(delay)
                delay = min(2 * delay, _MAX_RETRY_DELAY_SECONDS)
                self.topology.refresh_soon()

    def owner_client(self, key: bytes) -> NodeClient:
        """Return the client of a key's owner. Raises TryAgainError if there is none."""
        owner = self.slot_map.owner(key)
        client = None if owner is None else self.topology.client_of_primary(owner)
        if client is None:
            raise TryAgainError("no node of the cluster serves this slot; try again later")
        return client

    def require_current(self) -> None:
        """Raise UnavailableError if the values of a replica may be too old."""
        if self.reads_replicas:
            for server in self.servers:
                server.require_current()

    # -- channels for one caller --------------------------------------------------------------------------------------

    @contextmanager
    def dedicated_channel(
        self, *, resp3: bool = False, command_filter: CommandFilter = READ_ALLOWLIST
    ) -> Iterator[Channel]:
        """Open a channel to any node, as `RedisClient.dedicated_channel`."""
        with self._any_node().dedicated_channel(resp3=resp3, command_filter=command_filter) as channel:
            yield channel

    @contextmanager
    def reading_channel(self) -> Iterator[CommandExecutor]:
        """Lend an executor that reads each key from its owner."""
        yield RoutedReader(self)

    # -- writing ------------------------------------------------------------------------------------------------------

    @property
    def is_partitioned(self) -> bool:
        """Whether only keys of one partition can be changed in one transaction."""
        return True

    def partition(self, key: bytes) -> int:
        """Return the slot of a key."""
        return key_slot(key)

    @contextmanager
    def write_channel(self, key: bytes = b"", after: RedirectedError | None = None) -> Iterator[Channel]:
        """Lend a channel to the owner of a key's slot, as `RedisClient.write_channel`."""
        with lend_write_channel(self, key, after) as channel:
            yield channel

    def terminate_connections(
        self, connections: Collection[ConnectionId], *, only_check: bool = False
    ) -> set[ConnectionId]:
        """Make the nodes close connections, as `RedisClient.terminate_connections`."""
        return terminate_on_all(self, connections, only_check=only_check) if connections else set()

    def close(self) -> None:
        """Close all connections; waits in other threads end with UnavailableError."""
        super().close()
        self.topology.close()
