"""The client of a Redis Cluster.

It has the interface of `RedisClient`. Each command goes to the node that owns its key's slot (cluster_reading.py,
cluster_writing.py).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from redisfuse.client.address import Address
from redisfuse.client.address_map import AddressMap
from redisfuse.client.allowlist import READ_ALLOWLIST, CommandFilter
from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.channel import Channel, CommandArgument, CommandExecutor, RedisCommand
from redisfuse.client.client import RedisClient
from redisfuse.client.cluster_errors import MovedWhileReadError, have_unavailable
from redisfuse.client.cluster_node import NodeClient, NodeOptions
from redisfuse.client.cluster_reading import ClusterPipeline, run_on_owner
from redisfuse.client.cluster_topology import ClusterTopology
from redisfuse.client.cluster_writing import RoutedReader, lend_write_channel, terminate_on_all
from redisfuse.client.command_keys import command_key
from redisfuse.client.connection_id import ConnectionId
from redisfuse.client.limits import Limits
from redisfuse.client.rate_limit import TokenBucket
from redisfuse.client.replication import OutdatedReplicaError
from redisfuse.client.slot_map import ClusterNode, SlotMap, key_slot
from redisfuse.client.stats import ClientStats
from redisfuse.errors import (
    RedirectedError,
    RedisFuseError,
    ReplyTooLargeError,
    TryAgainError,
    UnavailableError,
)

_IMPATIENT_SECONDS = 1.0  # for callers that come again


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
        info = self.any_node().server_info
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

    def any_node(self) -> NodeClient:
        """Return the client of a node that can be reached, if there is one."""
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
        reply = ClusterPipeline(self, (command,)).execute(self.limits.reply_timeout)[0]
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
            pipeline = ClusterPipeline(self, commands[start : start + size])
            replies += pipeline.execute(timeout, is_patient=is_patient)
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
        return run_on_owner(self, key, attempt)

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
        with self.any_node().dedicated_channel(resp3=resp3, command_filter=command_filter) as channel:
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
