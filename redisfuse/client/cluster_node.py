"""The client of one node of a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redisfuse.client.address import Address, AddressKind
from redisfuse.client.address_map import AddressMap
from redisfuse.client.channel import Channel, CommandArgument, RedisCommand
from redisfuse.client.client import RedisClient
from redisfuse.client.connector import Connector
from redisfuse.client.limits import Limits
from redisfuse.client.rate_limit import TokenBucket
from redisfuse.client.replication import OutdatedReplicaError
from redisfuse.client.slot_map import ClusterNode
from redisfuse.client.stats import ClientStats
from redisfuse.errors import ConnectionLostError, RedirectedError, TryAgainError, UnavailableError

_READONLY: tuple[RedisCommand, ...] = ((b"READONLY",),)


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """The options that all nodes of a cluster share."""

    address: Address  # of the cluster: its credentials, TLS and database
    limits: Limits
    stats: ClientStats
    token_bucket: TokenBucket
    writable: bool = False
    password_file: Path | None = None
    address_map: AddressMap | None = None
    replicas: bool = False  # read replicas only
    max_lag: float = 0.0  # how old their values may be, in seconds; 0: no limit


class NodeClient(RedisClient):
    """A client of one node.

    `unreachable_since` is a hint without a lock: time.monotonic() of the first failure since the last reply.
    """

    def __init__(self, node: ClusterNode, options: NodeOptions, *, is_replica: bool = False) -> None:
        """Create a client.

        `is_replica`: read from the node, although the slots are its primary's.
        """
        kind: AddressKind = "tcp" if options.address.tls is None else "tls"
        address = replace(options.address, kind=kind, host=node.host, port=node.port, seeds=(), unix_path="")
        connector = Connector(
            address,
            options.limits,
            options.stats,
            password_file=options.password_file,
            address_map=options.address_map,
            token_bucket=options.token_bucket,
            is_cluster_node=True,
            setup=_READONLY if is_replica else (),
            replicas=is_replica and options.replicas,
        )
        super().__init__(
            address,
            options.limits,
            writable=options.writable,
            stats=options.stats,
            connector=connector,
            replicas=is_replica and options.replicas,
            max_lag=options.max_lag,
        )
        self.node = node
        self.is_replica = is_replica
        self.unreachable_since: float | None = None
        self.router: RedisClient | None = None  # the client of the cluster, which knows where other keys are

    def execute(self, *command: CommandArgument) -> Any:
        """Return the reply as `RedisClient.execute`.

        A key that is on another node is read there.
        """
        try:
            return super().execute(*command)
        except RedirectedError:
            if self.router is None:
                raise
            return self.router.execute(*command)

    def execute_many(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Return the replies as `RedisClient.execute_many`.

        Keys that are on other nodes are read there.
        """
        replies = super().execute_many(commands)
        redirected = [position for position, reply in enumerate(replies) if isinstance(reply, RedirectedError)]
        if redirected and self.router is not None:
            for position, reply in zip(
                redirected, self.router.execute_many([commands[position] for position in redirected]), strict=True
            ):
                replies[position] = reply
        return replies

    @contextmanager
    def read_channel(self, timeout: float, *, checks_lag: bool = True) -> Iterator[Channel]:
        """Lend a channel for reading, for the body of `with`.

        Sends nothing again. Records whether the node can be reached. Raises OutdatedReplicaError with `checks_lag`.
        """
        try:
            hook = None if self.router is None else self.router.wait_hook
            if hook is not None and self.limits.rate:
                hook(-1)  # for tokens
            with self._read_pool.acquire(timeout, wait_hook=hook) as channel:
                channel.timeout, channel.wait_hook = timeout, hook
                if self.lag_guard is not None and checks_lag:
                    self.lag_guard.check(channel)
                yield channel
                if not channel.closed:
                    self.unreachable_since = None
        except UnavailableError as error:
            self.record_failure(error)
            raise

    def record_failure(self, error: UnavailableError) -> None:
        """Note that the node can't be reached."""
        if isinstance(error, RedirectedError | TryAgainError | OutdatedReplicaError):
            return
        if self.unreachable_since is None:
            self.unreachable_since = time.monotonic()
        if isinstance(error, ConnectionLostError):
            self._read_pool.close_idle()
